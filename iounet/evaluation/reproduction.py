"""The paper's tables and figures of one detector, measured in one pass over a data set."""

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..detections import Detections
from ..modeling import ImageFeatures, IoUNet, Postprocessing, to_original
from .correlation import best_iou
from .evaluate import GUIDED, REFINED, table_rows

STEP_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
NUM_STEPS = 10
BEFORE_NMS = "before NMS"

# Detections by image id, as a data set is gone through.
Found = list[tuple[int, Detections]]


@dataclass(frozen=True)
class Reproduction:
    """What one pass measures; boxes in pixels of the original images.

    Attributes:
        found: of each way of postprocessing.
        optimized: after 0, 1, ..., NUM_STEPS steps of gradient ascent that never stops early.
        regressed: after as many repetitions of box regression, from the same boxes.
        ious, scores, predicted_ious (Tensor[N]): of all candidates before NMS: IoU with the best object of their class,
            class score, predicted IoU.
        surviving: row → for every object of the data set the IoU of the best box of its class that is left.
        seconds: stage → seconds an image of each batch.
    """

    found: dict[Postprocessing, Found]
    optimized: list[Found]
    regressed: list[Found]
    ious: Tensor
    scores: Tensor
    predicted_ious: Tensor
    surviving: dict[str, Tensor]
    seconds: dict[str, list[float]]


def step_size_rows(paper: Postprocessing) -> dict[str, Postprocessing]:
    """AP against lambda."""
    return {f"{step_size:g}": replace(paper, step_size=step_size) for step_size in STEP_SIZES}


def beyond_rows(paper: Postprocessing, mean_size: float) -> dict[str, Postprocessing]:
    """What the paper does, changes to it, each alone, and the two together that help most.

    Args:
        mean_size: side of a typical object in pixels of the resized image: the lambdas of relative coordinates are
            divided by it, so that such an object moves as far as it does by the same lambda in pixels.
    """

    def relative(step_size: float) -> Postprocessing:
        return replace(paper, coordinates="relative", step_size=step_size / mean_size)

    return {
        "the paper's": paper,
        "lambda 2": replace(paper, step_size=2.0),
        "NMS ranked by class score × IoU": replace(paper, ranking="score_times_iou"),
        "the best box on the way": replace(paper, accept="best"),
        "relative coordinates, the same lambda": relative(paper.step_size),
        "relative coordinates, lambda 1": relative(1.0),
        "relative coordinates, lambda 2": relative(2.0),
        "lambda 2, halved where the IoU would fall": replace(paper, accept="rising", step_size=2.0),
        "refined before NMS": replace(paper, refine_before_nms=True),
        "final score × IoU": replace(paper, final_score="class_times_iou"),
        "NMS by class score × IoU and relative coordinates, lambda 1": replace(
            relative(1.0), ranking="score_times_iou"
        ),
    }


