"""Sources of boxes for many image files: the refiner's own detector, or the results file of another detector.

A source refines the boxes of a batch of images, and converts the records of all images to COCO results.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ..checks import BoxWarning
from ..detections import Detections
from ..errors import DataError
from .facts import box_report, check_classes, class_report
from .matching import images_of
from .refiner import IoURefiner
from .results import DetectionsFile, ImageIndex

# The outcome of a finished image: ``image_id``, ``height`` and ``width`` in pixels, and lists over its K detections:
# ``category_ids``, ``scores``, ``before`` and ``after`` (``[x, y, width, height]`` in pixels of the image),
# ``ious_before`` and ``ious`` (predicted). In a journal, also the ``file`` of the image.
Record = dict[str, Any]


@dataclass(frozen=True)
class RefinedImage:
    """An image with its detections before and after refinement.

    Attributes:
        image_id: id of the image in the results.
        image (Tensor[3, H, W]): RGB, uint8.
        before: detections before refinement, in pixels of the image.
        after: the same detections after refinement.
        category_ids: category id of each detection.
    """

    image_id: Any
    image: Tensor
    before: Detections
    after: Detections
    category_ids: list[Any]

    def record(self) -> Record:
        height, width = self.image.shape[1:]
        before, after = (box_convert(of.boxes, "xyxy", "xywh").tolist() for of in (self.before, self.after))
        return {
            "image_id": self.image_id,
            "height": height,
            "width": width,
            "category_ids": self.category_ids,
            "scores": self.after.scores.tolist(),
            "before": before,
            "after": after,
            "ious_before": self.before.ious.tolist(),
            "ious": self.after.ious.tolist(),
        }


class Source(Protocol):
    """Boxes to refine.

    Attributes:
        paths: image id → file, for images with boxes.
        facts: facts about the images and boxes for the user, heading → text.
        class_names: category id → name; ids without a name are missing.
    """

    paths: dict[Any, Path]
    facts: dict[str, str]
    class_names: dict[Any, str]

    def refine(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[RefinedImage]:
        """Refine the boxes of a batch of images."""

    def results(self, records: Iterable[Record], which: str, *, rescore: bool = False) -> Iterable[dict[str, Any]]:
        """Return COCO results.

        Args:
            records: records of all images.
            which: "before" or "after" refinement.
            rescore: multiply each score by the predicted IoU.
        """

    def listed_id(self, image_id: Any) -> Any:
        """Return the annotation file's id of an image."""

    def current(self, record: Record) -> Record | None:
        """Return an earlier record with the current id of its image; None if the image is not part of this run."""


