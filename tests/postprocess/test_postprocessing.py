"""The order of NMS, refinement and final scores, with a simple known refinement."""

from dataclasses import replace

import pytest
import torch

from iounet import Detections
from iounet.errors import OptionError
from iounet.postprocess import (
    NMSOptions,
    Postprocessing,
    RefinementOptions,
    greedy_nms,
    iou_guided_nms,
    postprocess,
    soft_nms,
    suppress,
)


def candidates(num_boxes=40, seed=0):
    """Overlapping boxes of three classes."""
    generator = torch.Generator().manual_seed(seed)
    corners = 30 * torch.rand(num_boxes, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20 + 10 * torch.rand(num_boxes, 2, generator=generator)], 1)
    labels = torch.randint(1, 4, (num_boxes,), generator=generator)
    return Detections(boxes, labels, *torch.rand(2, num_boxes, generator=generator))


def to_the_right(detections, options):
    """Move boxes right by one pixel per step; each step adds 0.01 to the predicted IoU."""
    shift = torch.tensor([1.0, 0, 1, 0]) * options.num_steps
    return [
        replace(of_image, boxes=of_image.boxes + shift, ious=of_image.ious + options.num_steps / 100)
        for of_image in detections
    ]


class TestSuppress:
    @pytest.mark.parametrize("ranking", ["iou", "score_times_iou"])
    def test_iou_guided(self, ranking):
        given = candidates()
        rank = given.ious if ranking == "iou" else given.ious * given.scores
        keep, scores = iou_guided_nms(given.boxes, given.scores, rank, given.labels, 0.4)
        kept = suppress(given, NMSOptions(threshold=0.4, ranking=ranking))
        assert torch.equal(kept.boxes, given.boxes[keep]) and torch.equal(kept.scores, scores)
        assert torch.equal(kept.ious, given.ious[keep]) and torch.equal(kept.labels, given.labels[keep])
        assert len(kept) < len(given)

    def test_the_ranking_decides_which_box_of_a_pair_is_kept(self):
        boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20]])  # better IoU, better score
        pair = Detections(boxes, torch.ones(2).long(), torch.tensor([0.3, 0.9]), torch.tensor([0.9, 0.8]))
        by_iou = suppress(pair, NMSOptions())
        by_both = suppress(pair, NMSOptions(ranking="score_times_iou"))
        assert by_iou.boxes.tolist() == boxes[:1].tolist() and by_both.boxes.tolist() == boxes[1:].tolist()
        assert by_iou.scores.tolist() == by_both.scores.tolist() == pytest.approx([0.9])

    def test_greedy(self):
        given = candidates()
        keep, scores = greedy_nms(given.boxes, given.scores, given.labels, 0.3)
        kept = suppress(given, NMSOptions(kind="greedy", threshold=0.3))
        assert torch.equal(kept.boxes, given.boxes[keep]) and torch.equal(kept.scores, scores)

    def test_soft_with_its_sigma(self):
        given = candidates()
        for sigma in (0.5, 0.1):
            keep, scores = soft_nms(given.boxes, given.scores, given.labels, sigma=sigma)
            kept = suppress(given, NMSOptions(kind="soft", soft_sigma=sigma))
            assert torch.equal(kept.boxes, given.boxes[keep]) and torch.equal(kept.scores, scores)

    @pytest.mark.parametrize("kind", ["greedy", "soft", "iou_guided"])
    def test_keeps_the_best_max_detections(self, kind):
        everything = suppress(candidates(), NMSOptions(kind=kind))
        some = suppress(candidates(), NMSOptions(kind=kind, max_detections=4))
        assert len(everything) > 4 and torch.equal(some.boxes, everything.boxes[:4])
        assert (everything.scores.diff() <= 0).all()


class TestPostprocess:
    def test_nms_then_refinement(self):
        options = Postprocessing(refinement=RefinementOptions(num_steps=3))
        (found,) = postprocess([candidates()], options, to_the_right)
        kept = suppress(candidates(), options.nms)
        torch.testing.assert_close(found.boxes, kept.boxes + torch.tensor([3.0, 0, 3, 0]))
        assert torch.equal(found.scores, kept.scores)

    def test_refinement_then_nms(self):
        options = Postprocessing(refinement=RefinementOptions(num_steps=3), refine_before_nms=True)
        seen = []

        def refine(detections, refinement):
            seen.append(len(detections[0]))
            return to_the_right(detections, refinement)

        (found,) = postprocess([candidates()], options, refine)
        assert seen == [40]
        expected = suppress(to_the_right([candidates()], options.refinement)[0], options.nms)
        assert torch.equal(found.boxes, expected.boxes)

    @pytest.mark.parametrize("refine_before_nms", [False, True])
    def test_final_score_times_iou(self, refine_before_nms):
        options = Postprocessing(refine_before_nms=refine_before_nms)
        (plain,) = postprocess([candidates()], options, to_the_right)
        (rescored,) = postprocess([candidates()], replace(options, final_score="class_times_iou"), to_the_right)
        scores = plain.scores * plain.ious.clamp(0, 1)
        assert torch.equal(rescored.scores, scores.sort(descending=True).values)
        order = scores.argsort(descending=True, stable=True)
        assert torch.equal(rescored.boxes, plain.boxes[order]) and not torch.equal(plain.scores, rescored.scores)

    def test_unrefined_is_the_same_without_steps(self):
        options = Postprocessing(refinement=RefinementOptions(step_size=2.0), final_score="class_times_iou")
        assert options.unrefined() == replace(options, refinement=RefinementOptions(step_size=2.0, num_steps=0))

    def test_no_images(self):
        assert postprocess([], Postprocessing(), to_the_right) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NMSOptions(kind="hard"), "kind must be one of greedy, soft, iou_guided; got 'hard'"),
        (lambda: NMSOptions(ranking="score"), "ranking must be one of iou, score_times_iou; got 'score'"),
        (lambda: Postprocessing(final_score="iou"), "final_score must be one of class, class_times_iou; got 'iou'"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(OptionError) as raised:
        make()
    assert str(raised.value) == message
