from dataclasses import replace

import pytest
import torch

from iounet import IoURefiner
from iounet.training.checkpoint import CheckpointError, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CATEGORIES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}, {"id": 90, "name": "triangle"}]
BOXES = torch.tensor(
    [[8.0, 9.0, 40.0, 44.0], [30.0, 10.0, 75.0, 48.0], [2.0, 3.0, 12.0, 15.0], [20.0, 20.0, 60.0, 30.0]]
)
LABELS = torch.tensor([2, 1, 3, 2])
SCORES = torch.tensor([0.25, 0.875, 0.5, 0.75])


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 7, 10, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(50, 80), mode="nearest")[0]


@pytest.fixture(scope="module")
def checkpoint(build_tiny, tiny_cfg, tmp_path_factory):
    detector = build_tiny()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
        detector.iou_head.predictor.weight.mul_(20)
    path = tmp_path_factory.mktemp("refiner") / "model_final.pth"
    save_checkpoint(path, model=detector.state_dict(), categories=CATEGORIES, config=tiny_cfg().dump())
    return path


@pytest.fixture
def refiner(checkpoint):
    return IoURefiner.from_checkpoint(checkpoint)


class TestFromCheckpoint:
    def test_it_is_the_detector_that_was_saved(self, refiner, checkpoint, image):
        saved = torch.load(checkpoint, weights_only=True)["model"]
        loaded = refiner.detector.state_dict()
        assert set(loaded) == set(saved)
        assert all(torch.equal(value, saved[key]) for key, value in loaded.items())
        assert refiner.categories == CATEGORIES
        assert refiner.device == torch.device("cpu")
        assert not refiner.detector.training
        assert not any(parameter.requires_grad for parameter in refiner.detector.parameters())

    def test_where_the_backbone_came_from_no_longer_matters(self, checkpoint, tiny_cfg, tmp_path):
        content = torch.load(checkpoint, weights_only=True)
        config = tiny_cfg({"MODEL.BACKBONE.WEIGHTS": "/gone/resnet18.pth", "OUTPUT_DIR": "5"}).dump()
        del content["format"]
        save_checkpoint(tmp_path / "moved.pth", **content | {"config": config})
        IoURefiner.from_checkpoint(tmp_path / "moved.pth")

    def test_errors_name_the_file(self, checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such weights file"):
            IoURefiner.from_checkpoint(tmp_path / "nowhere.pth")
        (tmp_path / "damaged.pth").write_bytes(checkpoint.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=r"damaged\.pth"):
            IoURefiner.from_checkpoint(tmp_path / "damaged.pth")
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"other\.pth is not a checkpoint of this project"):
            IoURefiner.from_checkpoint(tmp_path / "other.pth")

    def test_a_config_with_keys_of_another_version_names_the_file(self, checkpoint, tmp_path):
        content = torch.load(checkpoint, weights_only=True)
        del content["format"]
        save_checkpoint(tmp_path / "newer.pth", **content | {"config": content["config"] + "NEW_KEY: 1\n"})
        with pytest.raises((CheckpointError, ValueError), match=r"newer\.pth.*NEW_KEY"):
            IoURefiner.from_checkpoint(tmp_path / "newer.pth")