class OwnBoxes:
    """Detections by the IoU-Net itself.

    Args:
        refiner: the IoU-Net.
        files: image files.
        index: annotation file with the ids of the images; None numbers the images from 1.

    Raises:
        DataError: the annotation file lacks an image.
    """

    def __init__(self, refiner: IoURefiner, files: list[Path], index: ImageIndex | None):
        self._refiner = refiner
        self._category_ids = [category["id"] for category in refiner.categories]
        self.class_names = _names_by_id(refiner.categories)
        self.facts: dict[str, str] = {}
        self.paths: dict[Any, Path] = dict(enumerate(files, start=1))
        if index is not None:
            listed = {path: id_ for id_, found in images_of(files, index.file_names).items() for path in found}
            unlisted = [path for path in files if path not in listed]
            if unlisted:
                raise DataError(
                    f"{index.path} does not list {len(unlisted)} of the images, such as {unlisted[0]}; "
                    "omit --annotations to number the images"
                )
            self.paths = {listed[path]: path for path in files}
        self._id_of = {str(path.absolute()): id_ for id_, path in self.paths.items()}

    def refine(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[RefinedImage]:
        """Detect objects in a batch of images and refine their boxes."""
        return [
            RefinedImage(
                image_id, image, before, after, [self._category_ids[label - 1] for label in after.labels.tolist()]
            )
            for image_id, image, (before, after) in zip(
                image_ids, images, self._refiner.detect_batch(images), strict=True
            )
        ]

    def results(self, records: Iterable[Record], which: str, *, rescore: bool = False) -> Iterator[dict[str, Any]]:
        """Yield COCO results "before" or "after" refinement, image by image."""
        for record in records:
            columns = (record[name] for name in ("category_ids", which, "scores", "ious_before", "ious"))
            for category_id, bbox, score, iou_before, iou in zip(*columns, strict=True):
                yield {
                    "image_id": record["image_id"],
                    "category_id": category_id,
                    "bbox": bbox,
                    "score": times_iou(score, iou) if rescore else score,
                    "predicted_iou_before": iou_before,
                    "predicted_iou": iou,
                }

    def listed_id(self, image_id: Any) -> Any:
        """Return the annotation file's id of an image."""
        return image_id

    def current(self, record: Record) -> Record | None:
        """Return an earlier record with the current id of its image; None if the image is not part of this run."""
        # Without an annotation file, ids change with the list of images.
        return record | {"image_id": self._id_of[record["file"]]} if record["file"] in self._id_of else None


class OtherBoxes:
    """Detections of another detector.

    Args:
        refiner: the refiner.
        detections: results file of the other detector.
        class_agnostic: refine all boxes regardless of their class; otherwise, boxes of classes that the refiner does
            not know are left unchanged.

    Raises:
        DataError: the refiner knows none of the classes, or boxes are not in pixels.
    """

    def __init__(self, refiner: IoURefiner, detections: DetectionsFile, *, class_agnostic: bool):
        self._refiner = refiner
        self._file = detections
        self._class_agnostic = class_agnostic
        self.paths = detections.paths
        self.class_names = detections.class_names or _names_by_id(refiner.categories)
        if not class_agnostic:
            check_classes(detections, refiner.categories)
        self._rows: dict[Any, list[int]] = {image_id: [] for image_id in self.paths}
        for row, result in enumerate(detections.results):
            if result["image_id"] in self._rows and (class_agnostic or detections.labels[result["category_id"]]):
                self._rows[result["image_id"]].append(row)
        self.facts = {"classes": class_report(detections, refiner.categories, class_agnostic=class_agnostic)}
        if odd := box_report(detections):
            self.facts["boxes"] = odd

    def refine(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[RefinedImage]:
        """Refine the boxes of a batch of images."""
        results = [[self._file.results[row] for row in self._rows[image_id]] for image_id in image_ids]
        category_ids = [[result["category_id"] for result in of_image] for of_image in results]
        boxes = [as_boxes([result["bbox"] for result in of_image]) for of_image in results]
        labels = [
            [0 if self._class_agnostic else self._file.labels[id_] for id_ in of_image] for of_image in category_ids
        ]
        scores = [[float(result["score"]) for result in of_image] for of_image in results]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoxWarning)  # `facts` warns once for all images
            refined = self._refiner.refine_batch(images, boxes, labels, scores)
        return [
            RefinedImage(image_id, image, replace(after, boxes=corners, ious=after.ious_before), after, ids)
            for image_id, image, corners, after, ids in zip(
                image_ids, images, boxes, refined, category_ids, strict=True
            )
        ]

    def results(self, records: Iterable[Record], which: str, *, rescore: bool = False) -> list[dict[str, Any]]:
        """Return COCO results "before" or "after" refinement, in the order and with the keys of the given results."""
        results = list(self._file.results)
        for record in records if which == "after" else ():
            columns = (record[name] for name in ("before", "after", "ious_before", "ious"))
            for row, before, after, iou_before, iou in zip(self._rows[record["image_id"]], *columns, strict=True):
                given = results[row]
                results[row] = given | {
                    "bbox": given["bbox"] if after == before else after,  # an unmoved box keeps its exact numbers
                    "score": times_iou(given["score"], iou) if rescore else given["score"],
                    "predicted_iou_before": iou_before,
                    "predicted_iou": iou,
                }
        return results

    def listed_id(self, image_id: Any) -> Any:
        """Return the annotation file's id of an image."""
        return self._file.listed_ids.get(image_id, image_id)

    def current(self, record: Record) -> Record | None:
        """Return an earlier record with the current id of its image; None if the image is not part of this run."""
        path = self.paths.get(record["image_id"])
        return record if path is not None and str(path.absolute()) == record["file"] else None


def times_iou(score: float, iou: float) -> float:
    """Multiply the score of a box by its predicted IoU, clamped to [0, 1]."""
    return score * min(max(iou, 0.0), 1.0)


def _names_by_id(categories: list[dict]) -> dict[Any, str]:
    return {category["id"]: category["name"] for category in categories}


def as_boxes(bboxes: list[list[float]]) -> Tensor:
    """Convert ``[x, y, width, height]`` lists to boxes xyxy, float32 [N, 4]."""
    return box_convert(torch.tensor(bboxes, dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")
