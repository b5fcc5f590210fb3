"""However image and boxes are given, the answer is the same; what cannot be used is refused in words."""

import numpy as np
import pytest
import torch
from four_boxes import BOXES, LABELS, OFF_THE_IMAGE, SCORES
from PIL import Image
from torch import Tensor

from iounet.errors import OptionError
from iounet.postprocess import refine_boxes

pytestmark = pytest.mark.usefixtures("one_thread")


class TestWhatIsTaken:
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
        for boxes in (BOXES, OFF_THE_IMAGE):
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
        boxes, scores = OFF_THE_IMAGE.clone(), torch.ones(1)
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


class TestFaults:
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

    @pytest.mark.parametrize("method", ["refine", "score"])
    @pytest.mark.parametrize(
        ("boxes", "labels", "message"),
        [
            (BOXES[:1] / 0, LABELS[:1], r"box 0 is not finite: \[inf"),
            (torch.cat([BOXES[:1], BOXES[1:2] * torch.nan]), LABELS[:2], r"box 1 is not finite: \[nan"),
            (
                BOXES[:2],
                torch.tensor([1, 4]),
                r"labels must lie in 1\.\.3.*\['cross', 'star', 'triangle'\].*got 1\.\.4",
            ),
            (BOXES[:2], torch.tensor([-1, 1]), r"labels must lie in 1\.\.3.*got -1\.\.1"),
            (BOXES[:2], LABELS[:3], r"Detections\.labels must have shape \[2\]"),
            (BOXES[0], LABELS[:1], r"Detections\.boxes must have shape \[N, 4\]"),
            (BOXES[:, :3], LABELS, r"Detections\.boxes must have shape \[N, 4\]"),
        ],
    )
    def test_boxes_and_labels_it_does_not_take(self, refiner, image, method, boxes, labels, message):
        arguments = (boxes, labels) if method == "score" else (boxes, labels, torch.ones(len(labels)))
        with pytest.raises(ValueError, match=message):
            getattr(refiner, method)(image, *arguments)

    def test_other_types(self, refiner, image):
        with pytest.raises(TypeError, match="not str"):
            refiner.refine("photo.jpg", BOXES)
        with pytest.raises(TypeError, match="labels must be integers, got torch.float32"):
            refiner.refine(image, BOXES, LABELS.float())

    def test_an_unknown_choice_is_told_by_the_name_of_the_argument(self, refiner, image):
        """Not by the key of a configuration, which a caller in Python has not."""
        with pytest.raises(OptionError, match="^nms must be one of greedy, soft, iou_guided; got 'fast'") as error:
            refiner.refine(image, BOXES, nms="fast")
        assert "TEST." not in str(error.value)
        with pytest.raises(OptionError, match="^coordinates must be one of .*; got 'px'") as error:
            refine_boxes(lambda boxes: boxes.sum(1), BOXES, coordinates="px")
        assert "TEST." not in str(error.value)
