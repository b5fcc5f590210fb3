"""Detection data sets in COCO format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image

from ..categories import category_differences
from ..errors import DataError
from ..wording import counted
from .annotations import read_annotations
from .images import check_image_size, image_path, read_image
from .transforms import build_transforms


class Sample(NamedTuple):
    """A position in a data set, and the seed of its augmentation."""

    position: int
    seed: int


@dataclass(frozen=True)
class Converted:
    """Labels converted in memory from another format to COCO format.

    Attributes:
        content: the content of a COCO-format file.
        left_out: rule → number of labels left out because they break it.
        command: the command that lists these labels.
    """

    content: dict[str, Any]
    left_out: dict[str, int]
    command: str


class CocoDataset(torch.utils.data.Dataset):
    """The images and boxes of a COCO-format annotation file.

    ``dataset[index]`` is ``(image, target)``. The image is float32 ``[3, H, W]`` in [0, 1]; the target is a dict of

    - ``boxes``: float32 ``[N, 4]``, xyxy in pixels of that image, clipped to it, with a positive area;
    - ``labels``: int64 ``[N]`` in 1..C; label l is the category ``category_ids[l - 1]``;
    - ``image_id``: the image's id in the file.

    Crowd boxes are left out. An image without objects is kept as background (N = 0).

    The augmentation of ``dataset[Sample(position, seed)]`` depends only on that seed, not on the process or on earlier
    calls, and leaves torch's random state unchanged.

    Args:
        annotation_file: COCO-format JSON; with ``converted``, the name of its source, used in messages only.
        image_folder: the folder that ``file_name`` is relative to.
        transforms: ``(image, target) -> (image, target)`` on a uint8 `tv_tensors.Image` and a target whose
            boxes are `tv_tensors.BoundingBoxes`; by default, the image is only converted to float.
        bad_annotations: ``"error"`` refuses a file with unusable boxes, ``"skip"`` leaves those boxes out.
        converted: the content to use instead of reading a file.

    Attributes:
        images: ``{"id", "file_name", "width", "height"}`` of each image, in file order.
        categories: ``{"id", "name"}`` of each category, sorted by id.
        category_ids: the ids in ``categories``.
        class_names: the names in ``categories``.
        is_converted: whether the annotations were converted from another format.
        skipped: rule → number of annotations left out because they break it.
        check_command: the command that lists these annotations.
        clipped: number of boxes that overhang their image and are clipped to it.
        num_objects: number of boxes to learn from, without crowds.

    Raises:
        DataError: on construction, if the annotation file cannot be used or its first image is missing; on access, if
            an image is missing or unreadable, does not have its annotated size, or is outside the folder because of a
            link. To open every image beforehand, which takes minutes, run ``python -m iounet.data.check``.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        *,
        transforms: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]] | None = None,
        bad_annotations: str = "error",
        converted: Converted | None = None,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.transforms = transforms if transforms is not None else build_transforms(train=False)
        content = read_annotations(
            annotation_file,
            bad_annotations=bad_annotations,
            content=None if converted is None else converted.content,
        )
        self.images = content.images
        self.categories = content.categories
        self.category_ids = [category["id"] for category in content.categories]
        self.class_names = [category["name"] for category in content.categories]
        self.is_converted = converted is not None
        self.skipped = content.skipped if converted is None else converted.left_out
        self.check_command = (
            f"python -m iounet.data.check {annotation_file}" if converted is None else converted.command
        )
        self.clipped = content.clipped
        self.num_objects = int((~content.crowd).sum())
        self._content = content
        self._check_image_folder()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Sample) -> tuple[Tensor, dict[str, Any]]:
        if not isinstance(key, Sample):
            return self._load(key)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reseed the training process's CUDA generators.
            torch.default_generator.manual_seed(key.seed)
            return self._load(key.position)

    def describe(self) -> str:
        """Return one line with the numbers of images, objects and classes, and of boxes left out or clipped."""
        numbers = [
            counted(len(self), "image"),
            counted(self.num_objects, "object"),
            counted(len(self.categories), "class", "classes"),
        ]
        notes = [f"{count} left out: {rule}" for rule, count in self.skipped.items()]
        if self.skipped:
            notes.append(f"`{self.check_command}` lists them")
        if self.clipped:
            notes.append(f"{counted(self.clipped, 'box', 'boxes')} clipped to the image")
        return "; ".join([f"{self.annotation_file}: {', '.join(numbers)}", *notes])

    def ground_truth(self, index: int) -> dict[str, Any]:
        """Return the target of an image before augmentation, with boxes in stored pixels. The image is not read."""
        index = range(len(self))[index]  # a negative index counts from the end
        image, content = self.images[index], self._content
        objects = np.arange(content.first[index], content.first[index + 1])
        objects = objects[~content.crowd[objects]]
        corners = content.bboxes[objects]
        corners[:, 2:] += corners[:, :2]
        image_size = image["height"], image["width"]
        return {
            "boxes": clip_boxes_to_image(torch.from_numpy(corners), image_size).float(),
            "labels": torch.from_numpy(content.labels[objects]),
            "image_id": image["id"],
        }

    def as_coco(self) -> dict[str, list[dict[str, Any]]]:
        """Return the file's content without skipped annotations, for pycocotools (``COCO().dataset``).

        Crowds are included, and boxes are not clipped. Missing ``area`` and ``iscrowd``, which COCOeval needs, are
        filled in. Annotations are renumbered from 1, because COCOeval treats a match with id 0 as no match.
        """
        content = self._content
        image_ids = np.repeat([image["id"] for image in self.images], np.diff(content.first))
        columns = (image_ids, content.labels, content.bboxes, content.areas, content.crowd)
        annotations = [
            {
                "id": number,
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image_id, label, bbox, area, crowd) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start=1
            )
        ]
        return {"images": self.images, "annotations": annotations, "categories": self.categories}

    def _check_image_folder(self) -> None:
        if not self.image_folder.is_dir():
            raise DataError(f"{self.image_folder}: no such image folder (for {self.annotation_file}); check the path")
        first = image_path(self.image_folder, self.images[0]["file_name"])
        if not first.is_file():
            raise DataError(
                f"{first}: no such image, but it is the first one in {self.annotation_file}; "
                "give the folder that file_name is relative to"
            )

    def _load(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        annotated = self.images[index]
        path = image_path(self.image_folder, annotated["file_name"])
        image = read_image(path)
        height, width = image.shape[-2:]
        check_image_size(path, width, height, annotated, self.annotation_file)
        target = self.ground_truth(index)
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        image, target = self.transforms(image, {**target, "boxes": boxes})
        # The model needs no tv_tensors, and every operation on one has an overhead.
        return image.as_subclass(Tensor), {**target, "boxes": target["boxes"].as_subclass(Tensor)}


def check_categories(categories: list[dict[str, Any]], dataset: CocoDataset, source: str) -> None:
    """Raise DataError if the categories of ``source`` differ from those of the data set."""
    if categories != dataset.categories:
        raise DataError(
            f"the categories of {source} differ from those of {dataset.annotation_file} "
            f"({category_differences(categories, dataset.categories)}); give files with the same category ids and names"
        )
