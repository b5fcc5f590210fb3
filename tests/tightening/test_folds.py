"""Heads that judge the labels of images they were not trained on."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from iounet.data import build_transforms, read_image
from iounet.data.label_files import read_labels
from iounet.errors import DataError
from iounet.evaluation import fit_calibration
from iounet.tightening import Proposal, folds
from iounet.tightening.folds import TOO_FEW_EXAMPLES, fold_of_images, propose_in_folds


@pytest.fixture(scope="module")
def set_of_six(dataset):
    """The six training images of the synthetic set, with class names that the checkpoint does not know."""
    labels = read_labels(dataset / "annotations" / "train.json", images=dataset / "train")
    boxes = [replace(label, class_name="round" if label.class_name == "ellipse" else "other") for label in labels.boxes]
    return replace(labels, boxes=boxes, class_names=["round", "other"])


@pytest.fixture
def in_folds(checkpoint, one_thread, monkeypatch):
    """A function that runs `propose_in_folds` briefly on the CPU and accepts classes with few examples."""
    monkeypatch.setattr(folds, "_MIN_EXAMPLES", 2)

    def run(labels, rows=None, num_folds=3, weights=checkpoint):
        rows = range(len(labels.boxes)) if rows is None else rows
        return propose_in_folds(str(weights), labels, rows, folds=num_folds, iterations=2, batch_size=2, device="cpu")

    return run


class TestFoldOfImages:
    @pytest.mark.parametrize(("num_images", "num_folds"), [(12, 4), (11, 4), (5, 5), (3, 5)])
    def test_folds_are_of_equal_size(self, num_images, num_folds):
        sizes = Counter(fold_of_images(num_images, num_folds))
        assert sum(sizes.values()) == num_images and set(sizes) <= set(range(num_folds))
        assert max(sizes.values()) - min(sizes[fold] for fold in range(num_folds)) <= 1

    def test_folds_are_random_but_the_same_every_time(self):
        found = fold_of_images(100, 2)
        assert found == fold_of_images(100, 2)
        assert found != [image % 2 for image in range(100)] and found != sorted(found)


def test_every_label_is_judged_by_heads_not_trained_on_it(in_folds, set_of_six, monkeypatch):
    trained_on, judged_by = [], {}

    def train(weights, labels, images, iterations, device, name):
        trained_on.append(set(images))
        return torch.nn.Linear(1, 1)

    def propose(refiner, labels, rows, **options):
        for row in rows:
            assert row not in judged_by
            judged_by[row] = len(trained_on) - 1
        return dict.fromkeys(rows, "judged")

    monkeypatch.setattr(folds, "train_heads", train)
    monkeypatch.setattr(folds, "propose", propose)
    monkeypatch.setattr(folds, "_MIN_EXAMPLES", 0)
    judged = in_folds(set_of_six)
    assert set(judged_by) == set(judged) == set(range(len(set_of_six.boxes)))
    assert len(trained_on) == 3 and [len(images) for images in trained_on] == [4, 4, 4]
    for row, fold in judged_by.items():
        assert set_of_six.boxes[row].image not in trained_on[fold]


def test_an_image_listed_twice_is_in_one_fold(in_folds, set_of_six, monkeypatch):
    twice = replace(
        set_of_six,
        images=set_of_six.images * 2,
        boxes=[*set_of_six.boxes, *(replace(label, image=label.image + 6) for label in set_of_six.boxes)],
    )
    learned = []
    monkeypatch.setattr(
        folds,
        "train_heads",
        lambda weights, labels, images, *more: learned.append({i % 6 for i in images}) or torch.nn.Linear(1, 1),
    )

    def propose(refiner, labels, rows, **options):
        assert not learned[-1] & {labels.boxes[row].image % 6 for row in rows}
        return dict.fromkeys(rows, "judged")

    monkeypatch.setattr(folds, "propose", propose)
    assert len(in_folds(twice)) == len(twice.boxes) and len(learned) == 3


def test_heads_learn_the_classes_of_the_data_set(in_folds, set_of_six, checkpoint):
    judged = in_folds(set_of_six)
    assert set(judged) == set(range(len(set_of_six.boxes)))
    proposals = [proposal for proposal in judged.values() if isinstance(proposal, Proposal)]
    assert len(proposals) > len(judged) / 2
    assert all(0 <= proposal.iou_before <= 1 for proposal in proposals)
    assert in_folds(set_of_six) == judged  # reproducible, so that saved decisions still apply


def test_only_the_given_rows_are_judged(in_folds, set_of_six):
    assert set(in_folds(set_of_six, rows=[0, 1])) == {0, 1}


def test_a_class_with_few_other_examples_is_not_judged(in_folds, set_of_six, monkeypatch):
    monkeypatch.setattr(folds, "train_heads", lambda *arguments: torch.nn.Linear(1, 1))
    monkeypatch.setattr(folds, "propose", lambda refiner, labels, rows, **options: dict.fromkeys(rows, "judged"))
    first, *others = set_of_six.boxes
    rare = replace(
        set_of_six, boxes=[replace(first, class_name="rare"), *others], class_names=[*set_of_six.class_names, "rare"]
    )
    judged = in_folds(rare)
    assert judged[0] == TOO_FEW_EXAMPLES and "judged" in judged.values()


def test_labels_of_a_single_image_are_refused(in_folds, set_of_six):
    image = set_of_six.boxes[0].image
    alone = replace(set_of_six, boxes=[label for label in set_of_six.boxes if label.image == image])
    with pytest.raises(DataError, match="too few images have labels for 3 folds"):
        in_folds(alone)


def test_training_changes_only_the_heads(checkpoint, set_of_six, one_thread, monkeypatch):
    monkeypatch.setattr("iounet.evaluation.calibration.MIN_BOXES", 10)
    weights = torch.load(checkpoint, weights_only=True)["model"]
    detector = folds.train_heads(str(checkpoint), set_of_six, [0, 1, 2, 3], 2, torch.device("cpu"), "fold")
    untrained = folds.build_heads(str(checkpoint), 2, num_iterations=2, device=torch.device("cpu")).detector
    for name, value in detector.state_dict().items():
        if name.startswith(("backbone.", "rpn.")):
            assert torch.equal(value, weights[name]), name
        elif name.startswith("iou_head.") and "predictor" in name:
            assert not torch.equal(value, untrained.state_dict()[name]), name
    slope, _ = detector.iou_head.calibration.tolist()
    assert slope > 0  # set by calibration


def test_calibration_images_are_not_trained_on(checkpoint, set_of_six, one_thread, monkeypatch):
    monkeypatch.setattr(folds, "_HELD_OUT", 3)
    used = []
    dataset_of = folds._dataset_of
    monkeypatch.setattr(
        folds, "_dataset_of", lambda labels, images, how: used.append(list(images)) or dataset_of(labels, images, how)
    )
    for images, learned, held_out in (
        ([0, 1, 2, 3, 4, 5], [1, 2, 4, 5], [0, 3]),
        ([0, 2, 4], [0, 2, 4], [0, 2, 4]),  # too few to hold some out
    ):
        used.clear()
        folds.train_heads(str(checkpoint), set_of_six, images, 1, torch.device("cpu"), "fold")
        assert used == [learned, held_out]


def test_calibrated_ious_are_right_on_average(checkpoint, set_of_six, one_thread, monkeypatch):
    """At the minimum of the cross-entropy, the mean prediction equals the mean target."""
    monkeypatch.setattr("iounet.evaluation.calibration.MIN_BOXES", 10)
    fitted_to = []

    def fit(outputs, ious):
        fitted_to.append((outputs, ious))
        return fit_calibration(outputs, ious)

    monkeypatch.setattr("iounet.engine.calibrating.fit_calibration", fit)
    detector = folds.train_heads(str(checkpoint), set_of_six, range(6), 1, torch.device("cpu"), "fold")
    ((outputs, ious),) = fitted_to
    start = ious[: len(ious) // 2]  # the other half are the same boxes after refinement
    assert len(start) >= 60 and start.min() >= 0.599 and start.mean() == pytest.approx(0.8, abs=0.05)  # uniform
    predicted = detector.iou_head.calibrated(detector.iou_head.decoded(outputs))
    assert float(predicted.mean()) == pytest.approx(float(ious.mean()), abs=1e-3)


class TestDatasetOf:
    def test_boxes_and_labels_of_each_image(self, labels):
        dataset = folds._dataset_of(labels, [2, 0], build_transforms(False))
        assert dataset.class_names == labels.class_names and len(dataset) == 2
        image, target = dataset[1]
        assert torch.allclose(image, read_image(labels.images[0].path) / 255)
        assert target["boxes"].tolist() == [[8.0, 9.0, 40.0, 44.0], [20.0, 20.0, 60.0, 30.0]]
        assert target["labels"].tolist() == [1, 2]

    def test_crowds_are_left_out_and_labels_with_outlines_are_not(self, labels):
        dataset = folds._dataset_of(labels, [1, 2], build_transforms(False))
        assert [dataset.ground_truth(index)["labels"].tolist() for index in (0, 1)] == [[4], [3, 1]]
