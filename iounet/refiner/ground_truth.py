"""Compare boxes before and after refinement with the objects of an annotation file."""

from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..boxes import best_match
from ..data import read_image
from ..evaluation import CocoEvaluator
from ..visualization import BoxChange, most_changed
from .matching import images_of
from .results import ImageIndex
from .sources import Record, Source, as_boxes


class GroundTruth:
    """The objects of an annotation file in the given images.

    Args:
        index: the annotation file.
        files: the given images.
        source: the detections.
        exif: as in `iounet.data.read_image`.

    Attributes:
        class_names: label l is ``class_names[l - 1]``; labels number the file's categories from 1, in ascending
            order of id.

    Raises:
        ValueError: the objects cannot be used.
    """

    def __init__(self, index: ImageIndex, files: list[Path], source: Source, *, exif: bool = False):
        content = index.content
        self._source = source
        self._exif = exif
        at_hand = {id_ for id_, found in images_of(files, index.file_names).items() if found}
        images = [image for image in content["images"] if image["id"] in at_hand]
        if not all(isinstance(entry, dict) for entry in content["annotations"]):
            raise ValueError("an annotation is not a JSON object")
        objects = [entry for entry in content["annotations"] if entry.get("image_id") in at_hand]
        if any(not isinstance(entry.get("bbox"), list) for entry in objects):
            raise ValueError("an annotation has no bbox")
        self._evaluate = CocoEvaluator({**content, "images": images, "annotations": objects})
        self._image_ids = at_hand
        ids = sorted(index.class_names)
        self.class_names = [index.class_names[id_] for id_ in ids]
        self._label_of = {id_: label for label, id_ in enumerate(ids, start=1)}
        self._objects: dict[Any, list[dict[str, Any]]] = {}
        for entry in objects:
            if not entry.get("iscrowd", 0):
                self._objects.setdefault(entry["image_id"], []).append(entry)

    @classmethod
    def read(cls, index: ImageIndex, files: list[Path], source: Source, *, exif: bool = False) -> "GroundTruth | None":
        """Return the objects of an annotation file; None if there are none or, after a warning, if they are invalid."""
        if not index.content.get("annotations"):
            return None
        try:
            return cls(index, files, source, exif=exif)
        except (ValueError, KeyError, TypeError) as error:  # refinement does not need the objects
            print(
                f"AP is not computed: the objects of {index.path} cannot be used ({error}); "
                f"run python -m iounet.data.check {index.path} to list the problems"
            )
            return None

    def ap(self, results: Iterable[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """Return the figures that `CocoEvaluator` computes, and the number of results that were left out.

        Results are left out if the annotation file lacks their image or class, or if their width or height is negative.
        """
        results = [result | {"image_id": self._source.listed_id(result["image_id"])} for result in results]
        scored = [
            result
            for result in results
            if result["image_id"] in self._image_ids
            and result["category_id"] in self._label_of
            and min(result["bbox"][2:]) >= 0
        ]
        return self._evaluate(scored), len(results) - len(scored)

    def most_changed(self, records: Iterable[Record], num_boxes: int = 4) -> list[BoxChange]:
        """Return the boxes whose IoU with their object rose most and fell most in refinement.

        Only boxes with an IoU of at least 0.5 before refinement count. Only images of the returned boxes are read.
        """
        return [
            BoxChange(
                read_image(self._source.paths[image_id], exif=self._exif).as_subclass(Tensor),
                path,
                ious,
                truth,
                f"{self.class_names[label - 1]}, {self._source.paths[image_id].name}",
            )
            for _, image_id, label, path, truth, ious in most_changed(
                self._changes(records), num_boxes, gain=itemgetter(0)
            )
        ]

    def _changes(self, records: Iterable[Record]) -> Iterator[tuple[float, Any, int, Tensor, Tensor, Tensor]]:
        """Yield gain, image id, label, boxes before and after, object and predicted IoUs of each box on an object."""
        for record in records:
            boxes, object_labels = self.objects_in(record["image_id"])
            labels = torch.tensor([self._label_of.get(id_, 0) for id_ in record["category_ids"]], dtype=torch.int64)
            path = torch.stack([as_boxes(record[name]) for name in ("before", "after")])
            ious, matched = best_match(path[0], labels, boxes, object_labels)
            for row in (ious >= 0.5).nonzero()[:, 0].tolist():
                truth = boxes[matched[row]]
                gain = float(box_iou(path[1, row, None], truth[None]) - ious[row])
                predicted = torch.tensor([record["ious_before"][row], record["ious"][row]])
                yield gain, record["image_id"], int(labels[row]), path[:, row], truth, predicted

    def objects_in(self, image_id: Any) -> tuple[Tensor, Tensor]:
        """Return the boxes, xyxy [N, 4], and labels [N] of an image's objects, without crowds."""
        objects = self._objects.get(self._source.listed_id(image_id), [])
        labels = torch.tensor([self._label_of[entry["category_id"]] for entry in objects], dtype=torch.int64)
        return as_boxes([entry["bbox"] for entry in objects]), labels
