"""Refining the boxes of many image files: COCO results in, COCO results out, a record of each image once it is done.

A record is what is known of an image: its ``image_id``, ``height`` and ``width`` in pixels, and in columns over its K
detections ``category_ids``, ``scores``, ``before`` and ``after`` (``[x, y, width, height]`` in pixels of the image),
``ious_before`` and ``ious`` (predicted).
"""

import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from .data import DataError, read_image
from .data.annotations import load_json
from .data.read_ahead import read_ahead
from .data.results import images_of, listed_ids, match_categories, match_images, read_results
from .detections import Detections
from .evaluation import CocoEvaluator, best_match
from .refiner import IoURefiner
from .visualization import BoxChange, most_changed

Record = dict[str, Any]


class Placed(NamedTuple):
    """Detections of an image before and after refinement, in its pixels, and the category id of each."""

    before: Detections
    after: Detections
    category_ids: list[Any]


class AnnotationFile:
    """What a COCO-form file tells of images and classes; objects, if it has any, are the ground truth.

    Attributes:
        path: of the file.
        file_names: image id → file name.
        names: category id → name; empty if the file has no categories.
        content: all of it.

    Raises:
        DataError: the file cannot be read, or an image lacks its id or file name.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self.content = load_json(path, needed=("images",))
        try:
            self.file_names = {image["id"]: str(image["file_name"]) for image in self.content["images"]}
            self.names = {entry["id"]: str(entry["name"]) for entry in self.content.get("categories", [])}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: an image or category lacks {error}; python -m iounet.data.check {path} lists what is wrong"
            ) from None


class OwnBoxes:
    """The detections of the refiner's own detector.

    Args:
        files: the images.
        annotations: for the ids of the images; None: they are numbered from 1.

    Attributes:
        paths: image id → file.

    Raises:
        DataError: the annotation file lacks an image.
    """

    def __init__(self, refiner: IoURefiner, files: list[Path], annotations: AnnotationFile | None):
        self._refiner = refiner
        self._category_ids = [category["id"] for category in refiner.categories]
        self.paths: dict[Any, Path] = dict(enumerate(files, start=1))
        if annotations is not None:
            listed = {path: id_ for id_, found in images_of(files, annotations.file_names).items() for path in found}
            unlisted = [path for path in files if path not in listed]
            if unlisted:
                raise DataError(
                    f"{annotations.path} does not list {len(unlisted)} of the images, such as {unlisted[0]}; "
                    "leave --annotations out to have the images numbered"
                )
            self.paths = {listed[path]: path for path in files}

    def listed_id(self, image_id: Any) -> Any:
        """The annotation file's id of an image."""
        return image_id

    def place(self, image_ids: Sequence[Any], images: Sequence[Tensor]) -> list[Placed]:
        """Detects and refines the objects of some images."""
        return [
            Placed(before, after, [self._category_ids[label - 1] for label in after.labels.tolist()])
            for before, after in self._refiner.detect_batch(images)
        ]

    def results(
        self, records: Iterable[Record], which: str = "after", *, rescore: bool = False
    ) -> Iterator[dict[str, Any]]:
        """COCO results "before" or "after" refinement, image by image."""
        for record in records:
            columns = (record[name] for name in ("category_ids", which, "scores", "ious_before", "ious"))
            for category_id, bbox, score, iou_before, iou in zip(*columns, strict=True):
                yield {
                    "image_id": record["image_id"],
                    "category_id": category_id,
                    "bbox": bbox,
                    "score": _times_iou(score, iou) if rescore else score,
                    "predicted_iou_before": iou_before,
                    "predicted_iou": iou,
                }


class OtherBoxes:
    """The detections of another detector.

    Args:
        files: the images.
        detections_file: its COCO results.
        annotations: for the names of images and categories; None: see :func:`iounet.data.results.match_images` and
            :func:`iounet.data.results.match_categories`.
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
        annotations: AnnotationFile | None,
        *,
        class_agnostic: bool,
    ):
        self._refiner = refiner
        self._class_agnostic = class_agnostic
        self._results = read_results(detections_file)
        self._names = annotations.names if annotations is not None else {}
        self._labels = match_categories(self._results, self._names or None, refiner.categories)
        if self._results and not any(self._labels.values()) and not class_agnostic:
            known = ", ".join(f"{category['id']!r} {category['name']}" for category in refiner.categories)
            given = ", ".join(f"{id_!r} {self._names.get(id_, '')}".rstrip() for id_ in self._labels)
            raise DataError(
                f"{detections_file}: none of its classes ({given}) is among those the refiner was trained on "
                f"({known}); match them by name with --annotations, or refine boxes of any class with --class-agnostic"
            )
        image_ids, file_names = [result["image_id"] for result in self._results], None
        self._listed_ids = {}
        if annotations is not None:
            self._listed_ids = listed_ids(image_ids, annotations.file_names)
            file_names = {id_: annotations.file_names[listed] for id_, listed in self._listed_ids.items()}
        self.paths = match_images(image_ids, files, file_names, detections_file)
        self._rows: dict[Any, list[int]] = {image_id: [] for image_id in self.paths}
        for row, result in enumerate(self._results):
            if class_agnostic or self._labels[result["category_id"]]:
                self._rows[result["image_id"]].append(row)

    def listed_id(self, image_id: Any) -> Any:
        """The annotation file's id of an image."""
        return self._listed_ids.get(image_id, image_id)

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
        boxes = [
            box_convert(_as_boxes([result["bbox"] for result in of_image]), "xywh", "xyxy") for of_image in results
        ]
        labels = [[0 if self._class_agnostic else self._labels[id_] for id_ in of_image] for of_image in category_ids]
        scores = [[float(result["score"]) for result in of_image] for of_image in results]
        refined = self._refiner.refine_batch(images, boxes, labels, scores)
        return [
            Placed(after.with_boxes(corners, after.ious_before), after, ids)
            for corners, after, ids in zip(boxes, refined, category_ids, strict=True)
        ]

    def results(
        self, records: Iterable[Record], which: str = "after", *, rescore: bool = False
    ) -> Iterator[dict[str, Any]]:
        """COCO results "before" or "after" refinement, in the order and with the keys of those given."""
        results: list[dict[str, Any]] = list(self._results)
        for record in records if which == "after" else ():
            columns = (record[name] for name in ("before", "after", "ious_before", "ious"))
            for row, before, after, iou_before, iou in zip(self._rows[record["image_id"]], *columns, strict=True):
                given = results[row]
                results[row] = given | {
                    "bbox": given["bbox"] if after == before else after,  # as it was written, if it did not move
                    "score": _times_iou(given["score"], iou) if rescore else given["score"],
                    "predicted_iou_before": iou_before,
                    "predicted_iou": iou,
                }
        yield from results


