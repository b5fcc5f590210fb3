"""NMS in NumPy keeps the same boxes as NMS in PyTorch, which tests/postprocess/test_nms.py checks."""

import numpy as np
import pytest
import torch

from iounet.detections import Detections, RefinedDetections
from iounet.nms_options import KINDS, NMSOptions
from iounet.numpy_nms import suppress
from iounet.postprocess import nms

OPTIONS = [NMSOptions(kind=kind, threshold=threshold, ranking=ranking, soft_sigma=sigma, max_detections=number)
           for kind in KINDS for ranking in ("iou", "score_times_iou")
           for threshold, sigma, number in ((0.5, 0.5, 1000), (0.25, 0.1, 1000), (0.75, 2.0, 12))]  # fmt: skip


def crowd(seed, number, dtype, *, ties):
    """Clusters of boxes of three classes. With ties: coordinates on a grid of 4 pixels, four scores, four IoUs."""
    random = np.random.default_rng(seed)
    places = 100 * random.random((max(number // 8, 1), 2))
    centres = places[random.integers(len(places), size=number)] + 8 * random.random((number, 2))
    sizes = 15 + 20 * random.random((number, 2))
    boxes, scores, ious = np.hstack([centres - sizes / 2, centres + sizes / 2]), *random.random((2, number))
    if ties:
        boxes, scores, ious = np.round(boxes / 4) * 4, np.ceil(scores * 4) / 4, np.ceil(ious * 4) / 4
    return boxes.astype(dtype), random.integers(1, 4, number), scores.astype(dtype), ious.astype(dtype)


def in_torch(boxes, labels, scores, ious, options):
    candidates = Detections(*map(torch.from_numpy, (boxes, labels, scores, ious)))
    kept = nms.suppress(RefinedDetections.unmoved(candidates), options)
    return kept.index.numpy(), kept.scores.numpy()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["all differ", "ties"])
def test_same_as_torch(options, ties):
    num_suppressed = 0
    for seed in range(8):
        for number in (1, 2, 60):
            for dtype in (np.float32, np.float64):
                case = crowd(seed, number, dtype, ties=ties)
                keep, scores = suppress(*case, options)
                expected, expected_scores = in_torch(*case, options)
                assert keep.tolist() == expected.tolist() and keep.dtype == np.int64
                np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
                assert scores.dtype == dtype
                num_suppressed += number - len(keep)
    assert options.kind == "soft" or num_suppressed > 100


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_boxes(options):
    keep, scores = suppress(*crowd(0, 0, np.float32, ties=False), options)
    assert keep.shape == scores.shape == (0,)
    assert (keep.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_not_modified(kind):
    case = crowd(0, 40, np.float32, ties=False)
    copies = [values.copy() for values in case]
    suppress(*case, NMSOptions(kind=kind))
    assert all((values == copy).all() for values, copy in zip(case, copies, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_stay(kind):
    """The IoU of two boxes without area is 0/0."""
    boxes = np.array([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 20.0, 20.0]])
    case = boxes, np.ones(3, int), np.array([0.25, 0.5, 0.75]), np.ones(3)
    for suppressed in (suppress, in_torch):
        keep, scores = suppressed(*case, NMSOptions(kind=kind))
        assert (keep.tolist(), scores.tolist()) == ([2, 1, 0], [0.75, 0.5, 0.25])


def test_an_overlap_that_rounds_to_the_threshold():
    """torchvision compares in float64, where the float32 value of 3/10 exceeds 0.3."""
    boxes = np.array([[0, 0, 10, 1], [0, 0, 3, 1]], np.float32)
    scores, labels, options = np.array([0.75, 0.5], np.float32), np.ones(2, int), NMSOptions("greedy", threshold=0.3)
    keep, _ = suppress(boxes, labels, scores, scores, options)
    assert keep.tolist() == in_torch(boxes, labels, scores, scores, options)[0].tolist() == [0]
