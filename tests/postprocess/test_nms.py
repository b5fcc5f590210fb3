"""Each NMS against the pseudo-code of its authors, transcribed as slow loops over Python lists."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from iounet.postprocess import greedy_nms, iou_guided_nms, nms, soft_nms


@pytest.fixture(autouse=True, params=["class by class", "one group"])
def grouping(request, monkeypatch):
    """Run all tests twice on the CPU: with the grouping used on CPUs, and with the grouping used on GPUs."""
    if request.param == "one group":
        of_classes = nms._groups
        monkeypatch.setattr(
            nms, "_groups", lambda *given: nms._one_group(*given) if len(given[0]) else of_classes(*given)
        )


CASES = [(seed, 40, 3) for seed in range(60)] + [(60, 150, 1), (61, 150, 20), (62, 2, 1), (63, 3, 3)]


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def algorithm_1(B, S, I, omega_nms):  # noqa: E741
    """The paper's Algorithm 1 for boxes of one class: [(position of the box, score)] in the order of selection."""
    left, D = list(range(len(B))), []
    while left:
        m = max(left, key=lambda j: I[j])
        left.remove(m)
        s = S[m]
        for j in list(left):
            if iou(B[m], B[j]) > omega_nms:
                s = max(s, S[j])
                left.remove(j)
        D.append((m, s))
    return D


def greedy(B, S, threshold):
    left, D = list(range(len(B))), []
    while left:
        m = max(left, key=lambda j: S[j])
        left.remove(m)
        D.append((m, S[m]))
        left = [j for j in left if iou(B[m], B[j]) <= threshold]
    return D


def soft(B, S, sigma, score_threshold):
    """Figure 2 of Bodla et al. with their Gaussian penalty, for boxes of one class."""
    left, S, D = list(range(len(B))), list(S), []
    while left:
        m = max(left, key=lambda j: S[j])
        left.remove(m)
        if S[m] > score_threshold:
            D.append((m, S[m]))
        for j in left:
            S[j] *= math.exp(-(iou(B[m], B[j]) ** 2) / sigma)
    return D


def per_class(literal, boxes, labels, *columns):
    """Run a literal algorithm on each class: (positions, scores) of all classes by descending score."""
    found = []
    for label in set(labels.tolist()):
        positions = [i for i, other in enumerate(labels.tolist()) if other == label]
        kept = literal(boxes[positions].tolist(), *(column[positions].tolist() for column in columns))
        found += [(positions[m], score) for m, score in kept]
    found.sort(key=lambda entry: -entry[1])
    return [m for m, _ in found], [score for _, score in found]


