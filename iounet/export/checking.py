"""Compare the results of exported files with those of PyTorch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..onnx import OnnxRefiner
from ..refiner import IoURefiner
from ..refiner.results import find_images

# Tolerances of the edges of boxes and of predicted IoUs.
MAX_PIXELS = 0.05
MAX_IOU = 1e-3
# Share of the boxes that may exceed the tolerances. Rounding can change where a box on no object ends up: even in
# PyTorch, such a box ends up elsewhere if its start is shifted by a thousandth of a pixel.
MAX_BEYOND = 0.005
BOXES_PER_IMAGE = 60
# (height, width) of the random images.
RANDOM_SIZES = ((240, 320), (512, 300), (97, 1000), (40, 40))


@dataclass(frozen=True)
class Difference:
    """The largest differences between two refiners over some images.

    Attributes:
        boxes: number of boxes.
        pixels: largest difference between edges of refined boxes, in pixels of the image.
        ious: largest difference between predicted IoUs, before or after refinement.
        beyond: number of boxes that differ by more than `MAX_PIXELS` or `MAX_IOU`.
        others: number of boxes that stopped for different reasons or, for detectors, that only one of the two detects.
    """

    boxes: int = 0
    pixels: float = 0.0
    ious: float = 0.0
    beyond: int = 0
    others: int = 0

    @property
    def passes(self) -> bool:
        return self.beyond + self.others <= MAX_BEYOND * self.boxes

    def __add__(self, other: "Difference") -> "Difference":
        pixels, ious = max(self.pixels, other.pixels), max(self.ious, other.ious)
        counts = (getattr(self, name) + getattr(other, name) for name in ("beyond", "others"))
        return Difference(self.boxes + other.boxes, pixels, ious, *counts)

    @classmethod
    def of(cls, boxes: list[np.ndarray], ious: list[tuple[np.ndarray, np.ndarray]], others: int) -> "Difference":
        """Compare two arrays of boxes [N, 4], and pairs of arrays of IoUs or scores [N]."""
        pixels = np.abs(boxes[0] - boxes[1]).max(1)
        by_box = np.max([np.abs(one - two) for one, two in ious], axis=0)
        beyond = int(((pixels > MAX_PIXELS) | (by_box > MAX_IOU)).sum())
        return cls(len(pixels), float(pixels.max(initial=0)), float(by_box.max(initial=0)), beyond, others)


# (image, uint8 [H, W, 3]; boxes [N, 4]; labels [N]) → (refined boxes, IoUs before, IoUs after, stops).
Answers = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def answers_of(exported: OnnxRefiner) -> Answers:
    def answers(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        refined = exported.refine(image, boxes, labels)
        return refined.boxes, refined.ious_before, refined.ious, refined.stops

    return answers


def compare(refiner: IoURefiner, answers: Answers, images: Iterable[np.ndarray], seed: int = 0) -> Difference:
    """Refine the same random boxes with a refiner and with its exported file.

    Half of the boxes lie anywhere, half lie around the detector's own detections. Labels are random and include 0. Some
    boxes reach beyond the image or have no area inside it.

    Args:
        refiner: the refiner in PyTorch.
        answers: function that runs the exported file.
        images: RGB images, uint8 [H, W, 3].
        seed: seed of the boxes and labels.

    Returns:
        The largest differences over all images.
    """
    generator = torch.Generator().manual_seed(seed)
    total = Difference()
    for image in images:
        boxes = _some_boxes(refiner, image, generator)
        labels = torch.randint(len(refiner.categories) + 1, (len(boxes),), generator=generator)
        expected = refiner.refine(image, boxes, labels)
        found, ious_before, ious, stops = answers(image, boxes.numpy(), labels.numpy())
        total += Difference.of(
            [expected.boxes.numpy(), found],
            [(expected.ious_before.numpy(), ious_before), (expected.ious.numpy(), ious)],
            int((expected.stops.numpy() != stops).sum()),
        )
    return total


def print_comparison(compare_images: Callable[[Iterable[np.ndarray]], Difference], folder: Path) -> bool:
    """Print the differences on random images and on the photographs in a folder, and return whether both pass.

    Raises:
        DataError: the folder is missing or contains no images.
    """
    names = ("boxes", "largest px", "largest IoU", "beyond", "others")
    print("".join(f"{name:>14}" for name in ("", *names)))
    passes = True
    for name, images in (("random images", random_images()), ("photographs", _photographs(find_images([folder])))):
        found = compare_images(images)
        passes &= found.passes
        print(
            f"{name:>14}{found.boxes:>14}{found.pixels:>14.4f}{found.ious:>14.5f}{found.beyond:>14}{found.others:>14}"
        )
    verdict = "passed" if passes else "FAILED"
    limits = f"differ by more than {MAX_PIXELS} px or an IoU of {MAX_IOU} (beyond), or in outcome (others)"
    print(f"{verdict}: at most {MAX_BEYOND:.1%} of the boxes may {limits}")
    return passes


def _photographs(files: Iterable[Path]) -> Iterator[np.ndarray]:
    for file in files:
        with Image.open(file) as image:
            yield np.array(image.convert("RGB"))


def compare_detections(refiner: IoURefiner, path: str | Path, images: Iterable[np.ndarray]) -> Difference:
    """Detect objects in the same images with PyTorch and with a detector's ONNX file.

    Returns:
        The differences; ``ious`` includes differences between scores. If the labels in an image differ, all its
            detections count as ``others``.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    total = Difference()
    for image in images:
        floats = torch.from_numpy(image).permute(2, 0, 1) / 255
        (expected,) = refiner.detector([floats.to(refiner.device)])
        boxes, labels, scores, ious = session.run(None, {"image": floats[None].numpy()})
        if np.array_equal(expected.labels.numpy(), labels):
            values = [(expected.scores.numpy(), scores), (expected.ious.numpy(), ious)]
            total += Difference.of([expected.boxes.numpy(), boxes], values, 0)
        else:
            total += Difference(len(expected), others=max(len(labels), len(expected)))
    return total


def random_images(seed: int = 0) -> Iterator[np.ndarray]:
    """Yield images of smooth noise in the sizes `RANDOM_SIZES`, uint8 [H, W, 3]."""
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
