"""Decide which proposed boxes become labels, by thresholds or by the decisions made on the review page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..data.labels import LabelSet
from ..errors import DataError, check_range
from ..files import read_json
from .proposals import Judgement, Proposal

DECISIONS_FORMAT = "iounet-tighten-decisions-1"

ACCEPT, KEEP = "accept", "keep"
REVIEWED = "reviewed"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that a proposal must meet to be accepted.

    Attributes:
        min_gain: Minimum rise of the predicted IoU. A larger value changes fewer good labels and corrects fewer bad
            ones. If labels of the cards' test split are moved by up to 10 % (tools/label_noise.py), 0.02 restores the
            moved labels as well as 0 does, and changes the other labels by a third less.
        max_move: Maximum 1 - IoU of the label's box and the proposed box. Up to 0.5, Pascal VOC's criterion counts both
            boxes as the same object. A box that moved farther has more likely slid to a neighbouring object.
        min_iou: Minimum predicted IoU of the proposed box. Below 0.5, by the same criterion, the IoU-Net predicts that
            the box is not on an object. For objects unlike its training data, the IoU-Net predicts this for nearly all
            boxes, and moves the boxes at random.

    Raises:
        OptionError: A threshold is outside [0, 1].
    """

    min_gain: float = 0.02
    max_move: float = 0.5
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        check_range("min_gain", self.min_gain, 0, 1)
        check_range("max_move", self.max_move, 0, 1)
        check_range("min_iou", self.min_iou, 0, 1)

    def decide(self, judgement: Judgement) -> "Decision":
        """Return the decision on a proposal. A label without a proposal is kept."""
        if isinstance(judgement, str):
            return Decision(False, judgement)
        if judgement.move == 0:
            return Decision(False, "no better box found")
        if judgement.iou_after < self.min_iou:
            return Decision(False, f"predicted IoU below {self.min_iou:g}")
        if judgement.gain < self.min_gain:
            return Decision(False, f"gain below {self.min_gain:g}")
        if judgement.move > self.max_move:
            return Decision(False, f"move above {self.max_move:g}")
        return Decision(True, f"gain of {self.min_gain:g} or more")


@dataclass(frozen=True)
class Decision:
    """The decision on a label, and its reason.

    Attributes:
        accepted: Whether the label gets the proposed box.
        reason: A short text, the same for every label decided on the same grounds, so that labels can be counted by it.
    """

    accepted: bool
    reason: str

    @property
    def name(self) -> str:
        """ "accept" or "keep"."""
        return ACCEPT if self.accepted else KEEP


def decide(
    labels: LabelSet, judgements: Sequence[Judgement], thresholds: Thresholds, reviewed: Mapping[str, bool]
) -> list[Decision]:
    """Return a decision for each label.

    Args:
        labels: The label set.
        judgements: One per label.
        thresholds: Decide on the labels that were not reviewed, such as those that the page had no room for.
        reviewed: Key of a label → whether its proposal was accepted on the review page. Overrides the thresholds.
    """
    decisions = []
    for label, judgement in zip(labels.boxes, judgements, strict=True):
        if isinstance(judgement, Proposal) and label.key in reviewed:
            decisions.append(Decision(reviewed[label.key], REVIEWED))
        else:
            decisions.append(thresholds.decide(judgement))
    return decisions


def labels_fingerprint(labels: LabelSet) -> str:
    """Return a hash of the labels' keys, classes and boxes, which identifies the labels of a data set."""
    return _fingerprint([[label.key, label.class_name, label.box] for label in labels.boxes])


def proposals_fingerprint(labels: LabelSet, judgements: Sequence[Judgement]) -> str:
    """Return a hash of the labels' keys and the boxes proposed for them, which identifies a set of proposals."""
    return _fingerprint(
        [
            [label.key, judgement.box]
            for label, judgement in zip(labels.boxes, judgements, strict=True)
            if isinstance(judgement, Proposal)
        ]
    )


def _fingerprint(content: list[Any]) -> str:
    return sha256(json.dumps(content).encode()).hexdigest()[:16]  # 64 bits make collisions negligible


@dataclass(frozen=True)
class ReviewedLabels:
    """Decisions made on the review page.

    Attributes:
        path: The file that holds them.
        labels: Fingerprint of the reviewed labels.
        proposals: Fingerprint of the reviewed proposals.
        accepted: Key of a label → whether its proposal is accepted.
    """

    path: Path
    labels: str
    proposals: str
    accepted: dict[str, bool]

    @classmethod
    def read(cls, path: Path, labels: LabelSet) -> "ReviewedLabels":
        """Read the file that the button "Save decisions" wrote.

        Raises:
            DataError: The file cannot be read, holds no decisions, or belongs to the labels of another data set.
        """
        content = read_json(path, "decisions file")
        if not isinstance(content, dict) or content.get("format") != DECISIONS_FORMAT:
            raise DataError(f'{path}: contains no decisions; give the file saved by "Save decisions" on review.html')
        decisions = content.get("decisions")
        if not isinstance(decisions, dict) or not set(map(repr, decisions.values())) <= {repr(ACCEPT), repr(KEEP)}:
            raise DataError(
                f'{path}: a decision is neither "{ACCEPT}" nor "{KEEP}"; save the file again from review.html'
            )
        if content.get("labels") != labels_fingerprint(labels):
            raise DataError(
                f"{path}: the decisions do not belong to the labels of {labels.source}; give the data set that "
                "review.html was made from, unchanged, with the same --split"
            )
        accepted = {key: decision == ACCEPT for key, decision in decisions.items()}
        return cls(path, str(content["labels"]), str(content.get("proposals")), accepted)

    def check_proposals(self, fingerprint: str) -> None:
        """Raise DataError unless these decisions belong to the proposals with this fingerprint."""
        if self.proposals != fingerprint:
            raise DataError(
                f"{self.path}: the decisions do not belong to these proposed boxes; give the --output folder, "
                "--weights and options that review.html was made with, or run without --decisions and review again"
            )
