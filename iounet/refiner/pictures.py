"""Pictures of the first images of a run with their boxes before and after refinement."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ..evaluation import Example, draw_examples
from .ground_truth import GroundTruth
from .sources import RefinedImage


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run.

    Attributes:
        folder: folder of the pictures, created with the first picture.
        images: image id → file, for all images of the run.
        number: number of images to draw.
        categories: the refiner's categories.
        truth: ground truth, if known.
    """

    folder: Path
    images: dict[Any, Path]
    number: int
    categories: list[dict]
    truth: GroundTruth | None = None

    @cached_property
    def paths(self) -> dict[Any, Path]:
        """Image id → picture, named after the image, with a number appended if several images have the same name."""
        num_named = Counter(path.stem for path in self.images.values())
        paths = {}
        for count, (image_id, path) in enumerate(islice(self.images.items(), max(self.number, 0)), start=1):
            name = path.stem
            while num_named[name] > 1 or (name != path.stem and name in num_named):
                name = f"{name}_{count}"
            paths[image_id] = self.folder / f"{name}.png"
        return paths

    def draw(self, refined: RefinedImage) -> None:
        """Draw an image if it is one of the first ``number`` images."""
        path = self.paths.get(refined.image_id)
        if path is None:
            return
        names = [category["name"] for category in self.categories]
        drawable = _drawable(refined.before.boxes)
        before, after = refined.before[drawable], refined.after[drawable]
        objects = None
        if self.truth is not None:
            boxes, _ = self.truth.objects_in(refined.image_id)
            objects = {"boxes": boxes[_drawable(boxes)]}
        path.parent.mkdir(exist_ok=True)
        draw_examples([Example(refined.image, before, after, objects)], names).save(path)


def _drawable(boxes: Tensor) -> Tensor:
    """Return a mask [N] of the boxes [N, 4] that can be drawn; a file may contain boxes of negative width or height."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(1)
