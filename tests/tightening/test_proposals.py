"""Proposed boxes for labels, and labels without a proposal."""

import pytest
import torch
from PIL import Image

from iounet.tightening.proposals import (
    CROWD,
    MORE_THAN_A_BOX,
    NOT_FINITE,
    NOT_SELECTED,
    UNKNOWN_CLASS,
    UNREADABLE,
    Proposal,
    propose,
    reason_to_stay,
)

LABEL = (10.0, 10.0, 30.0, 20.0)


class TestProposal:
    def test_a_shift_by_half_the_width(self):
        proposal = Proposal.of(LABEL, [20.0, 10.0, 40.0, 20.0], 0.5, 0.75)
        assert proposal.move == pytest.approx(2 / 3) and proposal.gain == 0.25  # IoU 100 / 300

    def test_a_box_is_rounded_to_hundredths_of_a_pixel(self):
        proposal = Proposal.of(LABEL, [10.004, 10.006, 30.0, 19.994], 0.5, 0.6)
        assert proposal.box == (10.0, 10.01, 30.0, 19.99)

    def test_an_unmoved_box_is_not_rounded(self):
        label = (1 / 3, 2 / 3, 30.0, 20.0)
        assert Proposal.of(label, list(label), 0.5, 0.5) == Proposal(label, 0.5, 0.5, 0.0)

    def test_a_box_that_rounds_to_no_area_is_not_moved(self):
        assert Proposal.of(LABEL, [10.001, 10.0, 10.004, 20.0], 0.5, 0.9) == Proposal(LABEL, 0.5, 0.5, 0.0)


class TestReasonToStay:
    def test_by_label(self, labels):
        reasons = [reason_to_stay(label, ()) for label in labels.boxes]
        assert reasons == ["", "", "", "", CROWD, MORE_THAN_A_BOX]

    def test_by_class(self, labels):
        reasons = [reason_to_stay(label, ("star", "moon")) for label in labels.boxes]
        assert reasons == [NOT_SELECTED, NOT_SELECTED, "", "", CROWD, MORE_THAN_A_BOX]


class TestPropose:
    def test_boxes_and_ious_come_from_the_refiner(self, refiner, labels):
        judged = propose(refiner, labels, [0, 1, 2])
        for image, rows, classes in ((0, [0, 2], [1, 2]), (2, [1], [2])):
            boxes = torch.tensor([labels.boxes[row].box for row in rows], dtype=torch.float64)
            with Image.open(labels.images[image].path) as photo:
                refined = refiner.refine(photo, boxes, classes)
                before = refiner.score(photo, boxes, classes)
            for number, row in enumerate(rows):
                assert judged[row].box == pytest.approx(refined.boxes[number].tolist(), abs=0.0051)
                assert judged[row].iou_before == pytest.approx(float(before[number]), abs=1e-5)
                assert judged[row].iou_after == pytest.approx(float(refined.ious[number]), abs=1e-5)
        assert any(judged[row].move > 0.01 for row in judged)  # otherwise the test compares nothing

    def test_only_the_given_rows_are_judged(self, refiner, labels):
        assert set(propose(refiner, labels, [2, 3])) == {2, 3}

    def test_a_class_unknown_to_the_refiner(self, refiner, labels):
        judged = propose(refiner, labels, [0, 3])
        assert judged[3] == UNKNOWN_CLASS and isinstance(judged[0], Proposal)

    def test_class_agnostic(self, refiner, labels):
        judged = propose(refiner, labels, [0, 3], class_agnostic=True)
        with Image.open(labels.images[1].path) as photo:
            refined = refiner.refine(photo, [labels.boxes[3].box], [0])
        assert judged[3].box == pytest.approx(refined.boxes[0].tolist(), abs=0.0051)

    def test_batches_do_not_change_the_boxes(self, refiner, labels):
        one, three = (propose(refiner, labels, [0, 1, 2], batch_size=size) for size in (1, 3))
        for row, proposal in one.items():
            assert proposal.box == pytest.approx(three[row].box, abs=0.02)

    def test_a_damaged_image_is_skipped(self, refiner, with_damaged_image, labels, capsys):
        judged = propose(refiner, with_damaged_image, [0, 1, 2], batch_size=3)
        assert judged[0] == judged[2] == UNREADABLE
        assert judged[1] == propose(refiner, labels, [1])[1]
        assert "damaged.png" in capsys.readouterr().out

    def test_nan_ious_give_no_proposal(self, refiner, labels):
        with torch.no_grad():
            refiner.detector.iou_head.predictor.bias.fill_(float("nan"))
        assert propose(refiner, labels, [0, 1]) == {0: NOT_FINITE, 1: NOT_FINITE}

    def test_no_rows(self, refiner, labels):
        assert propose(refiner, labels, []) == {}
