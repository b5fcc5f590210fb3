"""evaluate() from the loader to the table, with detectors whose AP is known."""

import json
import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from iounet import Detections
from iounet.data import CocoDataset, eval_loader
from iounet.data.synthetic import make_synthetic
from iounet.evaluation import evaluate
from iounet.modeling import ImageFeatures, Postprocessing
from iounet.processes import Process


class Oracle(nn.Module):
    """Finds the ground truth, or nothing."""

    def __init__(self, targets, finds):
        super().__init__()
        self.postprocessing, self.targets, self.finds = Postprocessing(), iter(targets), finds

    def extract(self, images):
        sizes = [tuple(image.shape[-2:]) for image in images]
        return ImageFeatures({}, ImageList(torch.zeros(0), sizes), sizes)

    def propose(self, features):
        return [next(self.targets) for _ in features.sizes]

    def detect(self, features, proposals):
        found = []
        for target in proposals:
            count = len(target["labels"]) if self.finds else 0
            found.append(
                Detections(target["boxes"][:count], target["labels"][:count], torch.ones(count), torch.ones(count))
            )
        return found

    def postprocess(self, features, candidates, options=None):
        return candidates


@pytest.mark.parametrize(("finds", "ap"), [(True, 100.0), (False, 0.0)])
def test_perfect_boxes_and_none(tmp_path, finds, ap):
    make_synthetic(tmp_path, num_train=1, num_val=5, num_test=1, image_size=(64, 64), seed=0)
    file = tmp_path / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for new_id, annotation in enumerate(content["annotations"]):
        annotation["id"] = new_id  # the first is 0, which pycocotools takes for no object
        annotation["category_id"] = 90 - 7 * annotation["category_id"]
    for category in content["categories"]:
        category["id"] = 90 - 7 * category["id"]
    file.write_text(json.dumps(content))
    dataset = CocoDataset(file, tmp_path / "val")
    oracle = Oracle([dataset[index][1] for index in range(len(dataset))], finds)
    batches = eval_loader(dataset, batch_size=2, num_workers=0)
    evaluation = evaluate(
        oracle, batches, dataset.as_coco(), dataset.category_ids, process=Process(torch.device("cpu"))
    )
    assert len(evaluation.results) == (len(content["annotations"]) if finds else 0)
    for row in evaluation.table.values():
        known = [value for value in row.values() if not math.isnan(value)]
        assert known == pytest.approx([ap] * len(known)) and len(known) >= 8