class TestRefine:
    def test_same_objects_in_the_same_order(self, refiner, image):
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        assert torch.equal(refined.labels, LABELS)
        assert torch.equal(refined.scores, SCORES)
        moved = (refined.boxes - BOXES).abs().amax(1)
        assert (moved > 0).all() and (moved < 15).all()  # each near its own place
        backwards = refiner.refine(image, BOXES.flip(0), LABELS.flip(0), SCORES.flip(0))
        torch.testing.assert_close(backwards.boxes.flip(0), refined.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(backwards.ious.flip(0), refined.ious, rtol=0, atol=1e-4)

    def test_the_predicted_iou_rises(self, refiner, image):
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        assert refined.ious.mean() > refiner.score(image, BOXES, LABELS).mean()

    def test_each_box_is_refined_by_itself(self, refiner, image):
        together = refiner.refine(image, BOXES, LABELS, SCORES)
        for row in range(len(BOXES)):
            alone = refiner.refine(image, BOXES[[row]], LABELS[[row]], SCORES[[row]])
            torch.testing.assert_close(alone.boxes, together.boxes[[row]], rtol=0, atol=1e-3)

    def test_inputs_are_left_as_they_were(self, refiner, image):
        inputs = [values.clone() for values in (image, BOXES, LABELS, SCORES)]
        refiner.refine(*inputs)
        for values, copy in zip(inputs, (image, BOXES, LABELS, SCORES), strict=True):
            assert torch.equal(values, copy)

    def test_no_boxes(self, refiner, image):
        refined = refiner.refine(image, BOXES[:0], LABELS[:0], SCORES[:0])
        assert len(refined) == 0
        assert refined.boxes.shape == (0, 4)

    def test_boxes_off_the_image_or_without_area_stay(self, refiner, image):
        boxes = torch.tensor(
            [
                [200.0, 10.0, 240.0, 30.0],  # right of the image
                [-50.0, -40.0, -10.0, -5.0],
                [10.0, 10.0, 10.0, 30.0],  # no width
                [30.0, 30.0, 20.0, 20.0],  # reversed
                [80.0, 0.0, 90.0, 50.0],  # touches the border from outside
                [8.0, 9.0, 40.0, 44.0],
            ]
        )
        labels, scores = torch.ones(6, dtype=torch.int64), torch.linspace(0, 1, 6)
        refined = refiner.refine(image, boxes, labels, scores)
        assert torch.equal(refined.boxes[:5], boxes[:5])
        assert refined.ious[:5].tolist() == [0.0] * 5
        assert torch.equal(refined.scores, scores)
        alone = refiner.refine(image, boxes[5:], labels[5:], scores[5:])
        torch.testing.assert_close(refined.boxes[5:], alone.boxes, rtol=0, atol=1e-3)
        assert refined.ious[5] != 0
        only_bad = refiner.refine(image, boxes[:5], labels[:5], scores[:5])
        assert torch.equal(only_bad.boxes, boxes[:5])
        assert only_bad.ious.tolist() == [0.0] * 5

    def test_boxes_that_overhang_are_clipped(self, refiner, image):
        inside = refiner.refine(image, torch.tensor([[40.0, 10.0, 80.0, 50.0]]), LABELS[:1], SCORES[:1])
        overhanging = refiner.refine(image, torch.tensor([[40.0, 10.0, 300.0, 900.0]]), LABELS[:1], SCORES[:1])
        torch.testing.assert_close(overhanging.boxes, inside.boxes)
        assert overhanging.boxes[0, 2] <= 80 and overhanging.boxes[0, 3] <= 50

    def test_a_box_pushed_out_of_its_image_stays_with_its_predicted_iou(self, refiner, image):
        refiner.detector.postprocessing = replace(refiner.detector.postprocessing, step_size=1e6)
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(100, 2, generator=generator) * torch.tensor([50.0, 25.0])
        boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(100, 2, generator=generator)], 1)
        labels = torch.ones(100, dtype=torch.int64)
        refined = refiner.refine(image, boxes, labels, torch.ones(100))
        unmoved = ((refined.boxes - boxes).abs() < 1e-3).all(1)
        assert unmoved.sum() > 10
        torch.testing.assert_close(
            refined.ious[unmoved], refiner.score(image, boxes, labels)[unmoved], rtol=0, atol=1e-4
        )

    def test_a_checkpoint_without_refinement_scores_only(self, refiner, image):
        refiner.detector.postprocessing = replace(refiner.detector.postprocessing, refinement_steps=0)
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        torch.testing.assert_close(refined.boxes, BOXES, rtol=0, atol=1e-4)
        torch.testing.assert_close(refined.ious, refiner.score(image, BOXES, LABELS))

    def test_in_double_precision(self, refiner, image):
        refined = refiner.refine(image, BOXES.double(), LABELS, SCORES.double())
        assert refined.boxes.dtype == refined.scores.dtype == torch.float64
        single = refiner.refine(image, BOXES, LABELS, SCORES)
        torch.testing.assert_close(refined.boxes.float(), single.boxes, rtol=0, atol=1e-2)


@pytest.mark.parametrize("boxes_on", ["cpu", "device"])
def test_on_every_device(checkpoint, image, device, boxes_on):
    place = device if boxes_on == "device" else torch.device("cpu")
    refined = IoURefiner.from_checkpoint(checkpoint, device=device).refine(
        image, BOXES.to(place), LABELS.to(place), SCORES.to(place)
    )
    assert refined.boxes.device.type == refined.ious.device.type == place.type
    expected = IoURefiner.from_checkpoint(checkpoint).refine(image, BOXES, LABELS, SCORES)
    torch.testing.assert_close(refined.boxes.cpu(), expected.boxes, rtol=0, atol=1e-1)


class TestScore:
    def test_it_is_the_iou_before_refinement(self, refiner, image):
        before, _ = refiner.detect(image)
        scored = refiner.score(image, before.boxes, before.labels)
        torch.testing.assert_close(scored, before.ious, rtol=0, atol=1e-3)

    def test_it_depends_on_the_class(self, refiner, image):
        boxes = BOXES[[0, 0, 0]]
        assert len(set(refiner.score(image, boxes, torch.tensor([1, 2, 3])).tolist())) == 3

    def test_boxes_off_the_image_have_none(self, refiner, image):
        assert refiner.score(image, torch.tensor([[90.0, 60.0, 99.0, 70.0]]), LABELS[:1]).tolist() == [0.0]


class TestDetect:
    def test_before_and_after_are_the_same_objects(self, refiner, image):
        before, after = refiner.detect(image)
        assert 5 < len(before) <= 100
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(before.scores, after.scores)
        assert not torch.equal(before.boxes, after.boxes)
        assert after.ious.mean() > before.ious.mean()

    def test_after_is_the_detectors_own_result(self, refiner, image):
        _, after = refiner.detect(image)
        (expected,) = refiner.detector([image])
        torch.testing.assert_close(after.boxes, expected.boxes)
        torch.testing.assert_close(after.ious, expected.ious)


@pytest.mark.parametrize("method", ["refine", "score"])
@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (BOXES[:1] / 0, LABELS[:1], r"box 0 is not finite: \[inf"),
        (torch.cat([BOXES[:1], BOXES[1:2] * torch.nan]), LABELS[:2], r"box 1 is not finite: \[nan"),
        (BOXES[:2], torch.tensor([1, 4]), r"labels must lie in 1\.\.3.*\['cross', 'star', 'triangle'\]; got 1\.\.4"),
        (BOXES[:2], torch.tensor([0, 1]), r"labels must lie in 1\.\.3.*got 0\.\.1"),
        (BOXES[:2], LABELS[:3], r"Detections\.labels must have shape \[2\]"),
        (BOXES[0], LABELS[:1], r"Detections\.boxes must have shape \[N, 4\]"),
        (BOXES.long(), LABELS, r"Detections\.boxes must be floating point"),
    ],
)
def test_errors(refiner, image, method, boxes, labels, message):
    arguments = (boxes, labels) if method == "score" else (boxes, labels, torch.ones(len(labels)))
    with pytest.raises(ValueError, match=message):
        getattr(refiner, method)(image, *arguments)