def _times_iou(score: float, iou: float) -> float:
    return score * min(max(iou, 0.0), 1.0)


def _as_boxes(bboxes: list[list[float]]) -> Tensor:
    return torch.tensor(bboxes, dtype=torch.float32).reshape(-1, 4)


def refine_files(
    source: OwnBoxes | OtherBoxes, done: Container[Any], batch_size: int
) -> Iterator[tuple[Record, Tensor, Placed]]:
    """Refines the images one after the other: the record of each, the image uint8 [3, H, W], and its boxes.

    Args:
        done: ids of images to be left out.

    Raises:
        DataError: an image cannot be read.
    """
    todo = [image_id for image_id in source.paths if image_id not in done]
    start = 0
    for images in read_ahead([source.paths[image_id] for image_id in todo], batch_size):
        image_ids = todo[start : start + batch_size]
        start += batch_size
        for image_id, image, placed in zip(image_ids, images, source.place(image_ids, images), strict=True):
            yield _record(image_id, image, placed), image, placed


def _record(image_id: Any, image: Tensor, placed: Placed) -> Record:
    before, after = (box_convert(detections.boxes, "xyxy", "xywh").tolist() for detections in placed[:2])
    return {
        "image_id": image_id,
        "height": image.shape[1],
        "width": image.shape[2],
        "category_ids": placed.category_ids,
        "scores": placed.after.scores.tolist(),
        "before": before,
        "after": after,
        "ious_before": placed.before.ious.tolist(),
        "ious": placed.after.ious.tolist(),
    }


class GroundTruth:
    """The objects of an annotation file in the images at hand.

    Args:
        files: the images at hand.
        source: of the detections.

    Attributes:
        class_names: label l is ``class_names[l - 1]``; labels count the file's categories by rising id.

    Raises:
        ValueError: the objects cannot be used.
    """

    def __init__(self, annotations: AnnotationFile, files: list[Path], source: OwnBoxes | OtherBoxes):
        content = annotations.content
        self._source = source
        at_hand = {id_ for id_, found in images_of(files, annotations.file_names).items() if found}
        images = [image for image in content["images"] if image["id"] in at_hand]
        if not all(isinstance(entry, dict) for entry in content["annotations"]):
            raise ValueError("an annotation is not a JSON object")
        objects = [entry for entry in content["annotations"] if entry.get("image_id") in at_hand]
        if any(not isinstance(entry.get("bbox"), list) for entry in objects):
            raise ValueError("an annotation has no bbox")
        self._evaluate = CocoEvaluator({**content, "images": images, "annotations": objects})
        self._image_ids = at_hand
        ids = sorted(annotations.names)
        self.class_names = [annotations.names[id_] for id_ in ids]
        self._label_of = {id_: label for label, id_ in enumerate(ids, start=1)}
        self._objects: dict[Any, list[dict[str, Any]]] = {}
        for entry in objects:
            if not entry.get("iscrowd", 0):
                self._objects.setdefault(entry["image_id"], []).append(entry)

    def ap(self, results: Iterable[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """The columns of :class:`CocoEvaluator`, and how many results could not be scored.

        Those are of images or classes that the annotation file lacks, or have a negative width or height.
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
        """The boxes whose true IoU refinement raised most, and those whose it lowered most.

        Of those that show an object: of an IoU of at least 0.5 before refinement. Only their images are read.
        """
        return [
            BoxChange(
                read_image(self._source.paths[image_id]).as_subclass(Tensor),
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
        """Gain, image id, label, box before and after, object, and predicted IoUs of each box that shows an object."""
        for record in records:
            boxes, object_labels = self._objects_in(record["image_id"])
            labels = torch.tensor([self._label_of.get(id_, 0) for id_ in record["category_ids"]], dtype=torch.int64)
            path = torch.stack([box_convert(_as_boxes(record[name]), "xywh", "xyxy") for name in ("before", "after")])
            ious, matched = best_match(path[0], labels, boxes, object_labels)
            for row in (ious >= 0.5).nonzero()[:, 0].tolist():
                truth = boxes[matched[row]]
                gain = float(box_iou(path[1, row, None], truth[None]) - ious[row])
                predicted = torch.tensor([record["ious_before"][row], record["ious"][row]])
                yield gain, record["image_id"], int(labels[row]), path[:, row], truth, predicted

    def _objects_in(self, image_id: Any) -> tuple[Tensor, Tensor]:
        objects = self._objects.get(self._source.listed_id(image_id), [])
        labels = torch.tensor([self._label_of[entry["category_id"]] for entry in objects], dtype=torch.int64)
        return box_convert(_as_boxes([entry["bbox"] for entry in objects]), "xywh", "xyxy"), labels


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
