"""Measure tightening: move labels at random, then see how well they are found and restored.

Protocol: half of the labels, drawn at random, are moved. Each edge of a moved label shifts by a uniform random amount
between -p and p times the box's width or height, clipped to the image. Then all labels are tightened. The measurement
answers two questions for each p:

- How close do the boxes come to the original labels? The IoU with the original box before and after tightening, for
  the moved labels and for the others, which a perfect refiner of perfect labels would not change.
- Which labels were moved? The area under the ROC curve (AUROC) of a score that ranks moved labels above the others:
  0.5 is chance, 1 is perfect. Some labels hardly move, so 1 is out of reach.

The comparison is with cleanlab (Tkachenko, Thyagarajan & Mueller, "ObjectLab: Automated Diagnosis of Mislabeled Images
in Object Detection Data", 2023, arXiv 2309.00832). Its score of badly located boxes compares a label with nearby
detections, which are the refined detections of the same network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boxes import elementwise_iou
from ..categories import match_names
from ..data import read_image
from ..data.labels import Box, LabeledBox, LabelSet
from ..detections import Detections
from ..evaluation.tables import markdown
from ..progress import progress
from ..refiner import IoURefiner
from .decisions import Thresholds
from .proposals import Proposal, propose

CLEANLAB = "cleanlab badloc"


def first_images(labels: LabelSet, number: int) -> LabelSet:
    """Return a label set of the first `number` images and their labels."""
    kept = [label for label in labels.boxes if label.image < number]
    return replace(labels, images=labels.images[:number], boxes=kept)


def add_noise(labels: LabelSet, amount: float, seed: int) -> tuple[LabelSet, list[bool]]:
    """Move half of the labels, according to this module's protocol.

    Args:
        labels: The label set.
        amount: p, as a fraction of a box's width or height, below 0.5.
        seed: Seed of the noise. The same labels move for every amount.

    Returns:
        The label set with the moved boxes, and for each label whether it was moved.
    """
    generator = np.random.default_rng(seed)
    noisy, moved = [], []
    for label in labels.boxes:
        chosen = bool(generator.random() < 0.5)
        edges = generator.uniform(-amount, amount, size=4)  # drawn for every label, so the draws stay aligned
        box = _displaced(label.box, edges, labels.images[label.image].width, labels.images[label.image].height)
        noisy.append(replace(label, box=box) if chosen else label)
        moved.append(chosen)
    return replace(labels, boxes=noisy), moved


def _displaced(box: Box, edges: np.ndarray, width: int, height: int) -> Box:
    left, top, right, bottom = (
        edge + float(shift) * size
        for edge, shift, size in zip(box, edges, (box[2] - box[0], box[3] - box[1]) * 2, strict=True)
    )
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))


def roc_area(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the area under the ROC curve.

    It is the probability that a positive has a higher score than a negative, where ties count half. NaN if there are
    no positives or no negatives.
    """
    values, truth = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    num_positives, num_negatives = int(truth.sum()), int((~truth).sum())
    if not num_positives or not num_negatives:
        return float("nan")
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    above = middle_rank[position][truth].sum() - num_positives * (num_positives + 1) / 2
    return float(above / (num_positives * num_negatives))


@dataclass(frozen=True)
class Restored:
    """IoUs of some labels with their original boxes.

    Attributes:
        before: float [N], IoUs before tightening.
        after: float [N], IoUs after tightening.
    """

    before: Tensor
    after: Tensor

    def summary(self) -> dict[str, float]:
        """Return the mean IoUs and the shares of labels whose IoU rose and fell."""
        return {
            "num_labels": len(self.before),
            "iou_before": self.before.mean().item(),
            "iou_after": self.after.mean().item(),
            "share_improved": (self.after > self.before).double().mean().item(),
            "share_worsened": (self.after < self.before).double().mean().item(),
        }


def measure(
    refiner: IoURefiner,
    labels: LabelSet,
    amounts: Sequence[float],
    *,
    thresholds: Thresholds,
    seed: int = 0,
    batch_size: int = 1,
    cleanlab: bool = True,
) -> dict[str, Any]:
    """Measure tightening for each amount of noise.

    Labels that the refiner does not judge, such as those of unknown classes, are left out.

    Args:
        refiner: Refines the boxes.
        labels: The label set, taken as correct.
        amounts: Values of p, as fractions.
        thresholds: Decide which proposals are accepted.
        seed: Seed of the noise.
        batch_size: Images per batch.
        cleanlab: Compare with cleanlab if it is installed. The refiner must be able to detect objects.

    Returns:
        Amount in percent → "moved" and "not_moved" (`Restored.summary`) and "auroc" (score → area).
    """
    detections = _detect(refiner, labels) if cleanlab and _has_cleanlab() else []
    results: dict[str, Any] = {}
    for amount in amounts:
        noisy, moved = add_noise(labels, amount, seed)
        rows = [row for row, label in enumerate(noisy.boxes) if not label.crowd]
        judged = propose(refiner, noisy, rows, batch_size=batch_size, description=f"noise {amount:.0%}")
        proposals = {row: found for row, found in sorted(judged.items()) if isinstance(found, Proposal)}
        scores = {
            "1 − predicted IoU": [-found.iou_before for found in proposals.values()],
            "gain": [found.gain for found in proposals.values()],
            "move": [found.move for found in proposals.values()],
        }
        if detections:
            badloc = cleanlab_scores([noisy.boxes[row] for row in proposals], detections, refiner)
            scores[CLEANLAB] = [-score for score in badloc]
        was_moved = [moved[row] for row in proposals]
        restored = _restored(labels, noisy, proposals, thresholds)
        mask = torch.tensor(was_moved)
        results[f"{amount:.0%}"] = {
            "moved": Restored(restored.before[mask], restored.after[mask]).summary(),
            "not_moved": Restored(restored.before[~mask], restored.after[~mask]).summary(),
            "auroc": {name: roc_area(of_score, was_moved) for name, of_score in scores.items()},
        }
    return results


