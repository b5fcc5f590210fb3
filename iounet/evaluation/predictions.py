"""Run a detector once on a data set and collect the data for the paper's table and for the pictures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..boxes import best_iou, best_match
from ..detections import Detections
from ..modeling import ImageFeatures, IoUNet
from ..postprocess import Postprocessing, postprocess
from ..visualization import BoxChange, most_changed

GREEDY, SOFT, GUIDED, REFINED = "greedy NMS", "soft-NMS", "IoU-guided NMS", "IoU-guided NMS + refinement"
RESCORED = f"{REFINED}, class score × IoU"

# Boxes with a lower score clutter a picture, and are rarely used as detections.
DRAWN_SCORE = 0.5

# Image id and detections of each image, in pixels of the original images, on the CPU.
Found = list[tuple[int, Detections]]
# IoU with the best object of its class, class score and predicted IoU of each candidate of an image: Tensor[N] each.
Match = tuple[Tensor, Tensor, Tensor]
Batch = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass(frozen=True)
class Example:
    """An image with its boxes before and after refinement, and its ground truth if known, in pixels of the image."""

    image: Tensor
    before: Detections
    after: Detections
    ground_truth: dict[str, Any] | None


@dataclass
class Predictions:
    """Results of one pass over images, or over a process's share of them.

    Attributes:
        found: Row of the table → detections.
        matches: Candidates of each image before NMS, matched with the ground truth.
        examples: The first images with their boxes.
        changes: Boxes whose true IoU rose or fell most in refinement.
    """

    found: dict[str, Found]
    matches: list[Match] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    changes: list[BoxChange] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a detector on a data set.

    Attributes:
        table: Row of `table_rows` → column → percent, as returned by `CocoEvaluator`.
        results: Detections of the last row as COCO results.
        ious: float [N], IoU of each candidate before NMS with the best ground truth of its class.
        scores: float [N], class scores of the candidates.
        predicted_ious: float [N], predicted IoUs of the candidates.
        examples: The first images with their boxes.
        changes: Boxes whose true IoU rose or fell most in refinement.
    """

    table: dict[str, dict[str, float]]
    results: list[dict]
    ious: Tensor
    scores: Tensor
    predicted_ious: Tensor
    examples: list[Example]
    changes: list[BoxChange]


def table_rows(postprocessing: Postprocessing) -> dict[str, Postprocessing]:
    """Return row name → variant of a detector's postprocessing.

    The last row uses IoU-guided NMS, the configured refinement and the configured final score. The row `RESCORED`
    exists only if the configured final score is the class score times the predicted IoU.
    """

    def with_nms(kind: str, final_score: str = "class") -> Postprocessing:
        return replace(postprocessing, nms=replace(postprocessing.nms, kind=kind), final_score=final_score)

    rows = {
        GREEDY: with_nms("greedy").unrefined(),
        SOFT: with_nms("soft").unrefined(),
        GUIDED: with_nms("iou_guided").unrefined(),
        REFINED: with_nms("iou_guided"),
    }
    if postprocessing.final_score != "class":
        rows[RESCORED] = with_nms("iou_guided", postprocessing.final_score)
    return rows


@torch.no_grad()
def predict(
    detector: IoUNet,
    batches: Iterable[Batch],
    class_names: Sequence[str],
    *,
    device: torch.device,
    num_examples: int = 6,
) -> Predictions:
    """Detect once, then apply the NMS and refinement of each row to the same candidates.

    Args:
        detector: Is set to evaluation mode.
        batches: (images, targets) as yielded by `iounet.data.eval_loader`.
        class_names: Label l is `class_names[l - 1]`.
        device: Device to run on.
        num_examples: Number of images to keep for pictures.
    """
    detector.eval()
    rows = table_rows(detector.postprocessing)
    predictions = Predictions({row: [] for row in rows})
    for images, targets in batches:
        features = detector.extract([image.to(device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        refine = partial(detector.refine, features)
        detections = {row: postprocess(candidates, options, refine) for row, options in rows.items()}
        for row, of_batch in detections.items():
            predictions.found[row] += found_in(features, of_batch, targets)
        predictions.matches += match_candidates(features, candidates, targets)

        before: Sequence[Detections] = detections[GUIDED]
        after: Sequence[Detections] = detections[REFINED]
        if detector.postprocessing.refine_before_nms:
            # Refinement before NMS keeps other boxes, but pictures need the same boxes before and after.
            after = refine(before, detector.postprocessing.refinement)
        for image, target, (_, first), (_, last) in zip(
            images, targets, found_in(features, before, targets), found_in(features, after, targets), strict=True
        ):
            example = Example(image, first, last, target)
            changes = box_changes(example, class_names, f"image {target['image_id']}")
            predictions.changes = most_changed([*predictions.changes, *changes])
            if len(predictions.examples) < num_examples:
                predictions.examples.append(example)
    return predictions


@torch.no_grad()
def candidate_matches(detector: IoUNet, batches: Iterable[Batch], *, device: torch.device) -> list[Match]:
    """Match the candidates of each image before NMS with the ground truth. Sets the detector to evaluation mode."""
    detector.eval()
    matches: list[Match] = []
    for images, targets in batches:
        features = detector.extract([image.to(device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        matches += match_candidates(features, candidates, targets)
    return matches


def found_in(features: ImageFeatures, detections: Sequence[Detections], targets: Sequence[dict]) -> Found:
    """Convert the detections of a batch to pixels of the original images, on the CPU, with their image ids."""
    return [
        (target["image_id"], of_image.to("cpu"))
        for target, of_image in zip(targets, features.to_original(detections), strict=True)
    ]


def match_candidates(
    features: ImageFeatures, candidates: Sequence[Detections], targets: Sequence[dict]
) -> Iterator[Match]:
    """Match the candidates of each image with the ground truth."""
    for target, (_, of_image) in zip(targets, found_in(features, candidates, targets), strict=True):
        ious = best_iou(of_image.boxes, of_image.labels, target["boxes"], target["labels"])
        yield ious, of_image.scores, of_image.ious


def joined(matches: Iterable[Match]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the true IoUs, class scores and predicted IoUs of all images."""
    ious, scores, predicted_ious = (torch.cat(parts) for parts in zip(*matches, strict=True))
    return ious, scores, predicted_ious


def as_results(found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections to COCO results. The category of label l is `category_ids[l - 1]`."""
    return [entry for image_id, kept in found for entry in kept.to_coco(image_id, category_ids)]


def box_changes(example: Example, class_names: Sequence[str], image_name: str) -> Iterator[BoxChange]:
    """Yield the change of each detection with a score of at least `DRAWN_SCORE` and an initial IoU of at least 0.5.

    Args:
        example: An image with ground truth, and with the same detections in the same order before and after.
        class_names: Label l is `class_names[l - 1]`.
        image_name: Name of the image in captions and errors.

    Raises:
        ValueError: The image has no ground truth.
    """
    before, after, truth = example.before, example.after, example.ground_truth
    if truth is None:
        raise ValueError(f"{image_name} has no ground truth to compare its boxes with")
    ious, objects = best_match(before.boxes, before.labels, truth["boxes"], truth["labels"])
    for row in ((ious >= 0.5) & (before.scores >= DRAWN_SCORE)).nonzero()[:, 0].tolist():
        yield BoxChange(
            example.image,
            torch.stack([before.boxes[row], after.boxes[row]]),
            torch.stack([before.ious[row], after.ious[row]]),
            truth["boxes"][objects[row]],
            f"{class_names[int(before.labels[row]) - 1]}, {image_name}",
        )
