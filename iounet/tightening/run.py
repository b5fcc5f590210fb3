"""A run: labels read, proposals made or taken from an earlier run, decided, and written with a page to review them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from ..categories import match_names
from ..data.coco_labels import CocoLabels
from ..data.labels import LabelSet
from ..errors import DataError, OptionError, check_range
from ..refiner import IoURefiner
from ..wording import listed
from .decisions import Decision, ReviewedLabels, Thresholds, decide, proposals_fingerprint
from .folds import propose_in_folds
from .output import check_output, replacing_content
from .proposals import UNKNOWN_CLASS, Judgement, Proposal, propose, reason_to_stay
from .records import read_judgements, write_records
from .review import write_review


@dataclass(frozen=True)
class TighteningRun:
    """What a run takes, and where it leaves what it makes.

    Attributes:
        labels: the data set; its files are read alone.
        weights: checkpoint of the refiner.
        output: folder of labels/, boxes.json, boxes.csv and review.html.
        thresholds: which proposals are accepted.
        only: names of the classes to tighten; empty: all.
        class_agnostic: refine every box without regard to its class.
        decisions: file of the page's decisions, which count more than the thresholds.
        folds: into which the images are divided, so that no label is judged by heads that learned it; 0: the
            checkpoint's own heads judge.
        iterations: of training the heads of each fold.
        review: labels on the page, those of the greatest gains.
        batch_size: images at once.
        device: as :func:`iounet.devices.build_device` takes it.

    Raises:
        OptionError: an option out of range, or two that exclude each other.
    """

    labels: LabelSet
    weights: str
    output: Path
    thresholds: Thresholds = Thresholds()
    only: Sequence[str] = ()
    class_agnostic: bool = False
    decisions: Path | None = None
    folds: int = 0
    iterations: int = 1000
    review: int = 200
    batch_size: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        check_range("iterations", self.iterations, 1)
        check_range("review", self.review, 0)
        check_range("batch_size", self.batch_size, 1)
        if self.folds < 0 or self.folds == 1:
            raise OptionError("folds", f"must be at least 2; got {self.folds}")
        if self.folds and self.class_agnostic:
            raise OptionError("class_agnostic", "has no use with --folds, whose heads learn the data set's classes")

    def run(self) -> None:
        """Makes the output folder, and prints a summary.

        Raises:
            CheckpointError: as :meth:`IoURefiner.from_checkpoint`.
            ConfigError: likewise; no files can be written in the output folder.
            DataError: a file cannot be used; the folder is not one to write to; an unknown class in ``only``.
            OSError: the disk is full.
        """
        labels = self.labels
        check_output(self.output, labels.source)
        if unknown := [name for name in self.only if name not in labels.class_names]:
            raise DataError(f"--only {unknown[0]}: no such class; {labels.source} has {', '.join(labels.class_names)}")
        reviewed = ReviewedLabels.read(self.decisions, labels) if self.decisions else None
        settings = self._settings()
        with replacing_content(self.output) as folder:  # first: hours of work end here if it cannot be written
            judgements = read_judgements(self.output, labels, settings) if reviewed else None
            if judgements is None:
                if reviewed:
                    print(f"{self.output / 'boxes.json'} holds no proposals of these options: they are computed anew")
                judgements = self._judge()
            else:
                print(f"proposals of {self.output / 'boxes.json'}")
            if reviewed:
                reviewed.check_proposals(proposals_fingerprint(labels, judgements))
            decided = decide(labels, judgements, self.thresholds, reviewed.accepted if reviewed else {})
            write_records(folder, labels, judgements, decided, settings)
            shown = write_review(folder / "review.html", labels, judgements, decided, limit=self.review)
            (folder / "labels").mkdir()
            new_boxes = {
                label.key: judgement.box
                for label, judgement, decision in zip(labels.boxes, judgements, decided, strict=True)
                if isinstance(judgement, Proposal) and decision.accepted
            }
            labels.write_copy(_copy_path(labels, folder / "labels"), new_boxes)
        print(summary(labels, judgements, decided))
        for line in advice(labels, judgements, self.thresholds, in_folds=bool(self.folds)):
            print(line)
        print(f"labels in {self.output / 'labels'}; {shown} to review in {self.output / 'review.html'}")

    def _settings(self) -> dict[str, Any]:
        """What the proposals depend on besides the labels."""
        weights = Path(self.weights)
        settings: dict[str, Any] = {"weights": sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""}
        settings |= {"only": sorted(self.only), "class_agnostic": self.class_agnostic, "folds": self.folds}
        return settings | ({"iterations": self.iterations} if self.folds else {})

    def _judge(self) -> list[Judgement]:
        labels = self.labels
        judged: dict[int, Judgement] = {}
        rows = []
        for row, label in enumerate(labels.boxes):
            reason = reason_to_stay(label, self.only)
            if reason:
                judged[row] = reason
            else:
                rows.append(row)
        if self.folds:
            judged |= propose_in_folds(
                self.weights,
                labels,
                rows,
                folds=self.folds,
                iterations=self.iterations,
                batch_size=self.batch_size,
                device=self.device,
            )
        else:
            refiner = IoURefiner.from_checkpoint(self.weights, self.device)
            if not self.class_agnostic:
                self._check_classes(refiner, {labels.boxes[row].class_name for row in rows})
            judged |= propose(refiner, labels, rows, class_agnostic=self.class_agnostic, batch_size=self.batch_size)
        return [judged[row] for row in range(len(labels.boxes))]

    def _check_classes(self, refiner: IoURefiner, names: set[str]) -> None:
        """Raises DataError if the refiner knows none of the classes, so that nothing could be tightened."""
        if names and not any(match_names(names, refiner.categories)):
            known = [category["name"] for category in refiner.categories]
            raise DataError(
                f"{self.labels.source}: {self.weights} was trained on none of its classes; train heads for them with "
                f"--folds 4, or refine boxes of any class with --class-agnostic. Classes to tighten: "
                f"{listed(sorted(names))}. Those of the checkpoint: {listed(known)}"
            )


def _copy_path(labels: LabelSet, folder: Path) -> Path:
    """Where the copy goes: a COCO file's keeps its name."""
    return folder / labels.source.name if isinstance(labels, CocoLabels) else folder


