"""Measure the paper's tables and figures for one detector, in one pass over a data set."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..boxes import best_iou
from ..detections import Detections
from ..modeling import ImageFeatures, IoUNet
from ..postprocess import NMSOptions, Postprocessing, Refine, postprocess, suppress_each
from .predictions import GUIDED, REFINED, Batch, Found, Match, found_in, joined, match_candidates, table_rows
from .stopwatch import Stopwatch

STEP_SIZE_FACTORS = (0.5, 1, 2, 4, 8)
NUM_STEPS = 10
BEFORE_NMS = "before NMS"


@dataclass(frozen=True)
class Reproduction:
    """Measurements of one pass. Boxes are in pixels of the original images.

    Attributes:
        found: Detections of each variant of postprocessing.
        optimized: Detections after 0, 1, ..., NUM_STEPS steps of gradient ascent without early stopping.
        regressed: Detections after 0, 1, ..., NUM_STEPS repetitions of box regression, from the same boxes.
        ious: float [N], IoU of each candidate before NMS with the best object of its class.
        scores: float [N], class scores of the candidates.
        predicted_ious: float [N], predicted IoUs of the candidates.
        surviving: Row → for each object of the data set, the IoU of the best box of its class that NMS kept.
        seconds: Stage → seconds per image, one value per batch.
    """

    found: dict[Postprocessing, Found]
    optimized: list[Found]
    regressed: list[Found]
    ious: Tensor
    scores: Tensor
    predicted_ious: Tensor
    surviving: dict[str, Tensor]
    seconds: dict[str, list[float]]


def refined_with(postprocessing: Postprocessing, **changes: float | int | str) -> Postprocessing:
    """Return the postprocessing with some refinement options changed."""
    return replace(postprocessing, refinement=replace(postprocessing.refinement, **changes))  # type: ignore[arg-type]


def step_size_rows(paper: Postprocessing) -> dict[str, Postprocessing]:
    """Return variants with other step sizes (lambda): 0.25 to 4 instead of the paper's 0.5."""
    options = paper.refinement
    return {
        f"{factor * options.step_size:g}": refined_with(
            paper, step_size=factor * options.step_size, size_step_size=factor * options.size_step_size
        )
        for factor in STEP_SIZE_FACTORS
    }


def beyond_rows(paper: Postprocessing, mean_size: float) -> dict[str, Postprocessing]:
    """Return the paper's postprocessing, single changes to it, and the two most helpful changes combined.

    Args:
        paper: The paper's postprocessing.
        mean_size: Side of a typical object in pixels of the resized image. The lambdas of relative coordinates are
            divided by it, so that the box of such an object moves as far as with the same lambda in pixels.
    """

    def relative(step_size: float) -> Postprocessing:
        return refined_with(paper, coordinates="relative", step_size=step_size / mean_size)

    by_both = replace(paper.nms, ranking="score_times_iou")
    return {
        "the paper's": paper,
        "lambda 2": refined_with(paper, step_size=2.0),
        "NMS ranked by class score × IoU": replace(paper, nms=by_both),
        "the best box on the way": refined_with(paper, step_policy="best"),
        "relative coordinates, the same lambda": relative(paper.refinement.step_size),
        "relative coordinates, lambda 1": relative(1.0),
        "relative coordinates, lambda 2": relative(2.0),
        "lambda 2, halved where the IoU would fall": refined_with(paper, step_policy="backtracking", step_size=2.0),
        "refined before NMS": replace(paper, refine_before_nms=True),
        "final score × IoU": replace(paper, final_score="class_times_iou"),
        "NMS by class score × IoU and relative coordinates, lambda 1": replace(relative(1.0), nms=by_both),
    }


