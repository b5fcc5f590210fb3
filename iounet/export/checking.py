"""How far an exported file's answers lie from PyTorch's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..onnx import OnnxRefiner
from ..refiner import IoURefiner

MAX_PIXELS = 0.05
MAX_IOU = 1e-3
BOXES_PER_IMAGE = 60
# Of pixels that show nothing: (height, width).
RANDOM_SIZES = ((240, 320), (512, 300), (97, 1000), (40, 40))


@dataclass(frozen=True)
class Difference:
    """The largest differences between two refiners over some images.

    Attributes:
        boxes: number of boxes.
        pixels: between an edge of two refined boxes, in pixels of the image.
        ious: between two predicted IoUs, before refinement or after.
        other_stops: number of boxes whose ascent ended for another reason.
    """

    boxes: int
    pixels: float
    ious: float
    other_stops: int

    @property
    def passes(self) -> bool:
        return self.pixels <= MAX_PIXELS and self.ious <= MAX_IOU


def compare(refiner: IoURefiner, exported: OnnxRefiner, images: Iterable[np.ndarray], seed: int = 0) -> Difference:
    """Refines the same boxes by both: half of them anywhere, half of them around the detector's own detections.

    Labels are drawn at random, "not known" among them; some boxes reach beyond the image or have no area inside it.

    Args:
        images: uint8 [H, W, 3], RGB.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes_seen, pixels, ious, other_stops = 0, 0.0, 0.0, 0
    for image in images:
        boxes = _some_boxes(refiner, image, generator)
        labels = torch.randint(len(refiner.categories) + 1, (len(boxes),), generator=generator)
        expected = refiner.refine(image, boxes, labels)
        found = exported.refine(image, boxes.numpy(), labels.numpy())
        boxes_seen += len(boxes)
        pixels = max(pixels, _largest(expected.boxes, found.boxes))
        ious = max(ious, _largest(expected.ious_before, found.ious_before), _largest(expected.ious, found.ious))
        other_stops += int((expected.stops.numpy() != found.stops).sum())
    return Difference(boxes_seen, pixels, ious, other_stops)


def compare_detections(refiner: IoURefiner, path: str | Path, images: Iterable[np.ndarray]) -> Difference:
    """Detects in the same images by a detector's ONNX file and by PyTorch.

    Returns:
        The differences of boxes, scores and predicted IoUs, scores among the latter. ``other_stops`` counts detections
        that the other does not have; those of an image are compared if both have the same labels.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    count, pixels, values, others = 0, 0.0, 0.0, 0
    for image in images:
        floats = torch.from_numpy(image).permute(2, 0, 1) / 255
        (expected,) = refiner.detector([floats.to(refiner.device)])
        boxes, labels, scores, ious = session.run(None, {"image": floats[None].numpy()})
        count += len(expected)
        if not np.array_equal(expected.labels.numpy(), labels):
            others += max(len(labels), len(expected))
            continue
        pixels = max(pixels, _largest(expected.boxes, boxes))
        values = max(values, _largest(expected.scores, scores), _largest(expected.ious, ious))
    return Difference(count, pixels, values, others)


def random_images(seed: int = 0) -> Iterator[np.ndarray]:
    """Smooth noise of the sizes :data:`RANDOM_SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    for size in RANDOM_SIZES:
        coarse = torch.rand(1, 3, 12, 12, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0]
        yield (smooth * 255).byte().permute(1, 2, 0).numpy()


def _some_boxes(refiner: IoURefiner, image: np.ndarray, generator: torch.Generator) -> Tensor:
    height, width = image.shape[:2]
    half = BOXES_PER_IMAGE // 2
    ends = torch.tensor([width, height])
    centers = torch.rand(half, 2, generator=generator) * ends * 1.1
    sizes = torch.rand(half, 2, generator=generator) * ends / 2 + 2
    anywhere = torch.cat([centers - sizes / 2, centers + sizes / 2], 1)
    detections, _ = refiner.detect(image)
    if not len(detections):
        return anywhere
    around = detections.boxes[torch.randint(len(detections), (half,), generator=generator)]
    scale = (around[:, 2:] - around[:, :2]).repeat(1, 2)
    return torch.cat([anywhere, around + 0.1 * scale * torch.randn(half, 4, generator=generator)])


def _largest(expected: Tensor, found: np.ndarray) -> float:
    return float(np.abs(expected.numpy() - found).max(initial=0.0))