@torch.no_grad()
def detect(
    detector: IoUNet,
    batches: Iterable[tuple[list[Tensor], list[dict]]],
    postprocessing: Postprocessing,
    *,
    device: torch.device,
) -> Found:
    """The detections of a whole data set, in one way of postprocessing."""
    detector.eval()
    found: Found = []
    for images, targets in batches:
        features = detector.extract([image.to(device, non_blocking=True) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        image_ids = [target["image_id"] for target in targets]
        found += _named(image_ids, features, detector.postprocess(features, candidates, postprocessing))
    return found


@torch.no_grad()
def reproduce(
    detector: IoUNet,
    batches: Iterable[tuple[list[Tensor], list[dict]]],
    variants: Iterable[Postprocessing],
    *,
    device: torch.device,
) -> Reproduction:
    """Detects once; everything else starts from these candidates.

    Args:
        detector: is left in inference mode, and without CUDA graphs.
        batches: (images, targets) as :func:`iounet.data.eval_loader` yields them.
        variants: of postprocessing; equal ones are done once, as is an NMS that several share.
    """
    detector.eval()
    detector.cuda_graphs = False  # one would be recorded for each variant and size of image
    paper = replace(detector.postprocessing, nms="iou_guided")
    # Without an end: the curve is to show what every further step does.
    endless = replace(paper, refinement_steps=NUM_STEPS, early_stop=0.0, degeneration=-torch.inf)
    measured = _Measured({variant: [] for variant in variants})
    for images, targets in batches:
        image_ids = [target["image_id"] for target in targets]
        stopwatch = _Stopwatch(measured.seconds, len(images), device)
        images = [image.to(device, non_blocking=True) for image in images]
        with stopwatch("backbone and pyramid"):
            features = detector.extract(images)
        with stopwatch("region proposals"):
            proposals = detector.propose(features)
        with stopwatch("boxes, scores, predicted IoUs"):
            candidates = detector.detect(features, proposals)
        survivors = {BEFORE_NMS: candidates}
        suppressed: dict[Postprocessing, list[Detections]] = {}
        for row, postprocessing in table_rows(paper).items():
            if row != REFINED:
                with stopwatch(row):
                    survivors[row] = [detector.suppress(of_image, postprocessing) for of_image in candidates]
                suppressed[_nms_alone(postprocessing)] = survivors[row]
        for variant, found in measured.found.items():
            if variant.refine_before_nms:
                detections = detector.postprocess(features, candidates, variant)
            else:
                nms = _nms_alone(variant)
                if nms not in suppressed:
                    suppressed[nms] = [detector.suppress(of_image, variant) for of_image in candidates]
                timed = stopwatch(f"refinement, {paper.refinement_steps} steps") if variant == paper else nullcontext()
                with timed:
                    detections = detector.finish(features, suppressed[nms], variant)
            found += _named(image_ids, features, detections)
        for found, refined in zip(
            measured.optimized, detector.refinement_path(features, survivors[GUIDED], endless), strict=True
        ):
            found += _named(image_ids, features, [of_image for of_image, _ in refined])
        for found, detections in zip(
            measured.regressed, _regression_path(detector, features, survivors[GUIDED]), strict=True
        ):
            found += _named(image_ids, features, detections)
        for row, detections in survivors.items():
            for target, of_image in zip(targets, to_original(features, detections), strict=True):
                left = of_image.to("cpu")
                # Seen from the objects: the IoU with the best box of their class.
                ious = best_iou(target["boxes"], target["labels"], left.boxes, left.labels)
                measured.surviving.setdefault(row, []).append(ious)
        for target, of_image in zip(targets, to_original(features, candidates), strict=True):
            everything = of_image.to("cpu")
            ious = best_iou(everything.boxes, everything.labels, target["boxes"], target["labels"])
            measured.matches.append((ious, everything.scores, everything.ious))
    return measured.finished()


def _nms_alone(postprocessing: Postprocessing) -> Postprocessing:
    """What :meth:`IoUNet.suppress` depends on: ways that differ in their refinement share their NMS."""
    names = ("nms", "nms_threshold", "ranking", "detections_per_image")
    return Postprocessing(**{name: getattr(postprocessing, name) for name in names})


@dataclass
class _Measured:
    """The lists that become a Reproduction."""

    found: dict[Postprocessing, Found]
    optimized: list[Found] = field(default_factory=lambda: [[] for _ in range(NUM_STEPS + 1)])
    regressed: list[Found] = field(default_factory=lambda: [[] for _ in range(NUM_STEPS + 1)])
    matches: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    surviving: dict[str, list[Tensor]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def finished(self) -> Reproduction:
        ious, scores, predicted_ious = (torch.cat(parts) for parts in zip(*self.matches, strict=True))
        surviving = {row: torch.cat(parts) for row, parts in self.surviving.items()}
        return Reproduction(
            self.found, self.optimized, self.regressed, ious, scores, predicted_ious, surviving, self.seconds
        )


class _Stopwatch:
    def __init__(self, seconds: dict[str, list[float]], num_images: int, device: torch.device):
        self._seconds = seconds
        self._num_images = num_images
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self._seconds.setdefault(stage, []).append((time.perf_counter() - start) / self._num_images)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _named(image_ids: list[int], features: ImageFeatures, detections: list[Detections]) -> Found:
    return [
        (image_id, of_image.to("cpu"))
        for image_id, of_image in zip(image_ids, to_original(features, detections), strict=True)
    ]


def _regression_path(
    detector: IoUNet, features: ImageFeatures, detections: list[Detections]
) -> Iterator[list[Detections]]:
    yield detections
    for _ in itertools.repeat(None, NUM_STEPS):
        if sum(map(len, detections)):
            boxes = detector.roi_heads.regress(
                features.maps,
                [of_image.boxes for of_image in detections],
                [of_image.labels for of_image in detections],
                features.sizes,
            )
            detections = [
                of_image.with_boxes(moved, of_image.ious) for of_image, moved in zip(detections, boxes, strict=True)
            ]
        yield detections
