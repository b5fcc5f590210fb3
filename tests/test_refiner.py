from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from iounet import IoURefiner
from iounet.config import ConfigError
from iounet.postprocess import Stop
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

    def test_a_cpu_computes_in_float32_whatever_training_did(self, checkpoint, tiny_cfg, tmp_path):
        content = torch.load(checkpoint, weights_only=True)
        del content["format"]
        save_checkpoint(tmp_path / "amp.pth", **content | {"config": tiny_cfg({"MODEL.AMP": "True"}).dump()})
        assert not IoURefiner.from_checkpoint(tmp_path / "amp.pth", device="cpu").detector.amp

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

    def test_a_device_that_is_not_there(self, checkpoint):
        with pytest.raises(ConfigError, match="unknown device 'abacus'"):
            IoURefiner.from_checkpoint(checkpoint, device="abacus")

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


class TestWhatIsTaken:
    """However image and boxes are given, the answer is the same."""

    @pytest.mark.parametrize("kind", ["uint8 tensor", "uint8 array", "float array", "double array", "PIL", "BGR"])
    def test_images(self, refiner, image, kind):
        eight_bits = (image * 255).round().to(torch.uint8)
        array = eight_bits.permute(1, 2, 0).numpy()
        given = {
            "uint8 tensor": eight_bits,
            "uint8 array": array,
            "float array": (array / 255).astype(np.float32),
            "double array": array / 255,
            "PIL": Image.fromarray(array),
            "BGR": np.ascontiguousarray(array[..., ::-1])[..., ::-1],  # as OpenCV reads it, turned: negative strides
        }[kind]
        expected = refiner.refine(eight_bits / 255, BOXES, LABELS, SCORES)
        refined = refiner.refine(given, BOXES, LABELS, SCORES)
        torch.testing.assert_close(refined.boxes, expected.boxes, rtol=0, atol=1e-3)

    def test_boxes(self, refiner, image):
        expected = refiner.refine(image, BOXES, LABELS, SCORES)
        for kind, dtype in (
            (np.asarray, torch.float32),
            (Tensor.tolist, torch.float32),
            (Tensor.half, torch.float32),
            (lambda values: values.double().numpy(), torch.float64),
        ):
            labels = LABELS.tolist() if kind is Tensor.tolist else LABELS.numpy().astype(np.uint16)
            refined = refiner.refine(image, kind(BOXES), labels, kind(SCORES))
            assert refined.boxes.dtype == refined.scores.dtype == dtype
            torch.testing.assert_close(refined.boxes.float(), expected.boxes, rtol=0, atol=1e-3)
            assert refined.labels.tolist() == LABELS.tolist() and refined.scores.tolist() == SCORES.tolist()
        refined = refiner.refine(image, BOXES.long(), LABELS, SCORES)
        assert refined.boxes.dtype == torch.float32 and not torch.equal(refined.boxes, BOXES)

    @pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), torch.zeros(0)], ids=["list", "array", "tensor"])
    def test_no_boxes_of_any_kind(self, refiner, image, nothing):
        refined = refiner.refine(image, nothing, [], [], nms="iou_guided")
        assert refined.boxes.shape == (0, 4) and len(refined) == 0
        assert refiner.score(image, nothing).shape == (0,)
        assert refiner.refinement_path(image, nothing).shape == (6, 0, 4)

    def test_what_a_detector_outside_no_grad_returns(self, refiner, image):
        outside = torch.tensor([[90.0, 60.0, 99.0, 70.0]])
        for boxes in (BOXES, outside):
            boxes = (boxes.clone().requires_grad_() * 1).clone()
            refined = refiner.refine(image, boxes, [1] * len(boxes), boxes[:, 0] / 100)
            assert not refined.boxes.requires_grad and not refined.scores.requires_grad
            refined.boxes.numpy()

    def test_in_inference_mode(self, refiner, image):
        expected = refiner.refine(image, BOXES, LABELS, SCORES)
        with torch.inference_mode():
            boxes, photo = BOXES * 1, image * 1
            torch.testing.assert_close(refiner.refine(photo, boxes, LABELS, SCORES).boxes, expected.boxes)
            refiner.detect(photo)
            refiner.refinement_path(photo, boxes, LABELS)

    def test_the_answer_is_a_copy(self, refiner, image):
        boxes, scores = torch.tensor([[90.0, 60.0, 99.0, 70.0]]), torch.ones(1)
        refined = refiner.refine(image, boxes, [1], scores)
        refined.boxes.zero_(), refined.scores.zero_()
        assert boxes[0, 0] == 90 and scores[0] == 1

    def test_without_labels_and_scores(self, refiner, image):
        refined = refiner.refine(image, BOXES)
        assert refined.labels.tolist() == [0] * 4 and refined.scores.tolist() == [1.0] * 4

    def test_an_unknown_class_has_the_highest_of_the_classes(self, refiner, image):
        of_classes = [refiner.score(image, BOXES, torch.full((4,), label)) for label in (1, 2, 3)]
        torch.testing.assert_close(refiner.score(image, BOXES), torch.stack(of_classes).amax(0))
        mixed = refiner.score(image, BOXES, [1, 0, 3, 0])
        torch.testing.assert_close(mixed[[0, 2]], torch.stack([of_classes[0][0], of_classes[2][2]]))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.zeros(50, 80, 3), r"tensor must be an RGB image of shape \[3, H, W\], got \[50, 80, 3\]"),
            (np.zeros((3, 50, 80)), r"array must be an RGB image of shape \[H, W, 3\], got \[3, 50, 80\]"),
            (np.zeros((50, 80), np.uint8), r"array must be an RGB image.*got \[50, 80\]"),
            (np.full((50, 80, 3), 255.0), r"lie in \[0, 1\], got 255 to 255: divide by 255"),
            (torch.full((3, 50, 80), -2.1), r"lie in \[0, 1\], got -2\.1.*leave normalising to the refiner"),
            (np.full((50, 80, 3), np.nan), r"lie in \[0, 1\], got nan"),
            (np.zeros((50, 80, 3), np.int64), r"uint8, or floating point in \[0, 1\]; got torch\.int64"),
            (Image.fromarray(np.zeros((50, 80), np.uint16)), r"more than 8 bits \(PIL mode I;16\)"),
        ],
    )
    def test_images_it_does_not_take(self, refiner, given, message):
        with pytest.raises(ValueError, match=message):
            refiner.refine(given, BOXES, LABELS, SCORES)

    def test_other_faults(self, refiner, image):
        with pytest.raises(TypeError, match="not str"):
            refiner.refine("photo.jpg", BOXES)
        with pytest.raises(TypeError, match="labels must be integers, got torch.float32"):
            refiner.refine(image, BOXES, LABELS.float())
        with pytest.raises(ValueError, match="unknown nms 'fast'"):
            refiner.refine(image, BOXES, nms="fast")


