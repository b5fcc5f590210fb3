"""All accepted forms of images and boxes give the same result; invalid inputs raise errors with clear messages."""

import numpy as np
import pytest
import torch
from four_boxes import BOXES, LABELS, OFF_THE_IMAGE, SCORES
from PIL import Image
from torch import Tensor

from iounet.checks import BoxWarning
from iounet.errors import OptionError
from iounet.postprocess import Stop, refine_boxes

pytestmark = pytest.mark.usefixtures("one_thread")


class TestAccepted:
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
            "BGR": np.ascontiguousarray(array[..., ::-1])[..., ::-1],  # negative strides
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

    def test_boxes_that_require_gradients(self, refiner, image):
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

    def test_results_are_copies(self, refiner, image):
        boxes, scores = OFF_THE_IMAGE.clone(), torch.ones(1)
        refined = refiner.refine(image, boxes, [1], scores)
        refined.boxes.zero_(), refined.scores.zero_()
        assert boxes[0, 0] == 90 and scores[0] == 1

    def test_without_labels_and_scores(self, refiner, image):
        refined = refiner.refine(image, BOXES)
        assert refined.labels.tolist() == [0] * 4 and refined.scores.tolist() == [1.0] * 4

    @pytest.mark.parametrize(
        "labels",
        [["star", "cross", "triangle", 2], ("Star", 1, "TRIANGLE ", "star"), np.array(["star", 1, 3, 2], object)],
    )
    def test_labels_by_name(self, refiner, image, labels):
        refined = refiner.refine(image, BOXES, labels, SCORES)
        assert refined.labels.tolist() == LABELS.tolist() == [2, 1, 3, 2]
        assert torch.equal(refined.boxes, refiner.refine(image, BOXES, LABELS, SCORES).boxes)
        assert refiner.score(image, BOXES[:2], np.array(["cross", "star"])).shape == (2,)

    def test_an_unknown_class_has_the_highest_iou_of_all_classes(self, refiner, image):
        of_classes = [refiner.score(image, BOXES, torch.full((4,), label)) for label in (1, 2, 3)]
        torch.testing.assert_close(refiner.score(image, BOXES), torch.stack(of_classes).amax(0))
        mixed = refiner.score(image, BOXES, [1, 0, 3, 0])
        torch.testing.assert_close(mixed[[0, 2]], torch.stack([of_classes[0][0], of_classes[2][2]]))


class TestFaults:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.zeros(50, 80, 3), r"tensor must be an RGB image of shape \[3, H, W\], got \[50, 80, 3\]"),
            (np.zeros((3, 50, 80)), r"array must be RGB of shape \[H, W, 3\], got \[3, 50, 80\]"),
            (np.zeros((50, 80), np.uint8), r"array must be RGB.*got \[50, 80\]"),
            (np.full((50, 80, 3), 255.0), r"lie in \[0, 1\], got 255 to 255; divide by 255"),
            (torch.full((3, 50, 80), -2.1), r"lie in \[0, 1\], got -2\.1.*do not normalise the image"),
            (np.full((50, 80, 3), np.nan), r"lie in \[0, 1\], got nan"),
            (np.zeros((50, 80, 3), np.int64), r"uint8, or floating point in \[0, 1\]; got int64"),
            (Image.fromarray(np.zeros((50, 80), np.uint16)), r"more than 8 bits per channel \(PIL mode I;16\)"),
        ],
    )
    def test_invalid_images(self, refiner, given, message):
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
    def test_invalid_boxes_and_labels(self, refiner, image, method, boxes, labels, message):
        arguments = (boxes, labels) if method == "score" else (boxes, labels, torch.ones(len(labels)))
        with pytest.raises(ValueError, match=message):
            getattr(refiner, method)(image, *arguments)

    def test_other_types(self, refiner, image):
        with pytest.raises(TypeError, match=r"not str; open the file with PIL\.Image\.open"):
            refiner.refine("photo.jpg", BOXES)
        with pytest.raises(TypeError, match="labels must be integers, got float32"):
            refiner.refine(image, BOXES, LABELS.float())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((None,), r"boxes must be .* \[N, 4\], xyxy in pixels \(\[\] for no boxes\); got None$"),
            (([[1, 2, 3, 4], [1, 2]],), r"boxes must be .*; got list \(expected sequence of length 4 at dim 1"),
            ((["1 2 3 4"],), r"boxes must be .*; got list \(too many dimensions 'str'\)"),
            ((BOXES[:1], "star"), r"labels must be .* \[N\], integers or class names; got str"),
            ((BOXES[:1], [None]), r"labels must be .*; got list \(Could not infer dtype of NoneType\)"),
            ((BOXES[:1], [1], ["high"]), r"scores must be .* \[N\]; got list"),
        ],
    )
    def test_non_numeric_inputs(self, refiner, image, arguments, message):
        with pytest.raises(TypeError, match=message):
            refiner.refine(image, *arguments)

    def test_an_unknown_class_name(self, refiner, image):
        with pytest.raises(
            ValueError, match=r"unknown class names in labels: 'zebra', 'lion'; the classes are \['cross', 'star', "
        ):
            refiner.refine(image, BOXES, ["zebra", "star", "lion", "zebra"])

    def test_an_unknown_choice_names_the_argument(self, refiner, image):
        """Callers in Python do not know the configuration's key."""
        with pytest.raises(OptionError, match="^nms must be one of greedy, soft, iou_guided; got 'fast'") as error:
            refiner.refine(image, BOXES, nms="fast")
        assert "TEST." not in str(error.value)
        with pytest.raises(OptionError, match="^coordinates must be one of .*; got 'px'") as error:
            refine_boxes(lambda boxes: boxes.sum(1), BOXES, coordinates="px")
        assert "TEST." not in str(error.value)


