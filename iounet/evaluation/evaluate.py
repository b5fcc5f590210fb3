"""A detector on a data set: the table of the paper, from one pass over the images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..detections import Detections
from ..modeling import IoUNet, Postprocessing, to_original
from .coco_ap import CocoEvaluator
from .correlation import best_iou

GREEDY, SOFT, GUIDED, REFINED = "greedy NMS", "soft-NMS", "IoU-guided NMS", "IoU-guided NMS + refinement"


@dataclass(frozen=True)
class Example:
    """An image with its boxes before and after refinement, and its ground truth if known, in pixels of the image."""

    image: Tensor
    before: Detections
    after: Detections
    ground_truth: dict[str, Tensor] | None


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gives.

    Attributes:
        table: row (GREEDY, SOFT, GUIDED, REFINED) → column → percent, as :class:`CocoEvaluator` returns them.
        results: the last row's detections as COCO results.
        ious, scores, predicted_ious (Tensor[N]): of all candidates before NMS: IoU with the best ground truth of
            their class, class score, predicted IoU.
        examples: of the first images.
    """

    table: dict[str, dict[str, float]]
    results: list[dict]
    ious: Tensor
    scores: Tensor
    predicted_ious: Tensor
    examples: list[Example]


def table_rows(postprocessing: Postprocessing) -> dict[str, Postprocessing]:
    """The four rows of the table as variants of a detector's postprocessing."""
    unrefined = replace(postprocessing, refinement_steps=0)
    return {
        GREEDY: replace(unrefined, nms="greedy"),
        SOFT: replace(unrefined, nms="soft"),
        GUIDED: replace(unrefined, nms="iou_guided"),
        REFINED: replace(postprocessing, nms="iou_guided"),
    }


@torch.no_grad()
def evaluate(
    detector: IoUNet,
    batches: Iterable[tuple[list[Tensor], list[dict]]],
    ground_truth: dict,
    category_ids: list[int],
    *,
    device: torch.device,
    num_examples: int = 6,
    gather: Callable[[list], list] = list,
) -> Evaluation | None:
    """Detects once, then applies each row's NMS and refinement to the same candidates.

    Args:
        detector: is left in inference mode.
        batches: (images, targets) as :func:`iounet.data.eval_loader` yields them.
        ground_truth: the data set in COCO form.
        category_ids: the category of label l is ``category_ids[l - 1]``.
        num_examples: images to keep for pictures.
        gather: a process's list → all processes' lists joined, or an empty list in those that do not report; the
            identity for a single process.

    Returns:
        The evaluation; None in processes that do not report.
    """
    detector.eval()
    rows = table_rows(detector.postprocessing)
    found: dict[str, list[tuple[int, Detections]]] = {row: [] for row in rows}
    matches: list[tuple[Tensor, Tensor, Tensor]] = []
    examples: list[Example] = []
    for images, targets in batches:
        features = detector.extract([image.to(device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        for row, postprocessing in rows.items():
            kept = to_original(features, detector.postprocess(features, candidates, postprocessing))
            for target, detections in zip(targets, kept, strict=True):
                found[row].append((target["image_id"], detections.to("cpu")))
        for index, (target, candidates_in_image) in enumerate(
            zip(targets, to_original(features, candidates), strict=True)
        ):
            everything = candidates_in_image.to("cpu")
            ious = best_iou(everything.boxes, everything.labels, target["boxes"], target["labels"])
            matches.append((ious, everything.scores, everything.ious))
            if len(examples) < num_examples:
                before, after = (found[row][index - len(targets)][1] for row in (GUIDED, REFINED))
                examples.append(Example(images[index], before, after, target))

    matches = gather(matches)
    found = {row: gather(detections) for row, detections in found.items()}
    if not matches:
        return None
    evaluator = CocoEvaluator(ground_truth)
    table, results = {}, []
    for row, detections in found.items():
        results = [entry for image_id, kept in detections for entry in kept.to_coco(image_id, category_ids)]
        table[row] = evaluator(results)
    return Evaluation(table, results, *(torch.cat(parts) for parts in zip(*matches, strict=True)), examples)