@torch.no_grad()
def detect(
    detector: IoUNet, batches: Iterable[Batch], postprocessing: Postprocessing, *, device: torch.device
) -> Found:
    """Detect the objects of a whole data set with one variant of postprocessing."""
    detector.eval()
    found: Found = []
    for images, targets in batches:
        features = detector.extract([image.to(device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        detections = postprocess(candidates, postprocessing, refine=partial(detector.refine, features))
        found += found_in(features, detections, targets)
    return found


@torch.no_grad()
def reproduce(
    detector: IoUNet, batches: Iterable[Batch], variants: Iterable[Postprocessing], *, device: torch.device
) -> Reproduction:
    """Detect once and measure everything on the same candidates.

    Args:
        detector: Is set to evaluation mode.
        batches: (images, targets) as yielded by `iounet.data.eval_loader`.
        variants: Variants of postprocessing. Equal variants run once, and so does an NMS that several variants share.
        device: Device to run on.
    """
    detector.eval()
    paper = table_rows(detector.postprocessing)[REFINED]
    # The curve shows the effect of every further step, so refinement must not stop early.
    endless = replace(paper.refinement, num_steps=NUM_STEPS, early_stop=0.0, degeneration=-torch.inf)
    measured = _Measured({variant: [] for variant in variants})
    for images, targets in batches:
        stopwatch = Stopwatch(device)
        images = [image.to(device, non_blocking=True) for image in images]
        with stopwatch("backbone and pyramid"):
            features = detector.extract(images)
        with stopwatch("region proposals"):
            proposals = detector.propose(features)
        with stopwatch("boxes, scores, predicted IoUs"):
            candidates = detector.detect(features, proposals)
        survivors: dict[str, Sequence[Detections]] = {BEFORE_NMS: candidates}
        suppress = _SuppressOnce(candidates)
        for row, options in table_rows(paper).items():
            if row != REFINED:
                with stopwatch(row):
                    survivors[row] = suppress(candidates, options.nms)
        for variant, found in measured.found.items():
            refine: Refine = partial(detector.refine, features)
            if variant == paper:
                refine = stopwatch(f"refinement, {paper.refinement.num_steps} steps")(refine)
            found += found_in(features, postprocess(candidates, variant, refine, suppress), targets)
        for found, refined in zip(
            measured.optimized, detector.refinement_path(features, survivors[GUIDED], endless), strict=True
        ):
            found += found_in(features, refined, targets)
        for found, regressed in zip(
            measured.regressed, _regression_path(detector, features, survivors[GUIDED]), strict=True
        ):
            found += found_in(features, regressed, targets)
        for row, of_batch in survivors.items():
            for target, (_, left) in zip(targets, found_in(features, of_batch, targets), strict=True):
                # For each object, the IoU of the best box of its class.
                ious = best_iou(target["boxes"], target["labels"], left.boxes, left.labels)
                measured.surviving.setdefault(row, []).append(ious)
        measured.matches += match_candidates(features, candidates, targets)
        for stage, seconds in stopwatch.seconds.items():
            measured.seconds.setdefault(stage, []).append(seconds / len(images))
    return measured.finished()


class _SuppressOnce:
    """A `suppress_each` that runs each NMS on a batch's candidates only once."""

    def __init__(self, candidates: Sequence[Detections]):
        self._candidates = candidates
        self._kept: dict[NMSOptions, Sequence[Detections]] = {}

    def __call__(self, boxes: Sequence[Detections], options: NMSOptions) -> Sequence[Detections]:
        if boxes is not self._candidates:  # refined boxes
            return suppress_each(boxes, options)
        if options not in self._kept:
            self._kept[options] = suppress_each(boxes, options)
        return self._kept[options]


@dataclass
class _Measured:
    """Lists that grow batch by batch and become a `Reproduction`."""

    found: dict[Postprocessing, Found]
    optimized: list[Found] = field(default_factory=lambda: [[] for _ in range(NUM_STEPS + 1)])
    regressed: list[Found] = field(default_factory=lambda: [[] for _ in range(NUM_STEPS + 1)])
    matches: list[Match] = field(default_factory=list)
    surviving: dict[str, list[Tensor]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def finished(self) -> Reproduction:
        surviving = {row: torch.cat(parts) for row, parts in self.surviving.items()}
        candidates = joined(self.matches)
        return Reproduction(self.found, self.optimized, self.regressed, *candidates, surviving, self.seconds)


def _regression_path(
    detector: IoUNet, features: ImageFeatures, detections: Sequence[Detections]
) -> Iterator[Sequence[Detections]]:
    yield detections
    for _ in itertools.repeat(None, NUM_STEPS):
        if any(map(len, detections)):
            boxes = detector.roi_heads.regress(
                features.maps,
                [of_image.boxes for of_image in detections],
                [of_image.labels for of_image in detections],
                features.sizes,
            )
            detections = [replace(of_image, boxes=moved) for of_image, moved in zip(detections, boxes, strict=True)]
        yield detections
