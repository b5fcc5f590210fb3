"""A run of iounet-tighten: make or reuse proposals, decide on them, write corrected labels and a review page."""

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
    """Options of a run.

    Attributes:
        labels: The data set. Its files are never written.
        weights: Checkpoint of the refiner.
        output: Folder for labels/, boxes.json, boxes.csv and review.html.
        thresholds: Thresholds that a proposal must meet.
        only: Names of the classes to tighten. Empty means all.
        class_agnostic: Refine every box without regard to its class.
        decisions: File of decisions saved on the review page. They override the thresholds.
        folds: Number of folds of images. The labels of each fold are judged by new heads trained on the other folds.
            With 0, the heads of the checkpoint judge all labels.
        iterations: Training iterations per fold.
        review: Maximum number of labels on the page, which shows the labels with the largest gains.
        batch_size: Images per batch.
        device: As in `iounet.devices.build_device`.

    Raises:
        OptionError: An option is out of range, or two options exclude each other.
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
            raise OptionError("class_agnostic", "has no effect with --folds, whose heads know all classes")

    def run(self) -> None:
        """Write the output folder and print a summary.

        Raises:
            CheckpointError: As in `IoURefiner.from_checkpoint`.
            ConfigError: As in `IoURefiner.from_checkpoint`, or the output folder cannot be written to.
            DataError: A file cannot be used, the output folder contains other files, or `only` names an unknown class.
            OSError: The disk is full.
        """
        labels = self.labels
        check_output(self.output, labels.source)
        if unknown := [name for name in self.only if name not in labels.class_names]:
            raise DataError(
                f"--only {unknown[0]}: no such class in {labels.source}, which has {', '.join(labels.class_names)}"
            )
        reviewed = ReviewedLabels.read(self.decisions, labels) if self.decisions else None
        settings = self._settings()
        with replacing_content(self.output) as folder:  # fails before hours of work if the folder cannot be written to
            judgements = read_judgements(self.output, labels, settings) if reviewed else None
            if judgements is None:
                if reviewed:
                    print(f"{self.output / 'boxes.json'} has no proposals for these options; computing them again")
                judgements = self._judge()
            else:
                print(f"reusing the proposals in {self.output / 'boxes.json'}")
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
        print(f"labels written to {self.output / 'labels'}; {shown} of them to review in {self.output / 'review.html'}")

    def _settings(self) -> dict[str, Any]:
        """Return what the proposals depend on besides the labels."""
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
        """Raise DataError if the refiner knows none of the classes."""
        if names and not any(match_names(names, refiner.categories)):
            known = [category["name"] for category in refiner.categories]
            raise DataError(
                f"{self.labels.source}: {self.weights} was trained on none of its classes; train heads for them with "
                f"--folds 4, or refine boxes of any class with --class-agnostic. Classes to tighten: "
                f"{listed(sorted(names))}. Classes of the checkpoint: {listed(known)}"
            )


def _copy_path(labels: LabelSet, folder: Path) -> Path:
    """Return the path of the copy: the folder or, for a COCO file, a file of the same name in this folder."""
    return folder / labels.source.name if isinstance(labels, CocoLabels) else folder


def summary(labels: LabelSet, judgements: Sequence[Judgement], decisions: Sequence[Decision]) -> str:
    """Summarise a run in a few lines: labels moved, labels kept and why, mean predicted IoU before and after."""
    count = len(decisions)
    accepted = [decision.accepted for decision in decisions]
    lines = [f"{count:,} labels in {len(labels.images):,} images of {labels.source}"]
    lines.append(f"{sum(accepted):9,} moved")
    reasons = Counter(decision.reason for decision in decisions if not decision.accepted)
    lines += [f"{number:9,} kept: {reason}" for reason, number in reasons.most_common()]
    faults = Counter(fault.rule for fault in labels.faults)
    lines += [f"{number:9,} faulty, listed in boxes.json: {rule}" for rule, number in faults.most_common()]
    judged = [
        (judgement.iou_before, judgement.iou_after if decision.accepted else judgement.iou_before, decision.accepted)
        for judgement, decision in zip(judgements, decisions, strict=True)
        if isinstance(judgement, Proposal)
    ]
    for name, of_these in (
        ("judged labels", judged),
        ("moved labels", [values for values in judged if values[2]]),
    ):
        if of_these:
            before, after, _ = zip(*of_these, strict=True)
            lines.append(f"mean predicted IoU of the {name}: {fmean(before):.3f} → {fmean(after):.3f}")
    return "\n".join(lines)


def advice(
    labels: LabelSet, judgements: Sequence[Judgement], thresholds: Thresholds, *, in_folds: bool
) -> Iterator[str]:
    """Yield advice if the IoU-Net does not know some of the classes, or does not recognise the objects."""
    unknown = sorted(
        {
            label.class_name
            for label, judgement in zip(labels.boxes, judgements, strict=True)
            if judgement == UNKNOWN_CLASS
        }
    )
    if unknown:
        yield f"classes unknown to the refiner: {listed(unknown)}; --folds 4 trains heads for all classes"
    ious = [judgement.iou_after for judgement in judgements if isinstance(judgement, Proposal)]
    unseen = sum(iou < thresholds.min_iou for iou in ious)
    if unseen > len(ious) / 2:
        cure = "raise --iterations" if in_folds else "train heads for them with --folds 4"
        yield (
            f"warning: the IoU-Net hardly recognises these objects: for {unseen:,} of {len(ious):,} labels it predicts "
            f"an IoU below {thresholds.min_iou:g} even after refinement; {cure}, or give weights that were trained on "
            "similar images"
        )