class TestWhatItTells:
    def test_the_ious_before_and_after_are_those_of_the_boxes(self, refiner, image):
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        torch.testing.assert_close(refined.ious_before, refiner.score(image, BOXES, LABELS))
        torch.testing.assert_close(refined.ious, refiner.score(image, refined.boxes, LABELS), rtol=0, atol=1e-4)
        assert refined.index.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("settings", "stop"),
        [
            ({"early_stop": 0.0, "degeneration": -1.0, "step_size": 1e-3}, Stop.STEPS),
            ({"early_stop": 1.0}, Stop.CONVERGED),
            ({"early_stop": 0.0, "degeneration": 1.0}, Stop.FELL),
        ],
    )
    def test_what_stopped_a_box(self, refiner, image, settings, stop):
        refiner.detector.postprocessing = replace(refiner.detector.postprocessing, **settings)
        assert refiner.refine(image, BOXES, LABELS, SCORES).stops.tolist() == [stop] * 4

    def test_boxes_that_collapse_leave_or_are_nowhere(self, refiner, image):
        refiner.detector.postprocessing = replace(
            refiner.detector.postprocessing, step_size=1e6, early_stop=0.0, degeneration=-1.0
        )
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(100, 2, generator=generator) * torch.tensor([50.0, 25.0])
        boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(100, 2, generator=generator)], 1)
        boxes[0] = torch.tensor([90.0, 10.0, 99.0, 20.0])
        refined = refiner.refine(image, boxes, torch.ones(100, dtype=torch.int64))
        assert refined.stops[0] == Stop.UNPLACED
        assert {Stop.COLLAPSED, Stop.LEFT_IMAGE} <= set(refined.stops.tolist())
        unmoved = (refined.boxes == boxes).all(1)
        assert unmoved[refined.stops == Stop.LEFT_IMAGE].all()
        sizes = refined.boxes[:, 2:] - refined.boxes[:, :2]
        assert (sizes > 0).all() and (refined.boxes[1:] >= 0).all() and (refined.boxes[1:, 2] <= 80).all()

    def test_without_a_step_boxes_keep_every_bit(self, refiner, image):
        refiner.detector.postprocessing = replace(refiner.detector.postprocessing, step_size=0.0)
        odd = BOXES + torch.pi / 10
        assert torch.equal(refiner.refine(image, odd, LABELS, SCORES).boxes, odd)

    def test_the_path_leads_to_the_refined_boxes(self, refiner, image):
        boxes = torch.cat([BOXES, torch.tensor([[90.0, 10.0, 99.0, 20.0]])])
        path = refiner.refinement_path(image, boxes, [2, 1, 3, 2, 1])
        assert path.shape == (6, 5, 4)
        torch.testing.assert_close(path[0], boxes)
        refined = refiner.refine(image, boxes, [2, 1, 3, 2, 1])
        torch.testing.assert_close(path[-1], refined.boxes)
        assert torch.equal(path[:, 4], boxes[4].expand(6, 4))


