"""Decisions on which proposals become labels."""

import json
from dataclasses import replace

import pytest

from iounet.errors import DataError, OptionError
from iounet.tightening import Proposal, Thresholds
from iounet.tightening.decisions import (
    DECISIONS_FORMAT,
    REVIEWED,
    Decision,
    ReviewedLabels,
    decide,
    labels_fingerprint,
    proposals_fingerprint,
)

BOX = (1.0, 2.0, 3.0, 4.0)


def proposal(gain=0.25, move=0.25, before=0.5):
    return Proposal(BOX, before, before + gain, move)


class TestThresholds:
    @pytest.mark.parametrize(
        ("judgement", "accepted", "reason"),
        [
            (proposal(gain=0.125, move=0.5), True, "gain of 0.125 or more"),
            (proposal(gain=0.124, before=0.6), False, "gain below 0.125"),
            (proposal(move=0.501), False, "move above 0.5"),
            (proposal(gain=0.25, before=0.375), True, "gain of 0.125 or more"),
            (proposal(gain=0.25, before=0.374), False, "predicted IoU below 0.625"),
            (proposal(gain=0, move=0), False, "no better box found"),
            ("crowd", False, "crowd"),
        ],
        ids=["at both", "small gain", "large move", "at the predicted IoU", "low IoU", "not moved", "no proposal"],
    )
    def test_decide(self, judgement, accepted, reason):
        assert Thresholds(min_gain=0.125, max_move=0.5, min_iou=0.625).decide(judgement) == Decision(accepted, reason)

    @pytest.mark.parametrize(
        "values", [{"min_gain": -0.1}, {"max_move": 1.5}, {"min_iou": 2}, {"min_gain": float("nan")}]
    )
    def test_out_of_range(self, values):
        (name,) = values
        with pytest.raises(OptionError, match=f"{name} must lie in"):
            Thresholds(**values)


def test_reviewed_decisions_override_the_thresholds(labels):
    judgements = [proposal(), proposal(), proposal(gain=0.0), proposal(gain=0.0), "crowd", "polygon"]
    reviewed = {"second": False, "third": True, "many": True}
    decided = decide(labels, judgements, Thresholds(), reviewed)
    assert [decision.accepted for decision in decided] == [True, False, True, False, False, False]
    assert [decision.reason == REVIEWED for decision in decided] == [False, True, True, False, False, False]


class TestFingerprints:
    @pytest.mark.parametrize("change", [{"key": "other"}, {"class_name": "moon"}, {"box": (8.0, 9.0, 40.0, 44.5)}])
    def test_of_other_labels(self, labels, change):
        first, *others = labels.boxes
        assert labels_fingerprint(replace(labels, boxes=[replace(first, **change), *others])) != labels_fingerprint(
            labels
        )

    def test_the_folder_does_not_matter(self, labels, tmp_path):
        images = [replace(image, path=tmp_path / image.key) for image in labels.images]
        assert labels_fingerprint(replace(labels, source=tmp_path, images=images)) == labels_fingerprint(labels)

    def test_of_other_proposals(self, labels):
        judgements = [proposal()] * 3 + ["stays"] * 3
        before = proposals_fingerprint(labels, judgements)
        assert proposals_fingerprint(labels, [*judgements[:5], "stays for another reason"]) == before
        moved = replace(proposal(), box=(1.0, 2.0, 3.0, 4.01))
        assert proposals_fingerprint(labels, [moved, *judgements[1:]]) != before
        assert proposals_fingerprint(labels, ["stays", *judgements[1:]]) != before


class TestReading:
    @pytest.fixture
    def write(self, labels, tmp_path):
        def write(**changes):
            content = {
                "format": DECISIONS_FORMAT,
                "labels": labels_fingerprint(labels),
                "proposals": "0123",
                "decisions": {"first": "accept", "second": "keep"},
            }
            path = tmp_path / "decisions.json"
            path.write_text(json.dumps(content | changes))
            return path

        return write

    def test_reads_the_decisions(self, labels, write):
        reviewed = ReviewedLabels.read(write(), labels)
        assert reviewed.accepted == {"first": True, "second": False}
        reviewed.check_proposals("0123")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "coco"}, "contains no decisions"),
            ({"labels": "4567"}, "do not belong to the labels of /nowhere/labels"),
            ({"decisions": {"first": "maybe"}}, 'neither "accept" nor "keep"'),
            ({"decisions": {"first": ["accept"]}}, 'neither "accept" nor "keep"'),
            ({"decisions": ["first"]}, 'neither "accept" nor "keep"'),
        ],
    )
    def test_other_files_are_refused(self, labels, write, changes, message):
        with pytest.raises(DataError, match=message):
            ReviewedLabels.read(write(**changes), labels)

    def test_a_list_is_refused(self, labels, tmp_path):
        path = tmp_path / "list.json"
        path.write_text("[]")
        with pytest.raises(DataError, match="list.json: contains no decisions"):
            ReviewedLabels.read(path, labels)

    def test_decisions_on_other_proposals_are_refused(self, labels, write):
        with pytest.raises(DataError, match="do not belong to these proposed boxes"):
            ReviewedLabels.read(write(), labels).check_proposals("4567")
