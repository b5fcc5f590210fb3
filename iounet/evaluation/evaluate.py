"""A detector on a data set: the table of the paper, from one pass over the images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..detections import Detections
from ..modeling import IoUNet, Postprocessing, to_original
from ..processes import Process
from ..visualization import BoxChange, most_changed
from .coco_ap import CocoEvaluator
from .correlation import best_iou, best_match

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
        changes: boxes that refinement brought closest to their object, and farthest from it.
    """

    table: dict[str, dict[str, float]]
    results: list[dict]
    ious: Tensor
    scores: Tensor
    predicted_ious: Tensor
    examples: list[Example]
    changes: list[BoxChange]


# Boxes of a lower score clutter a picture without being detections that anybody would use.
DRAWN_SCORE = 0.5


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
    process: Process,
    num_examples: int = 6,
) -> Evaluation | None:
    """Detects once, then applies each row's NMS and refinement to the same candidates.

    Args:
        detector: is left in inference mode.
        batches: (images, targets) as :func:`iounet.data.eval_loader` yields them.
        ground_truth: the data set in COCO form.
        category_ids: the category of label l is ``category_ids[l - 1]``.
        process: this one, of those that evaluate together; all have to call. Batches are its share of the images.
        num_examples: images to keep for pictures.

    Returns:
        The evaluation; None in processes that do not report.
    """
    detector.eval()
    rows = table_rows(detector.postprocessing)
    name_of = {category["id"]: category["name"] for category in ground_truth["categories"]}
    class_names = [name_of[category_id] for category_id in category_ids]
    found: dict[str, list[tuple[int, Detections]]] = {row: [] for row in rows}
    matches: list[tuple[Tensor, Tensor, Tensor]] = []
    examples: list[Example] = []
    changes: list[BoxChange] = []
    for images, targets in batches:
        features = detector.extract([image.to(process.device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        placed = {row: detector.postprocess(features, candidates, options) for row, options in rows.items()}
        for row, detections in placed.items():
            for target, of_image in zip(targets, to_original(features, detections), strict=True):
                found[row].append((target["image_id"], of_image.to("cpu")))
        # In pictures the same boxes before and after; these settings choose others, or another order.
        unpaired = detector.postprocessing.refine_before_nms or detector.postprocessing.final_score != "class"
        refined = detector.refine(features, placed[GUIDED]) if unpaired else placed[REFINED]
        for image, target, *detections in zip(
            images,
            targets,
            *(to_original(features, of_batch) for of_batch in (candidates, placed[GUIDED], refined)),
            strict=True,
        ):
            everything, before, after = (of_image.to("cpu") for of_image in detections)
            ious = best_iou(everything.boxes, everything.labels, target["boxes"], target["labels"])
            matches.append((ious, everything.scores, everything.ious))
            example = Example(image, before, after, target)
            changes = most_changed([*changes, *box_changes(example, class_names, f"image {target['image_id']}")])
            if len(examples) < num_examples:
                examples.append(example)

    matches, changes = process.gather(matches), most_changed(process.gather(changes))
    evaluator = CocoEvaluator(ground_truth)
    share = process.share(evaluator.category_ids)
    of_share = torch.tensor([category_id in share for category_id in category_ids])
    table = {}
    for row in rows:
        found[row] = process.gather_in_all(found[row])
        results = [
            entry
            for image_id, kept in found[row]
            for entry in kept[of_share[kept.labels - 1]].to_coco(image_id, category_ids)
        ]
        scores = process.gather(evaluator.by_category(results, share))
        if process.reports:
            table[row] = evaluator.summary(scores)
    if not process.reports:
        return None
    results = [entry for image_id, kept in found[REFINED] for entry in kept.to_coco(image_id, category_ids)]
    return Evaluation(table, results, *(torch.cat(parts) for parts in zip(*matches, strict=True)), examples, changes)


def box_changes(example: Example, class_names: list[str], image_name: str) -> Iterator[BoxChange]:
    """Each detection of a score of at least DRAWN_SCORE whose IoU with an object was at least 0.5 before refinement.

    Args:
        example: with ground truth; the same detections in the same order before and after.
        class_names: label l is ``class_names[l - 1]``.
    """
    before, after, truth = example.before, example.after, example.ground_truth
    ious, objects = best_match(before.boxes, before.labels, truth["boxes"], truth["labels"])
    for row in ((ious >= 0.5) & (before.scores >= DRAWN_SCORE)).nonzero()[:, 0].tolist():
        yield BoxChange(
            example.image,
            torch.stack([before.boxes[row], after.boxes[row]]),
            torch.stack([before.ious[row], after.ious[row]]),
            truth["boxes"][objects[row]],
            f"{class_names[before.labels[row] - 1]}, {image_name}",
        )
