"""Refining the boxes of many image files: COCO results in, COCO results out, a record of each image once it is done.

A record is what is known of an image: its ``image_id``, ``height`` and ``width`` in pixels, and in columns over its K
detections ``category_ids``, ``scores``, ``before`` and ``after`` (``[x, y, width, height]`` in pixels of the image),
``ious_before`` and ``ious`` (predicted).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from .data import DataError
from .data.annotations import read_image_list
from .data.journal import Journal
from .data.read_ahead import read_ahead
from .data.results import match_categories, match_images, read_results
from .detections import Detections
from .evaluation import CocoEvaluator, Example
from .refiner import IoURefiner

Record = dict[str, Any]


class Placed(NamedTuple):
    """Detections of an image before and after refinement, in its pixels, and the category id of each."""

    before: Detections
    after: Detections
    category_ids: list[Any]


class OwnBoxes:
    """The detections of the refiner's own detector.

    Args:
        files: the images.
        annotation_file: a COCO-form file that lists them, for their ids; None: they are numbered from 1.

    Attributes:
        paths: image id → file.

    Raises:
        DataError: the annotation file cannot be used, or lacks an image.
    """

    def __init__(self, refiner: IoURefiner, files: list[Path], annotation_file: str | None):
        self._refiner = refiner
        self._category_ids = [category["id"] for category in refiner.categories]
        self.paths: dict[Any, Path] = dict(enumerate(files, start=1))
        if annotation_file is not None:
            ids = {Path(image["file_name"]).name: image["id"] for image in read_image_list(annotation_file)}
            unlisted = [path.name for path in files if path.name not in ids]
            if unlisted:
                raise DataError(
                    f"{annotation_file} does not list {len(unlisted)} of the images, such as {unlisted[0]}; "
                    "leave --annotations out to have the images numbered"
                )
            self.paths = {ids[path.name]: path for path in files}

    def place(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[Placed]:
        """Detects and refines the objects of some images."""
        return [
            Placed(before, after, [self._category_ids[label - 1] for label in after.labels.tolist()])
            for before, after in self._refiner.detect_batch(images)
        ]

    def results(self, records: Iterable[Record], which: str = "after") -> Iterator[dict[str, Any]]:
        """COCO results "before" or "after" refinement, image by image."""
        for record in records:
            columns = (record[name] for name in ("category_ids", which, "scores", "ious_before", "ious"))
            for category_id, bbox, score, iou_before, iou in zip(*columns, strict=True):
                yield {
                    "image_id": record["image_id"],
                    "category_id": category_id,
                    "bbox": bbox,
                    "score": score,
                    "predicted_iou_before": iou_before,
                    "predicted_iou": iou,
                }


class OtherBoxes:
    """The detections of another detector.

    Args:
        files: the images.
        detections_file: its COCO results.
        annotation_file: a COCO-form file with the names of images and categories; None: see
            :func:`iounet.data.results.match_images` and :func:`iounet.data.results.match_categories`.
        class_agnostic: refine all boxes without regard to their class; else those of classes that the refiner does not
            know are left as they are.

    Attributes:
        paths: image id → file, of the images that have detections.

    Raises:
        DataError: a file cannot be used, an image is missing, or the refiner knows none of the classes.
    """

    def __init__(
        self,
        refiner: IoURefiner,
        files: list[Path],
        detections_file: str,
        annotation_file: str | None,
        *,
        class_agnostic: bool,
    ):
        self._refiner = refiner
        self._class_agnostic = class_agnostic
        self._results = read_results(detections_file)
        file_names, self._names = None, {}
        if annotation_file is not None:
            file_names = {image["id"]: image["file_name"] for image in read_image_list(annotation_file)}
            categories = json.loads(Path(annotation_file).read_bytes()).get("categories", [])
            self._names = {category["id"]: category["name"] for category in categories}
        self._labels = match_categories(self._results, self._names or None, refiner.categories)
        if self._results and not any(self._labels.values()) and not class_agnostic:
            known = ", ".join(f"{category['id']} {category['name']}" for category in refiner.categories)
            given = ", ".join(f"{id_} {self._names.get(id_, '')}".rstrip() for id_ in self._labels)
            raise DataError(
                f"{detections_file}: none of its classes ({given}) is among those the refiner was trained on "
                f"({known}); match them by name with --annotations, or refine boxes of any class with --class-agnostic"
            )
        self.paths = match_images(self._results, files, file_names, detections_file)
        self._rows: dict[Any, list[int]] = {image_id: [] for image_id in self.paths}
        for row, result in enumerate(self._results):
            if class_agnostic or self._labels[result["category_id"]]:
                self._rows[result["image_id"]].append(row)

    def class_report(self) -> str:
        """A line for each class: how many boxes, its id and name, and what is done about them."""
        counts = Counter(result["category_id"] for result in self._results)
        lines = [f"classes matched by {'name' if self._names else 'id'}:"]
        for id_, label in self._labels.items():
            if self._class_agnostic:
                fate = "refined without regard to the class"
            elif label:
                category = self._refiner.categories[label - 1]
                fate = f"refined as {category['id']} {category['name']}"
            else:
                fate = "left as they are, unknown to the refiner"
            lines.append(f"{counts[id_]:9,} boxes of {id_} {self._names.get(id_, '')}".rstrip() + f": {fate}")
        return "\n".join(lines)

    def place(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[Placed]:
        """Refines the boxes of some images."""
        results = [[self._results[row] for row in self._rows[image_id]] for image_id in image_ids]
        category_ids = [[result["category_id"] for result in of_image] for of_image in results]
        boxes = [torch.tensor([result["bbox"] for result in of_image]).reshape(-1, 4) for of_image in results]
        boxes = [box_convert(of_image.float(), "xywh", "xyxy") for of_image in boxes]
        labels = [[0 if self._class_agnostic else self._labels[id_] for id_ in of_image] for of_image in category_ids]
        scores = [[float(result["score"]) for result in of_image] for of_image in results]
        refined = self._refiner.refine_batch(images, boxes, labels, scores)
        return [
            Placed(after.with_boxes(corners, after.ious_before), after, ids)
            for corners, after, ids in zip(boxes, refined, category_ids, strict=True)
        ]

    def results(self, records: Iterable[Record], which: str = "after") -> Iterator[dict[str, Any]]:
        """COCO results "before" or "after" refinement, in the order and with the keys of those given."""
        if which == "before":
            yield from self._results
            return
        refined: list[dict[str, Any]] = list(self._results)
        for record in records:
            columns = (self._rows[record["image_id"]], record["after"], record["ious_before"], record["ious"])
            for row, bbox, iou_before, iou in zip(*columns, strict=True):
                predicted = {"predicted_iou_before": iou_before, "predicted_iou": iou}
                refined[row] = refined[row] | {"bbox": bbox} | predicted
        yield from refined


BoxSource = OwnBoxes | OtherBoxes


def refine_files(
    source: BoxSource, journal: Journal, *, batch_size: int, progress: Callable[[Any, Tensor, Placed], None]
) -> None:
    """Refines the images that the journal does not have yet, and adds a record of each to it.

    Args:
        progress: called after each image with its id, the image uint8 [3, H, W], and its boxes.

    Raises:
        DataError: an image cannot be read; those before it are in the journal.
    """
    done = {record["image_id"] for record in journal}
    todo = [image_id for image_id in source.paths if image_id not in done]
    start = 0
    for images in read_ahead([source.paths[image_id] for image_id in todo], batch_size):
        image_ids = todo[start : start + batch_size]
        start += batch_size
        for image_id, image, placed in zip(image_ids, images, source.place(image_ids, images), strict=True):
            journal.append(_record(image_id, image, placed))
            progress(image_id, image, placed)


def _record(image_id: Any, image: Tensor, placed: Placed) -> Record:
    bboxes = (box_convert(detections.boxes, "xyxy", "xywh").tolist() for detections in placed[:2])
    return {
        "image_id": image_id,
        "height": image.shape[1],
        "width": image.shape[2],
        "category_ids": placed.category_ids,
        "scores": placed.after.scores.tolist(),
        **dict(zip(("before", "after"), bboxes, strict=True)),
        "ious_before": placed.before.ious.tolist(),
        "ious": placed.after.ious.tolist(),
    }


def rescored(results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each score multiplied by the predicted IoU, where there is one."""
    for result in results:
        yield result | {"score": result["score"] * max(result.get("predicted_iou", 1.0), 0.0)}


