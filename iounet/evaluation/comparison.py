"""Compare ways to rank and place boxes, and upper bounds that use the true IoU, on the same candidates."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..boxes import best_match, elementwise_iou
from ..detections import Detections
from ..modeling import ImageFeatures, IoUNet
from ..postprocess import FINAL_SCORES, Postprocessing, RefinementOptions, postprocess, refine_boxes, suppress
from .localization import match_greedily, without_localization_errors
from .merging import SIGMA_T, box_voting, weighted_box_fusion
from .predictions import Batch, Found, Match, found_in, match_candidates
from .stopwatch import Stopwatch

OWN = "this configuration"
DETECTOR = "detector"


@dataclass(frozen=True)
class Scene:
    """A batch of images with a detector's candidates. Boxes are in pixels of the resized images.

    Attributes:
        detector: The detector.
        features: Feature maps and sizes of the images.
        candidates: Detections of each image before NMS.
        objects: Ground truth of each image, as detections with a score and IoU of 1.
    """

    detector: IoUNet
    features: ImageFeatures
    candidates: list[Detections]
    objects: list[Detections]

    def suppressed(self, kind: str) -> list[Detections]:
        """Apply one kind of NMS to the candidates, without refinement."""
        options = replace(self.detector.postprocessing.nms, kind=kind)
        return [suppress(of_image, options) for of_image in self.candidates]

    def postprocessed(self, options: Postprocessing) -> Sequence[Detections]:
        """Apply NMS and refinement to the candidates."""
        return postprocess(self.candidates, options, refine=partial(self.detector.refine, self.features))


Method = Callable[[Scene], Sequence[Detections]]


def methods(own: Postprocessing) -> dict[str, Method]:
    """Return the methods to compare: row of the table → method.

    Args:
        own: Postprocessing of the detector. Two rows use it, one with each kind of final score.
    """
    other = next(score for score in FINAL_SCORES if score != own.final_score)
    paper = Postprocessing(replace(own.nms, kind="iou_guided", ranking="iou"), RefinementOptions())
    return {
        "greedy NMS": partial(Scene.suppressed, kind="greedy"),
        "soft-NMS": partial(Scene.suppressed, kind="soft"),
        "IoU-guided NMS": partial(Scene.suppressed, kind="iou_guided"),
        "box voting": partial(_voted, sigma=None),
        "box voting, KL-Loss's weights × predicted IoU": partial(_voted, sigma=SIGMA_T),
        "weighted box fusion": _fused,
        "box regression repeated once": partial(_regressed, repetitions=1),
        "box regression repeated twice": partial(_regressed, repetitions=2),
        "the paper's NMS and refinement, this IoU head": partial(Scene.postprocessed, options=paper),
        f"{OWN}, final score {other}": partial(Scene.postprocessed, options=replace(own, final_score=other)),
        OWN: partial(Scene.postprocessed, options=own),
        "bound: NMS guided by the true IoU": _guided_by_truth,
        "bound: greedy NMS, ascent on the true IoU": _moved_to_truth,
    }


def _voted(scene: Scene, sigma: float | None) -> list[Detections]:
    return [
        box_voting(kept, of_image, of_image.scores if sigma is None else of_image.scores * of_image.ious, sigma=sigma)
        for kept, of_image in zip(scene.suppressed("greedy"), scene.candidates, strict=True)
    ]


def _fused(scene: Scene) -> list[Detections]:
    limit = scene.detector.postprocessing.nms.max_detections
    return [weighted_box_fusion(of_image, max_detections=limit) for of_image in scene.candidates]


def _regressed(scene: Scene, repetitions: int) -> list[Detections]:
    detections = scene.suppressed("greedy")
    for _ in range(repetitions if any(map(len, detections)) else 0):
        boxes, labels = ([getattr(of_image, name) for of_image in detections] for name in ("boxes", "labels"))
        moved = scene.detector.roi_heads.regress(scene.features.maps, boxes, labels, scene.features.sizes)
        detections = [replace(of_image, boxes=new_boxes) for of_image, new_boxes in zip(detections, moved, strict=True)]
    return detections


def _best(detections: Detections, objects: Detections) -> tuple[Tensor, Tensor]:
    return best_match(detections.boxes, detections.labels, objects.boxes, objects.labels)


def _guided_by_truth(scene: Scene) -> list[Detections]:
    options = replace(scene.detector.postprocessing.nms, kind="iou_guided", ranking="iou")
    return [
        suppress(replace(of_image, ious=_best(of_image, objects)[0]), options)
        for of_image, objects in zip(scene.candidates, scene.objects, strict=True)
    ]


def _moved_to_truth(scene: Scene) -> list[Detections]:
    """Move each box by gradient ascent on its true IoU, in steps long enough to reach the object it overlaps most."""
    options = {"step_size": 4.0, "step_policy": "backtracking", "num_steps": 10, "early_stop": 0.0}
    moved = []
    for of_image, objects in zip(scene.suppressed("greedy"), scene.objects, strict=True):
        if not len(objects):
            moved.append(of_image)
            continue
        targets = objects.boxes[_best(of_image, objects)[1]]
        boxes, _ = refine_boxes(partial(elementwise_iou, targets), of_image.boxes, **options)
        moved.append(replace(of_image, boxes=boxes))
    return moved


@dataclass
class Comparison:
    """Results of one pass over a data set.

    Attributes:
        found: Row → detections of all images, in pixels of the original images.
        mended: IoU threshold → row → the same detections without TIDE's localisation errors.
        matched_ious: Row → IoU of each detection with the object that it matches at an IoU of at least 0.5; 0 for none.
        candidates: True IoU, class score and predicted IoU of the candidates of each image.
        seconds: Row, or "detector" → seconds per image, one value per batch.
    """

    found: dict[str, Found]
    mended: dict[float, dict[str, Found]]
    matched_ious: dict[str, list[Tensor]]
    candidates: list[Match] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


@torch.no_grad()
def compare(detector: IoUNet, batches: Iterable[Batch], rows: dict[str, Method], *, device: torch.device) -> Comparison:
    """Detect once, then apply each method to the same candidates.

    Args:
        detector: Is set to evaluation mode.
        batches: (images, targets) as yielded by `iounet.data.eval_loader`.
        rows: Row → method, as returned by `methods`.
        device: Device to run on.
    """
    detector.eval()
    comparison = Comparison(
        {row: [] for row in rows}, {t: {row: [] for row in rows} for t in (0.5, 0.75)}, {row: [] for row in rows}
    )
    for images, targets in batches:
        stopwatch = Stopwatch(device)
        with stopwatch(DETECTOR):
            features = detector.extract([image.to(device) for image in images])
            candidates = detector.detect(features, detector.propose(features))
        scene = Scene(detector, features, candidates, _objects(features, targets, device))
        for row, method in rows.items():
            with stopwatch(row):
                detections = method(scene)
            for target, (image_id, found) in zip(targets, found_in(features, detections, targets), strict=True):
                truth = target["boxes"], target["labels"]
                comparison.found[row].append((image_id, found))
                comparison.matched_ious[row].append(match_greedily(found, *truth, 0.5).ious)
                for threshold, mended in comparison.mended.items():
                    mended[row].append((image_id, without_localization_errors(found, *truth, threshold)))
        comparison.candidates += match_candidates(features, candidates, targets)
        for stage, seconds in stopwatch.seconds.items():
            comparison.seconds.setdefault(stage, []).append(seconds / len(images))
    return comparison


def _objects(features: ImageFeatures, targets: Sequence[dict], device: torch.device) -> list[Detections]:
    objects = []
    for target, original, resized in zip(targets, features.original_sizes, features.sizes, strict=True):
        ones = torch.ones(len(target["labels"]))
        objects.append(Detections(target["boxes"], target["labels"], ones, ones).rescaled(original, resized).to(device))
    return objects
