"""IoURefiner on boxes of one image, of several images, and of its own detector."""

import pytest
import torch
import yaml
from four_boxes import BOXES, CATEGORIES, LABELS, OFF_THE_IMAGE, SCORES, hundred_boxes

from iounet import IoURefiner
from iounet.errors import CheckpointError, ConfigError
from iounet.postprocess import RefinementOptions
from iounet.training.checkpoint import save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def with_config(checkpoint, tmp_path):
    """A function: configuration text, name → path of a checkpoint with this configuration."""

    def with_config(config, name="model.pth"):
        content = torch.load(checkpoint, weights_only=True)
        del content["format"]
        save_checkpoint(tmp_path / name, **content | {"config": config})
        return tmp_path / name

    return with_config


class TestFromCheckpoint:
    def test_loads_the_saved_detector(self, refiner, checkpoint):
        saved = torch.load(checkpoint, weights_only=True)["model"]
        loaded = refiner.detector.state_dict()
        assert set(loaded) == set(saved)
        assert all(torch.equal(value, saved[key]) for key, value in loaded.items())
        assert refiner.categories == CATEGORIES
        assert refiner.device == torch.device("cpu")
        assert not refiner.detector.training
        assert not any(parameter.requires_grad for parameter in refiner.detector.parameters())

    def test_a_cpu_computes_in_float32_after_training_with_amp(self, with_config, tiny_cfg):
        path = with_config(tiny_cfg({"MODEL.AMP": "True"}).dump())
        assert not IoURefiner.from_checkpoint(path, device="cpu").detector.amp

    def test_the_path_of_backbone_weights_is_ignored(self, with_config, tiny_cfg):
        path = with_config(tiny_cfg({"MODEL.BACKBONE.WEIGHTS": "/gone/resnet18.pth", "OUTPUT_DIR": "5"}).dump())
        IoURefiner.from_checkpoint(path)

    def test_a_checkpoint_of_an_earlier_version_refines_as_before(self, with_config, tiny_cfg):
        config = yaml.safe_load(tiny_cfg().dump())
        del config["TEST"]["NMS_RANKING"], config["TEST"]["REFINE_BEFORE_NMS"]
        config["TEST"]["RANKING"] = "score_times_iou"
        config["TEST"]["REFINE"] = {"STEPS": 3, "ACCEPT": "rising", "BEFORE_NMS": True, "CUDA_GRAPHS": False}
        path = with_config(yaml.safe_dump(config))
        options = IoURefiner.from_checkpoint(path).detector.postprocessing
        assert options.refinement == RefinementOptions(num_steps=3, step_policy="backtracking")
        assert options.refine_before_nms and options.nms.ranking == "score_times_iou"

    def test_errors_name_the_file(self, checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such weights file"):
            IoURefiner.from_checkpoint(tmp_path / "nowhere.pth")
        (tmp_path / "damaged.pth").write_bytes(checkpoint.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=r"damaged\.pth"):
            IoURefiner.from_checkpoint(tmp_path / "damaged.pth")
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"other\.pth is not a checkpoint of this project"):
            IoURefiner.from_checkpoint(tmp_path / "other.pth")

    def test_a_missing_device(self, checkpoint):
        with pytest.raises(ConfigError, match="unknown device 'abacus'"):
            IoURefiner.from_checkpoint(checkpoint, device="abacus")

    def test_the_error_of_unknown_keys_names_the_file(self, with_config, tiny_cfg):
        path = with_config(tiny_cfg().dump() + "NEW_KEY: 1\n", "newer.pth")
        with pytest.raises(ConfigError, match=r"newer\.pth.*NEW_KEY"):
            IoURefiner.from_checkpoint(path)