def _restored(labels: LabelSet, noisy: LabelSet, proposals: Mapping[int, Proposal], thresholds: Thresholds) -> Restored:
    def boxes(of: Sequence[Box]) -> Tensor:
        return torch.tensor(of, dtype=torch.float64).reshape(-1, 4)

    truth = boxes([labels.boxes[row].box for row in proposals])
    given = boxes([noisy.boxes[row].box for row in proposals])
    tightened = boxes(
        [
            proposal.box if thresholds.decide(proposal).accepted else noisy.boxes[row].box
            for row, proposal in proposals.items()
        ]
    )
    return Restored(elementwise_iou(given, truth), elementwise_iou(tightened, truth))


def _detect(refiner: IoURefiner, labels: LabelSet) -> list[Detections]:
    """Return the refined detections of the refiner in each image."""
    images = progress(labels.images, desc="detect", unit="image")
    return [refiner.detect(read_image(image.path).as_subclass(Tensor))[1] for image in images]


def _has_cleanlab() -> bool:
    return find_spec("cleanlab") is not None


def cleanlab_scores(labels: Sequence[LabeledBox], detections: Sequence[Detections], refiner: IoURefiner) -> list[float]:
    """Return cleanlab's score of badly located boxes for each label; low scores mean bad boxes.

    Args:
        labels: Labels of classes that the refiner knows.
        detections: One per image, at the index that the labels refer to.
        refiner: Its categories are the classes of the detections.
    """
    rank = import_module("cleanlab.object_detection.rank")
    classes = np.array(match_names([label.class_name for label in labels], refiner.categories)) - 1
    images = sorted({label.image for label in labels})
    rows = {image: [row for row, label in enumerate(labels) if label.image == image] for image in images}
    given = [
        {"bboxes": np.array([labels[row].box for row in rows[image]]), "labels": classes[rows[image]]}
        for image in images
    ]
    predictions = [_by_class(detections[image], len(refiner.categories)) for image in images]
    scores = np.full(len(labels), np.nan)
    for image, of_image in zip(
        images, rank.compute_badloc_box_scores(labels=given, predictions=predictions), strict=True
    ):
        scores[rows[image]] = of_image
    return scores.tolist()


def _by_class(detections: Detections, num_classes: int) -> np.ndarray:
    """Convert the detections of an image to cleanlab's format: an array [M, 5] of xyxy and score for each class."""
    table = torch.cat([detections.boxes, detections.scores[:, None]], 1).numpy()
    by_class = np.empty(num_classes, dtype=object)
    for label in range(1, num_classes + 1):
        by_class[label - 1] = table[(detections.labels == label).numpy()]
    return by_class


def mean_over_seeds(results: Sequence[Any]) -> Any:
    """Average the results of `measure` for several seeds, number by number."""
    first = results[0]
    if isinstance(first, dict):
        return {key: mean_over_seeds([of_seed[key] for of_seed in results]) for key in first}
    return float(np.mean(results))


def noise_table(results: Mapping[str, Any]) -> str:
    """Format the results of `measure` as a Markdown table."""
    areas = list(next(iter(results.values()))["auroc"])
    head = [
        "noise",
        "IoU, moved labels",
        "improved",
        "worsened",
        "IoU, other labels",
        *(f"AUROC {name}" for name in areas),
    ]
    rows = []
    for amount, of_amount in results.items():
        moved, others = of_amount["moved"], of_amount["not_moved"]
        rows.append(
            [
                f"±{amount}",
                f"{moved['iou_before']:.3f} → {moved['iou_after']:.3f}",
                f"{moved['share_improved']:.0%}",
                f"{moved['share_worsened']:.0%}",
                f"{others['iou_before']:.3f} → {others['iou_after']:.3f}",
                *(f"{of_amount['auroc'][name]:.3f}" for name in areas),
            ]
        )
    return markdown(head, rows)
