"""Pictures of the first images of a run, with their boxes before and after refinement."""

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
        folder: of the pictures; made when the first is drawn.
        images: image id → file, of all images of the run.
        number: how many of them are drawn.
        categories: of the refiner.
        truth: the objects; None: they are not known.
    """

    folder: Path
    images: dict[Any, Path]
    number: int
    categories: list[dict]
    truth: GroundTruth | None = None

    @cached_property
    def paths(self) -> dict[Any, Path]:
        """Image id → picture; named after the image, with its number where several images have that name."""
        num_named = Counter(path.stem for path in self.images.values())
        paths = {}
        for count, (image_id, path) in enumerate(islice(self.images.items(), max(self.number, 0)), start=1):
            name = path.stem
            while num_named[name] > 1 or (name != path.stem and name in num_named):
                name = f"{name}_{count}"
            paths[image_id] = self.folder / f"{name}.png"
        return paths

    def draw(self, refined: RefinedImage) -> None:
        """Draws an image if it is one of the first."""
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
    """Of boxes [N, 4] those without a negative width or height, as a file may give them: bool [N]."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(1)