class TestRefine:
    def test_same_objects_in_the_same_order(self, refiner, image):
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        assert torch.equal(refined.labels, LABELS)
        assert torch.equal(refined.scores, SCORES)
        moved = (refined.boxes - BOXES).abs().amax(1)
        assert (moved > 0).all() and (moved < 15).all()  # each stays near its start
        backwards = refiner.refine(image, BOXES.flip(0), LABELS.flip(0), SCORES.flip(0))
        torch.testing.assert_close(backwards.boxes.flip(0), refined.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(backwards.ious.flip(0), refined.ious, rtol=0, atol=1e-4)

    def test_the_predicted_iou_rises(self, refiner, image):
        refined = refiner.refine(image, BOXES, LABELS, SCORES)
        assert refined.ious.mean() > refiner.score(image, BOXES, LABELS).mean()

    def test_each_box_is_refined_independently(self, refiner, image):
        together = refiner.refine(image, BOXES, LABELS, SCORES)
        for row in range(len(BOXES)):
            alone = refiner.refine(image, BOXES[[row]], LABELS[[row]], SCORES[[row]])
            torch.testing.assert_close(alone.boxes, together.boxes[[row]], rtol=0, atol=1e-3)

    def test_inputs_are_not_modified(self, refiner, image):
        inputs = [values.clone() for values in (image, BOXES, LABELS, SCORES)]
        refiner.refine(*inputs)
        for values, copy in zip(inputs, (image, BOXES, LABELS, SCORES), strict=True):
            assert torch.equal(values, copy)

    def test_no_boxes(self, refiner, image):
        refined = refiner.refine(image, BOXES[:0], LABELS[:0], SCORES[:0])
        assert len(refined) == 0
        assert refined.boxes.shape == (0, 4)

    @pytest.mark.filterwarnings("ignore::iounet.checks.BoxWarning")
    def test_boxes_outside_the_image_or_without_area_are_unchanged(self, refiner, image):
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

    def test_boxes_beyond_the_border_are_clipped(self, refiner, image):
        inside = refiner.refine(image, torch.tensor([[40.0, 10.0, 80.0, 50.0]]), LABELS[:1], SCORES[:1])
        overhanging = refiner.refine(image, torch.tensor([[40.0, 10.0, 300.0, 900.0]]), LABELS[:1], SCORES[:1])
        torch.testing.assert_close(overhanging.boxes, inside.boxes)
        assert overhanging.boxes[0, 2] <= 80 and overhanging.boxes[0, 3] <= 50

    def test_a_box_pushed_out_of_its_image_is_reset(self, refiner, set_options, image):
        set_options(step_size=1e6)
        boxes = hundred_boxes()
        labels = torch.ones(100, dtype=torch.int64)
        refined = refiner.refine(image, boxes, labels, torch.ones(100))
        unmoved = ((refined.boxes - boxes).abs() < 1e-3).all(1)
        assert unmoved.sum() > 10
        torch.testing.assert_close(
            refined.ious[unmoved], refiner.score(image, boxes, labels)[unmoved], rtol=0, atol=1e-4
        )

    def test_a_checkpoint_without_refinement_scores_only(self, refiner, set_options, image):
        set_options(num_steps=0)
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
    def test_equals_the_iou_before_refinement(self, refiner, image):
        before, _ = refiner.detect(image)
        scored = refiner.score(image, before.boxes, before.labels)
        torch.testing.assert_close(scored, before.ious, rtol=0, atol=1e-3)

    def test_depends_on_the_class(self, refiner, image):
        boxes = BOXES[[0, 0, 0]]
        assert len(set(refiner.score(image, boxes, torch.tensor([1, 2, 3])).tolist())) == 3

    def test_boxes_outside_the_image_have_an_iou_of_0(self, refiner, image):
        assert refiner.score(image, OFF_THE_IMAGE, LABELS[:1]).tolist() == [0.0]


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

    def test_images_of_different_sizes(self, refiner, image):
        images = [image, image[:, :40, :44]]
        together = refiner.refine_batch(images, [BOXES, BOXES[:1]], [LABELS, LABELS[:1]])
        for of_image, *given in zip(together, images, [BOXES, BOXES[:1]], [LABELS, LABELS[:1]], strict=True):
            alone = refiner.refine(*given)
            torch.testing.assert_close(of_image.boxes, alone.boxes, rtol=0, atol=1e-3)
        for found, given in zip(refiner.detect_batch(images), images, strict=True):
            for one, alone in zip(found, refiner.detect(given), strict=True):
                torch.testing.assert_close(one.boxes, alone.boxes, rtol=0, atol=1e-3)

    def test_lists_of_different_lengths(self, refiner, image):
        with pytest.raises(ValueError, match="2 images, but labels for 1"):
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

    def test_after_agrees_with_the_detector(self, refiner, image):
        _, after = refiner.detect(image)
        (expected,) = refiner.detector([image])
        torch.testing.assert_close(after.boxes, expected.boxes)
        torch.testing.assert_close(after.ious, expected.ious)