def summary(labels: LabelSet, judgements: Sequence[Judgement], decisions: Sequence[Decision]) -> str:
    """The outcome in a few lines: how many labels moved, how many stay and why, mean predicted IoU before and after."""
    count = len(decisions)
    accepted = [decision.accepted for decision in decisions]
    lines = [f"{count:,} labels in {len(labels.images):,} images of {labels.source}"]
    lines.append(f"{sum(accepted):9,} moved")
    reasons = Counter(decision.reason for decision in decisions if not decision.accepted)
    lines += [f"{number:9,} kept: {reason}" for reason, number in reasons.most_common()]
    faults = Counter(fault.rule for fault in labels.faults)
    lines += [f"{number:9,} at fault, listed in boxes.json: {rule}" for rule, number in faults.most_common()]
    judged = [
        (judgement.iou_before, judgement.iou_after if decision.accepted else judgement.iou_before, decision.accepted)
        for judgement, decision in zip(judgements, decisions, strict=True)
        if isinstance(judgement, Proposal)
    ]
    for name, of_these in (
        ("labels judged", judged),
        ("labels moved", [values for values in judged if values[2]]),
    ):
        if of_these:
            before, after, _ = zip(*of_these, strict=True)
            lines.append(f"mean predicted IoU of the {name}: {fmean(before):.3f} → {fmean(after):.3f}")
    return "\n".join(lines)


def advice(
    labels: LabelSet, judgements: Sequence[Judgement], thresholds: Thresholds, *, in_folds: bool
) -> Iterator[str]:
    """What to do where the IoU-Net knows some of the classes alone, or does not see the labels' objects."""
    unknown = sorted(
        {
            label.class_name
            for label, judgement in zip(labels.boxes, judgements, strict=True)
            if judgement == UNKNOWN_CLASS
        }
    )
    if unknown:
        yield f"unknown to the refiner: {listed(unknown)}; --folds 4 trains heads for all classes of the data set"
    ious = [judgement.iou_after for judgement in judgements if isinstance(judgement, Proposal)]
    unseen = sum(iou < thresholds.min_iou for iou in ious)
    if unseen > len(ious) / 2:
        cure = "raise --iterations" if in_folds else "train heads for them with --folds 4"
        yield (
            f"warning: the IoU-Net hardly recognises these objects: for {unseen:,} of {len(ious):,} labels it predicts "
            f"an IoU below {thresholds.min_iou:g} even after refinement; {cure}, or give weights of more similar images"
        )