class TestNMS:
    # Two heaps of three boxes; of the second, one is of another class.
    HEAPS = torch.tensor([[8.0, 9.0, 40.0, 44.0], [9.0, 9.0, 41.0, 44.0], [8.0, 10.0, 40.0, 45.0],
                          [44.0, 8.0, 76.0, 46.0], [45.0, 8.0, 77.0, 46.0], [44.0, 9.0, 76.0, 47.0]])  # fmt: skip
    CLASSES = torch.tensor([1, 1, 1, 1, 1, 3])
    SCORES = torch.tensor([0.3, 0.9, 0.6, 0.2, 0.1, 0.5])

    def test_iou_guided_keeps_the_best_placed_of_each_heap(self, refiner, image):
        ious = refiner.score(image, self.HEAPS, self.CLASSES)
        best = [int(ious[:3].argmax()), 3 + int(ious[3:5].argmax()), 5]
        refined = refiner.refine(image, self.HEAPS, self.CLASSES, self.SCORES, nms="iou_guided")
        assert refined.index.tolist() == [best[0], 5, best[1]]  # by falling score
        torch.testing.assert_close(refined.scores, torch.tensor([0.9, 0.5, 0.2]))  # the best of each cluster
        alone = refiner.refine(image, self.HEAPS[refined.index], self.CLASSES[refined.index])
        torch.testing.assert_close(refined.boxes, alone.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(refined.ious_before, ious[refined.index])

    def test_greedy_keeps_the_best_scored(self, refiner, image):
        refined = refiner.refine(image, self.HEAPS, self.CLASSES, self.SCORES, nms="greedy")
        assert refined.index.tolist() == [1, 5, 3]

    def test_soft_keeps_all_and_lowers_scores(self, refiner, image):
        refined = refiner.refine(image, self.HEAPS, self.CLASSES, self.SCORES, nms="soft")
        assert sorted(refined.index.tolist()) == [0, 1, 2, 3, 4, 5]
        assert (refined.scores <= self.SCORES[refined.index]).all() and refined.scores.min() < 0.1

    def test_all_that_is_left_is_returned(self, refiner, image):
        """Not the best hundred alone, as of a detector's own."""
        corners = torch.cartesian_prod(torch.arange(15.0), torch.arange(8.0)) * 5
        boxes = torch.cat([corners, corners + 5], 1)
        assert len(refiner.refine(image, boxes, [1] * 120, nms="greedy")) == 120

    @pytest.mark.parametrize("nms", ["greedy", "soft", "iou_guided"])
    def test_scores_and_boxes_of_other_types(self, refiner, image, nms):
        expected = refiner.refine(image, self.HEAPS, self.CLASSES, self.SCORES, nms=nms)
        for boxes, scores in (
            (self.HEAPS.numpy(), self.SCORES.double().numpy()),
            (self.HEAPS.double(), self.SCORES.tolist()),
            (self.HEAPS, self.SCORES.half()),
        ):
            refined = refiner.refine(image, boxes, self.CLASSES, scores, nms=nms)
            assert refined.index.tolist() == expected.index.tolist()

    def test_boxes_outside_are_left_out(self, refiner, image):
        boxes = torch.cat([torch.tensor([[90.0, 10.0, 99.0, 20.0]]), self.HEAPS])
        classes = torch.cat([torch.tensor([1]), self.CLASSES])
        scores = torch.cat([torch.tensor([1.0]), self.SCORES])
        assert refiner.refine(image, boxes, classes, scores, nms="greedy").index.tolist() == [2, 6, 4]
        assert len(refiner.refine(image, boxes[:1], classes[:1], scores[:1], nms="greedy")) == 0


class TestBatch:
    def test_several_images_at_once(self, refiner, image):
        images = [image, image.flip(2), image.flip(1)]
        boxes = [BOXES, BOXES[:0], BOXES[1:]]
        labels, scores = [LABELS, LABELS[:0], LABELS[1:]], [SCORES, SCORES[:0], SCORES[1:]]
        together = refiner.refine_batch(images, boxes, labels, scores)
        assert [len(of_image) for of_image in together] == [4, 0, 3]
        for of_image, *given in zip(together, images, boxes, labels, scores, strict=True):
            alone = refiner.refine(*given)
            torch.testing.assert_close(of_image.boxes, alone.boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(of_image.ious_before, alone.ious_before)
            assert torch.equal(of_image.scores, alone.scores) and torch.equal(of_image.index, alone.index)
        scored = refiner.score_batch(images, boxes, labels)
        torch.testing.assert_close(scored[2], together[2].ious_before)

    def test_of_different_sizes(self, refiner, image):
        images = [image, image[:, :40, :44]]
        together = refiner.refine_batch(images, [BOXES, BOXES[:1]], [LABELS, LABELS[:1]])
        for of_image, *given in zip(together, images, [BOXES, BOXES[:1]], [LABELS, LABELS[:1]], strict=True):
            alone = refiner.refine(*given)
            torch.testing.assert_close(of_image.boxes, alone.boxes, rtol=0, atol=1e-3)
        for found, given in zip(refiner.detect_batch(images), images, strict=True):
            for one, alone in zip(found, refiner.detect(given), strict=True):
                torch.testing.assert_close(one.boxes, alone.boxes, rtol=0, atol=1e-3)

    def test_lists_of_another_length(self, refiner, image):
        with pytest.raises(ValueError, match="2 images, but labels of 1"):
            refiner.refine_batch([image, image], [BOXES, BOXES], [LABELS])

    def test_no_images(self, refiner):
        assert refiner.refine_batch([], []) == refiner.detect_batch([]) == []


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
        (BOXES[:2], torch.tensor([1, 4]), r"labels must lie in 1\.\.3.*\['cross', 'star', 'triangle'\].*got 1\.\.4"),
        (BOXES[:2], torch.tensor([-1, 1]), r"labels must lie in 1\.\.3.*got -1\.\.1"),
        (BOXES[:2], LABELS[:3], r"Detections\.labels must have shape \[2\]"),
        (BOXES[0], LABELS[:1], r"Detections\.boxes must have shape \[N, 4\]"),
        (BOXES[:, :3], LABELS, r"Detections\.boxes must have shape \[N, 4\]"),
    ],
)
def test_errors(refiner, image, method, boxes, labels, message):
    arguments = (boxes, labels) if method == "score" else (boxes, labels, torch.ones(len(labels)))
    with pytest.raises(ValueError, match=message):
        getattr(refiner, method)(image, *arguments)