class TestOtherForms:
    """Boxes that are not xyxy in pixels are detected by their numbers."""

    def test_width_and_height_instead_of_corners(self, refiner, image):
        xywh = torch.cat([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], 1)  # some of them look like xyxy
        with pytest.warns(BoxWarning, match=r"x2 < x1 or y2 < y1 .*box_convert\(boxes, \"xywh\", \"xyxy\"\)"):
            refined = refiner.refine(image, xywh)
        reversed_ = (xywh[:, 2:] < xywh[:, :2]).any(1)
        assert reversed_.tolist() == [False, False, False, True]
        assert torch.equal(refined.boxes[3], xywh[3]) and refined.stops[3] == Stop.UNPLACED

    def test_fractions_of_the_image(self, refiner, image):
        with pytest.warns(BoxWarning, match="all boxes lie within the first pixel and look like fractions"):
            refiner.score(image, BOXES / torch.tensor([80, 50, 80, 50]))

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("boxes", [BOXES, OFF_THE_IMAGE, [], [[0, 0, 0, 0]], [[0, 0, 1, 1], [3, 3, 9, 9]]])
    def test_boxes_in_pixels(self, refiner, image, boxes):
        refiner.refine(image, boxes)

    @pytest.mark.filterwarnings("error")
    def test_an_image_of_one_pixel(self, refiner):
        refiner.refine(torch.zeros(3, 1, 1), [[0, 0, 1, 1]])


class TestAnImageThatIsTooThin:
    THIN = torch.zeros(3, 1, 5000)

    def test_its_boxes_are_unchanged(self, refiner, image):
        given = [[3.0, 0.0, 900.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
        thin, other = refiner.refine_batch([self.THIN, image], [given, BOXES], [[1, 2], LABELS])
        assert thin.boxes.tolist() == given
        assert thin.ious.tolist() == [0, 0] and thin.stops.tolist() == [Stop.UNPLACED] * 2
        assert torch.equal(other.boxes, refiner.refine(image, BOXES, LABELS).boxes)
        assert refiner.score(self.THIN, given).tolist() == [0, 0]
        assert torch.equal(refiner.refinement_path(self.THIN, given)[-1], torch.tensor(given))
        assert len(refiner.refine(self.THIN, given, nms="greedy")) == 0

    def test_nothing_is_detected_in_it(self, refiner):
        (before, after), _ = refiner.detect_batch([self.THIN, self.THIN])
        assert len(before) == len(after) == 0

    @pytest.mark.parametrize("shape", [(3, 0, 7), (3, 7, 0), (3, 0, 0)])
    def test_an_image_without_pixels(self, refiner, shape):
        assert refiner.refine(torch.zeros(shape), [[0.0, 0.0, 5.0, 5.0]]).boxes.tolist() == [[0, 0, 5, 5]]
        assert len(refiner.detect(torch.zeros(shape))[0]) == 0

    def test_the_limit(self, refiner):
        """The tiny detector resizes to at most 96 pixels: 1 × 96 is kept; 1 × 97 would get a side of 0 pixels."""
        for width, usable in ((96, True), (97, False), (2 * 96, False)):
            assert refiner.detector.can_resize((1, width)) == refiner.detector.can_resize((width, 1)) == usable
            (size,) = refiner.detector.extract([torch.zeros(3, 1, width)]).sizes
            assert size == (1, 96)


def test_repr_lists_the_classes(refiner):
    assert repr(refiner) == "IoURefiner(classes: cross, star, triangle; device: cpu)"
    refiner.categories = [{"id": number, "name": f"c{number}"} for number in range(12)]
    assert repr(refiner) == "IoURefiner(classes: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, ... 2 more; device: cpu)"