class GroundTruth:
    """The objects of an annotation file in the images at hand.

    Attributes:
        evaluate: scores COCO results against them.
        class_names: label l is ``class_names[l - 1]``; labels count the file's categories by rising id.

    Raises:
        DataError: the objects cannot be used.
    """

    def __init__(self, annotation_file: str | Path, content: dict[str, Any], files: Iterable[Path]):
        names = {path.name for path in files}
        images = [image for image in content["images"] if Path(image["file_name"]).name in names]
        image_ids = {image["id"] for image in images}
        objects = [entry for entry in content["annotations"] if entry.get("image_id") in image_ids]
        try:
            self.evaluate = CocoEvaluator({**content, "images": images, "annotations": objects})
        except ValueError as error:
            raise DataError(f"{annotation_file}: {error}") from error
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.class_names = [category["name"] for category in categories]
        self._label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
        self._objects: dict[Any, list[dict[str, Any]]] = {}
        for entry in objects:
            if not entry.get("iscrowd", 0):
                self._objects.setdefault(entry["image_id"], []).append(entry)

    @classmethod
    def of(cls, annotation_file: str | Path, files: Iterable[Path]) -> "GroundTruth | None":
        """None if the file has no objects, as that of a test set."""
        content = json.loads(Path(annotation_file).read_bytes())
        return cls(annotation_file, content, files) if content.get("annotations") else None

    def example(self, image_id: Any, image: Tensor, placed: Placed) -> Example:
        """The boxes beside the objects of their image, all in this file's labels (0: not one of its classes)."""
        labels = torch.tensor([self._label_of.get(id_, 0) for id_ in placed.category_ids], dtype=torch.int64)
        objects = self._objects.get(image_id, [])
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
        truth = {
            "boxes": box_convert(boxes, "xywh", "xyxy"),
            "labels": torch.tensor([self._label_of[entry["category_id"]] for entry in objects], dtype=torch.int64),
        }
        return Example(image, replace(placed.before, labels=labels), replace(placed.after, labels=labels), truth)


def write_list(path: Path, entries: Iterable[dict[str, Any]]) -> int:
    """Writes a JSON list, one entry a line, whole or not at all; the number of entries."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with open(temporary, "w") as file:
            file.write("[")
            for count, entry in enumerate(entries, start=1):
                file.write(("\n" if count == 1 else ",\n") + json.dumps(entry))
            file.write("\n]\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
