"""The images of a label set for training, whichever form its files are in."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .coco import SeededDataset, Transforms, transformed
from .images import read_image
from .labels import LabelSet


class LabeledImages(SeededDataset):
    """Some images of a label set with their boxes, as :class:`CocoDataset` gives them; crowds are left out.

    Args:
        labels: boxes and images.
        images: which of them, by index.
        transforms: as of :class:`CocoDataset`.

    Raises:
        DataError: on access, if an image cannot be read.
    """

    def __init__(self, labels: LabelSet, images: Sequence[int], transforms: Transforms) -> None:
        self._paths = [labels.images[image].path for image in images]
        self._keys = [labels.images[image].key for image in images]
        self._transforms = transforms
        label_of = {name: label for label, name in enumerate(labels.class_names, start=1)}
        position = {image: position for position, image in enumerate(images)}
        self._boxes: list[list[Sequence[float]]] = [[] for _ in images]
        self._labels: list[list[int]] = [[] for _ in images]
        for box in labels.boxes:
            if box.image in position and not box.crowd:
                self._boxes[position[box.image]].append(box.box)
                self._labels[position[box.image]].append(label_of[box.class_name])

    def __len__(self) -> int:
        return len(self._paths)

    def _load(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        target = {
            "boxes": torch.tensor(self._boxes[index], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(self._labels[index], dtype=torch.int64),
            "image_id": self._keys[index],
        }
        return transformed(read_image(self._paths[index]), target, self._transforms)
