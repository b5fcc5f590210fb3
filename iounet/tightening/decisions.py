"""Which proposals become labels: by thresholds, or as a person decided on the review page."""

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
    """Which proposals are accepted.

    Attributes:
        min_gain: by how much the predicted IoU has to rise. The greater, the fewer good labels change, and the fewer
            bad ones are mended. Of the cards' test split, with 0.02, labels that tools/label_noise.py had moved by up
            to 10 % came back as close as with 0, and the others were changed by a third less.
        max_move: 1 - IoU of the label's box and the proposed one. With 0.5 both would pass for the same object by the
            criterion of Pascal VOC; a box farther off has more likely slid to a neighbour than found the edges.
        min_iou: predicted IoU of the proposed box. Below 0.5, by the same criterion, the IoU-Net itself says that the
            box is not on an object. Of objects unlike those that it was trained on, it says so of nearly all boxes,
            and moves them at random.

    Raises:
        OptionError: a threshold outside [0, 1].
    """

    min_gain: float = 0.02
    max_move: float = 0.5
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        check_range("min_gain", self.min_gain, 0, 1)
        check_range("max_move", self.max_move, 0, 1)
        check_range("min_iou", self.min_iou, 0, 1)

    def decide(self, judgement: Judgement) -> "Decision":
        """The decision on a proposal; one for a label without a proposal is to keep it."""
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
    """What becomes of a label, and why.

    Attributes:
        accepted: it gets the proposed box.
        reason: in a few words, to count by.
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
    """A decision on each label.

    Args:
        judgements: one a label.
        reviewed: key of a label → whether its proposal was accepted by a person, which counts more than the thresholds.
            Labels that are not among them, such as those that the page had no room for, are decided by the thresholds.
    """
    decisions = []
    for label, judgement in zip(labels.boxes, judgements, strict=True):
        if isinstance(judgement, Proposal) and label.key in reviewed:
            decisions.append(Decision(reviewed[label.key], REVIEWED))
        else:
            decisions.append(thresholds.decide(judgement))
    return decisions


def labels_fingerprint(labels: LabelSet) -> str:
    """Tells the labels of one data set from those of another: a hash of their keys, classes and boxes."""
    return _fingerprint([[label.key, label.class_name, label.box] for label in labels.boxes])


def proposals_fingerprint(labels: LabelSet, judgements: Sequence[Judgement]) -> str:
    """Tells one set of proposals from another: a hash of the labels' keys and the boxes proposed for them."""
    return _fingerprint(
        [
            [label.key, judgement.box]
            for label, judgement in zip(labels.boxes, judgements, strict=True)
            if isinstance(judgement, Proposal)
        ]
    )


def _fingerprint(content: list[Any]) -> str:
    return sha256(json.dumps(content).encode()).hexdigest()[:16]  # 64 bits: no two data sets of a person collide


@dataclass(frozen=True)
class ReviewedLabels:
    """What a person decided on the review page.

    Attributes:
        path: of the file.
        labels, proposals: fingerprints of what was reviewed.
        accepted: key of a label → whether its proposal is accepted.
    """

    path: Path
    labels: str
    proposals: str
    accepted: dict[str, bool]

    @classmethod
    def read(cls, path: Path, labels: LabelSet) -> "ReviewedLabels":
        """Reads the file that the button "Save decisions" wrote.

        Raises:
            DataError: it cannot be read, is no such file, or belongs to the labels of another data set.
        """
        content = read_json(path, "decisions file")
        if not isinstance(content, dict) or content.get("format") != DECISIONS_FORMAT:
            raise DataError(f'{path}: holds no decisions; give the file that "Save decisions" on review.html wrote')
        decisions = content.get("decisions")
        if not isinstance(decisions, dict) or not set(map(repr, decisions.values())) <= {repr(ACCEPT), repr(KEEP)}:
            raise DataError(f'{path}: a decision is neither "{ACCEPT}" nor "{KEEP}"; save the file anew')
        if content.get("labels") != labels_fingerprint(labels):
            raise DataError(
                f"{path}: its decisions are on other labels than those of {labels.source}; give the data set that "
                "review.html was made from, unchanged, with the same --split"
            )
        accepted = {key: decision == ACCEPT for key, decision in decisions.items()}
        return cls(path, str(content["labels"]), str(content.get("proposals")), accepted)

    def check_proposals(self, fingerprint: str) -> None:
        """Raises DataError unless these are decisions on the proposals with this fingerprint."""
        if self.proposals != fingerprint:
            raise DataError(
                f"{self.path}: its decisions are on other proposed boxes than these; give the --output folder, "
                "--weights and options that review.html was made with, or review again without --decisions"
            )
