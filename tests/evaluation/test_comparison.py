import pytest
import torch
from torch import nn

from iounet.boxes import elementwise_iou
from iounet.data import CocoDataset, eval_loader
from iounet.evaluation import CocoEvaluator, compare, comparison_summary, measure_basins, methods
from iounet.evaluation.comparison import OWN
from iounet.training import jitter_boxes

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def data(dataset):
    folder = dataset / "val"
    return CocoDataset(dataset / "annotations" / "val.json", folder)


@pytest.fixture
def detector(build_tiny):
    return build_tiny({"MODEL.NUM_CLASSES": 5, "MODEL.ENERGY_HEAD.LOSS": "nce", "TEST.REFINE.OBJECTIVE": "energy"})


def test_every_method_has_a_row_and_the_bound_is_highest(detector, data):
    rows = methods(detector.postprocessing)
    measured = compare(detector, eval_loader(data, batch_size=2, num_workers=0), rows, device=CPU)
    assert all(len(found) == len(data) for found in measured.found.values())
    summary = comparison_summary(measured, CocoEvaluator(data.as_coco(), by_size=False), data.category_ids, None)
    table = summary["table"]
    assert list(table) == list(rows)
    assert OWN in table
    assert table["bound: greedy NMS, ascent on the true IoU"]["AP"] >= table["greedy NMS"]["AP"]
    assert all(of_row["Loc50"] >= -1e-9 and of_row["ms"] >= 0 for of_row in table.values())
    assert set(summary["calibration"]) > {"all candidates"}
    assert set(summary["laece"]) == {row for row in rows if row.startswith(OWN)}
    assert all(0 <= value <= 1 for value in summary["laece"].values())


def test_basins_of_a_perfect_energy(detector, data):
    """An energy that knows the objects brings boxes closer at every step. Predicted IoUs come from the IoU head."""

    class Perfect(nn.Module):
        def __init__(self, targets):
            super().__init__()
            self.targets = targets

        def assign_levels(self, features, boxes, sizes):
            return None

        def forward(self, features, boxes, labels, sizes, levels=None):
            moved = torch.cat(list(boxes))
            return -(moved - self.targets).square().sum(1) / 50

    (batch,) = eval_loader(data, batch_size=len(data), num_workers=0)
    generator = torch.Generator().manual_seed(0)

    def jitter(boxes, size):
        return jitter_boxes(boxes, 4, min_iou=0.5, image_size=size, generator=generator)[0]

    resized = [target["boxes"].repeat_interleave(4, 0) for target in batch[1]]
    scale = detector.transform.min_size[-1] / 64
    detector.energy_head = Perfect(torch.cat(resized) * scale)
    basins = measure_basins(detector, [batch], jitter, device=CPU)
    for start in ("0.5", "0.7"):
        of_start = basins[start]
        assert of_start["0"]["true"] < of_start["2"]["true"] < of_start["20"]["true"]
        assert 0 <= of_start["20"]["predicted"] <= 1
    assert elementwise_iou(resized[0], resized[0]).min() == 1
    total = sum(basins[start]["0"]["boxes"] for start in ("0.5", "0.6", "0.7", "0.8", "0.9"))
    assert total >= sum(map(len, resized)) - 2  # rounding may move an IoU below 0.5 or to 1, outside all ranges