class TestAnyBoxes:
    """Count, order and classes stay; what has an area in its image is finite and inside of it, and keeps an area."""

    def boxes(self, width, height, number=100):
        generator = torch.Generator().manual_seed(0)

        def uniform(*shape):
            return torch.rand(*shape, generator=generator)

        size = torch.tensor([width, height, width, height], dtype=torch.float32)
        corner = uniform(number, 2) * size[:2]
        inside = torch.cat([corner, corner + uniform(number, 2) * (size[:2] - corner)], 1)
        reach = 10 ** (38 * uniform(number, 4))
        kinds = {
            "inside": inside,
            "thinner than float32 can tell": torch.cat([corner, corner + 10 ** (-8 * uniform(number, 2))], 1),
            "larger than the image": torch.cat([-reach[:, :2], reach[:, 2:]], 1),
            "at its end": torch.cat([size[:2] - 10 ** (-7 * uniform(number, 2)), size[:2].expand(number, 2)], 1),
            "reversed": inside[:, [2, 3, 0, 1]],
            "overhanging or off it": inside + size * 2 * (2 * uniform(number, 1) - 1),
            "anywhere": reach * (uniform(number, 4) - 0.5).sign(),
        }
        return torch.cat(list(kinds.values()))

    @pytest.mark.parametrize("step_size", [0.0, 0.5, 50.0, 1e6])
    @pytest.mark.parametrize("accept", ["every", "best", "rising"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_they_stay_boxes(self, refiner, image, step_size, accept, dtype):
        detector = refiner.detector
        detector.postprocessing = replace(detector.postprocessing, step_size=step_size, accept=accept)
        image_size = height, width = image.shape[1:]
        given = self.boxes(width, height).to(dtype)
        labels, scores = torch.arange(len(given)) % 4, torch.linspace(0, 1, len(given), dtype=dtype)
        refined = refiner.refine(image, given, labels, scores)
        assert torch.equal(refined.labels, labels) and torch.equal(refined.scores, scores)
        assert torch.equal(refined.index, torch.arange(len(given)))
        assert torch.isfinite(refined.boxes).all() and torch.isfinite(refined.ious).all()
        clipped = clip_boxes_to_image(given, image_size)
        placed = (clipped[:, 2:] > clipped[:, :2]).all(1)
        assert torch.equal(refined.stops != Stop.UNPLACED, placed)
        assert torch.equal(refined.boxes[~placed], given[~placed])
        boxes = refined.boxes[placed]
        assert torch.equal(clip_boxes_to_image(boxes, image_size), boxes)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        if step_size == 0:
            assert torch.equal(boxes, clipped[placed])

    def test_boxes_as_thin_as_rounding_keep_an_area(self, refiner):
        """From 213 x 160 pixels to the network's 85 x 64 and back."""
        generator = torch.Generator().manual_seed(1)
        image = torch.rand(3, 213, 160, generator=generator)
        corner = torch.rand(4000, 2, generator=generator) * torch.tensor([150.0, 200.0])
        given = torch.cat([corner, corner + 10 ** (-6.5 * torch.rand(4000, 2, generator=generator))], 1)
        refiner.detector.postprocessing = replace(refiner.detector.postprocessing, step_size=5.0)
        refined = refiner.refine(image, given)
        boxes = refined.boxes[refined.stops != Stop.UNPLACED]
        assert len(boxes) > 1000
        assert (boxes[:, 2:] > boxes[:, :2]).all()