def random_case(seed, num_boxes, num_classes, dtype=torch.float64):
    """Boxes that crowd around a few places, with distinct scores and IoUs."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    places = 100 * uniform(max(num_boxes // 8, 1), 2)
    centres = places[torch.randint(len(places), (num_boxes,), generator=generator)] + 8 * uniform(num_boxes, 2)
    sizes = 15 + 20 * uniform(num_boxes, 2)
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    scores, ious = uniform(num_boxes), uniform(num_boxes)
    assert len(scores.unique()) == len(ious.unique()) == num_boxes
    return boxes, scores, ious, torch.randint(1, num_classes + 1, (num_boxes,), generator=generator)


@pytest.mark.parametrize(("seed", "num_boxes", "num_classes"), CASES)
def test_iou_guided_nms_is_algorithm_1(seed, num_boxes, num_classes):
    boxes, scores, ious, labels = random_case(seed, num_boxes, num_classes)
    threshold = (0.3, 0.5, 0.7)[seed % 3]
    keep, kept_scores = iou_guided_nms(boxes, scores, ious, labels, threshold)
    expected = per_class(lambda B, S, ious_: algorithm_1(B, S, ious_, threshold), boxes, labels, scores, ious)
    # A box belongs to one cluster, so the inherited scores differ and the order is unique.
    assert (keep.tolist(), kept_scores.tolist()) == expected


def test_the_random_cases_suppress_some_boxes():
    suppressed, inherited = [], []
    for case in CASES:
        boxes, scores, ious, labels = random_case(*case)
        keep, kept_scores = iou_guided_nms(boxes, scores, ious, labels, 0.5)
        suppressed.append(len(boxes) - len(keep))
        inherited.append(int((kept_scores > scores[keep]).sum()))
    assert sum(suppressed) > 300 and sum(inherited) > 100


@pytest.mark.parametrize(("seed", "num_boxes", "num_classes"), CASES)
def test_greedy_nms_agrees_with_the_loop(seed, num_boxes, num_classes):
    boxes, scores, _, labels = random_case(seed, num_boxes, num_classes)
    threshold = (0.3, 0.5, 0.7)[seed % 3]
    keep, kept_scores = greedy_nms(boxes, scores, labels, threshold)
    expected = per_class(lambda B, S: greedy(B, S, threshold), boxes, labels, scores)
    assert (keep.tolist(), kept_scores.tolist()) == expected
    assert keep.tolist() == batched_nms(boxes, scores, labels, threshold).tolist()


@pytest.mark.parametrize(("seed", "num_boxes", "num_classes"), CASES)
@pytest.mark.parametrize(("sigma", "score_threshold"), [(0.5, 0.001), (0.2, 0.3)])
def test_soft_nms_agrees_with_the_loop_of_its_authors(seed, num_boxes, num_classes, sigma, score_threshold):
    boxes, scores, _, labels = random_case(seed, num_boxes, num_classes)
    keep, kept_scores = soft_nms(boxes, scores, labels, sigma=sigma, score_threshold=score_threshold)
    expected = per_class(lambda B, S: soft(B, S, sigma, score_threshold), boxes, labels, scores)
    assert keep.tolist() == expected[0]
    assert kept_scores.tolist() == pytest.approx(expected[1], rel=1e-12)


def test_soft_nms_stops_after_max_detections():
    boxes, scores, _, labels = random_case(7, 60, 3)
    keep, kept_scores = soft_nms(boxes, scores, labels)
    for number in (0, 1, 10, 1000):
        best, best_scores = soft_nms(boxes, scores, labels, max_detections=number)
        assert best.tolist() == keep[:number].tolist()
        assert best_scores.tolist() == kept_scores[:number].tolist()


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0]])
    keep, scores = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 1]))
    assert keep.tolist() == [0, 2, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-0.5)])  # IoU 1/2: exp(-0.25 / 0.5)


METHODS = {
    "greedy": lambda boxes, scores, ious, labels: greedy_nms(boxes, scores, labels, 0.5),
    "iou_guided": lambda boxes, scores, ious, labels: iou_guided_nms(boxes, scores, ious, labels, 0.5),
    "soft": lambda boxes, scores, ious, labels: soft_nms(boxes, scores, labels),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestAll:
    def test_scores_are_in_descending_order(self, method):
        for seed in range(5):
            _, scores = method(*random_case(seed, 100, 4, torch.float32))
            assert (scores.diff() <= 0).all()

    def test_no_box_is_kept_twice(self, method):
        keep, scores = method(*random_case(1, 100, 4))
        assert keep.dtype == torch.int64
        assert len(keep.unique()) == len(keep) == len(scores)

    def test_inputs_are_not_modified(self, method):
        inputs = random_case(2, 50, 3)
        copies = [values.clone() for values in inputs]
        method(*inputs)
        assert all(torch.equal(values, copy) for values, copy in zip(inputs, copies, strict=True))

    def test_boxes_without_area_overlap_nothing(self, method):
        boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [7, 0, 7, 9], [0, 0, 9, 9]])
        scores = torch.tensor([0.6, 0.9, 0.8, 0.7])
        keep, kept_scores = method(boxes, scores, scores, torch.ones(4, dtype=torch.int64))
        assert keep.tolist() == [1, 2, 3, 0]
        assert kept_scores.tolist() == scores[keep].tolist()

    def test_no_boxes(self, method):
        keep, scores = method(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        assert keep.shape == scores.shape == (0,)
        assert (keep.dtype, scores.dtype) == (torch.int64, torch.float32)

    def test_one_box(self, method):
        keep, scores = method(
            torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([0.25]), torch.tensor([0.5]), torch.tensor([7])
        )
        assert (keep.tolist(), scores.tolist()) == ([0], [0.25])

    def test_classes_do_not_affect_each_other(self, method):
        boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0]]).expand(3, 4)
        keep, scores = method(
            boxes, torch.tensor([0.5, 0.75, 0.25]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 9, 4])
        )
        assert (keep.tolist(), scores.tolist()) == ([1, 0, 2], [0.75, 0.5, 0.25])


def test_the_best_placed_duplicate_gets_the_best_score():
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0]]).expand(4, 4)
    scores, ious = torch.tensor([0.25, 0.5, 0.9, 0.75]), torch.tensor([0.6, 0.9, 0.5, 0.8])
    labels = torch.ones(4, dtype=torch.int64)
    keep, kept_scores = iou_guided_nms(boxes, scores, ious, labels, 0.5)
    assert (keep.tolist(), kept_scores.tolist()) == ([1], [scores[2].item()])
    keep, kept_scores = greedy_nms(boxes, scores, labels, 0.5)
    assert (keep.tolist(), kept_scores.tolist()) == ([2], [scores[2].item()])


def test_a_suppressed_box_passes_its_score_only_to_the_first_box_that_suppresses_it():
    # The middle box overlaps both neighbours, which do not overlap each other; the first neighbour suppresses it.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0], [4.0, 0.0, 14.0, 10.0]])
    scores, ious = torch.tensor([0.1, 0.9, 0.2]), torch.tensor([0.8, 0.5, 0.7])
    keep, kept_scores = iou_guided_nms(boxes, scores, ious, torch.ones(3, dtype=torch.int64), 0.5)
    assert keep.tolist() == [0, 2]
    assert kept_scores.tolist() == pytest.approx([0.9, 0.2])


def test_a_box_that_overlaps_only_a_suppressed_box_is_kept():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0], [6.0, 0.0, 16.0, 10.0]])
    ious = torch.tensor([0.8, 0.7, 0.6])
    keep, _ = iou_guided_nms(boxes, ious, ious, torch.ones(3, dtype=torch.int64), 0.5)
    assert keep.tolist() == [0, 2]


def test_an_iou_equal_to_the_threshold_is_no_overlap():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0]])  # IoU exactly 1/2
    ious, labels = torch.tensor([0.9, 0.8]), torch.ones(2, dtype=torch.int64)
    assert len(iou_guided_nms(boxes, ious, ious, labels, 0.5)[0]) == 2
    assert len(greedy_nms(boxes, ious, labels, 0.5)[0]) == 2


def test_no_score_is_lost_if_an_iou_rounds_to_the_threshold():
    # 3/10 in float32 exceeds 0.3 in float64. Rounding decides whether the second box is suppressed; if it is, its
    # cluster keeps its score.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    scores, ious = torch.tensor([0.5, 0.75]), torch.tensor([0.9, 0.5])
    _, kept_scores = iou_guided_nms(boxes, scores, ious, torch.ones(2, dtype=torch.int64), 0.3)
    assert kept_scores.max() == 0.75
    assert torch.isfinite(kept_scores).all()


def test_float32_close_to_float64():
    # Shifting classes apart in float32 would round boxes at large coordinates.
    for seed in range(10):
        boxes, scores, ious, labels = random_case(seed, 80, 30)
        keep, _ = iou_guided_nms((boxes + 2000).float(), scores.float(), ious.float(), labels, 0.5)
        assert keep.tolist() == iou_guided_nms(boxes, scores, ious, labels, 0.5)[0].tolist()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_on_every_device(method, device):
    for seed in range(5):
        inputs = random_case(seed, 60, 3)
        keep, scores = method(*(values.to(device) for values in inputs))
        expected, expected_scores = method(*inputs)
        assert keep.device.type == scores.device.type == device.type
        assert keep.tolist() == expected.tolist()
        torch.testing.assert_close(scores.cpu(), expected_scores)


def test_boxes_without_area_keep_their_scores():
    # The IoU of such a box with any box, including itself, is 0/0.
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 20.0, 20.0]])
    scores, ious = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.9, 0.8, 0.7])
    keep, kept_scores = iou_guided_nms(boxes, scores, ious, torch.ones(3, dtype=torch.int64), 0.5)
    assert (keep.tolist(), kept_scores.tolist()) == ([2, 1, 0], [0.75, 0.5, 0.25])
