"""COCO average precision of boxes at the IoU thresholds of the IoU-Net paper (arXiv 1807.11590, Table 1)."""

import contextlib
import io
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..data.bbox import bbox_fault, is_finite_number
from ..files import read_json

AP_COLUMNS = ("AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90")

_PLACE = ("image_id", "category_id", "bbox")


class CategoryScores(NamedTuple):
    """Scores of pycocotools for one category; -1 if it has no objects.

    Attributes:
        precision: float [IoU thresholds, recalls, size ranges].
        recall: float [IoU thresholds, size ranges].
    """

    precision: np.ndarray
    recall: np.ndarray


class CocoEvaluator:
    """Scores detections against a ground truth, which is read, checked and indexed once.

    Args:
        ground_truth: A data set in COCO format, or the path of its JSON file. It is not modified. Detections in the
            region of an annotation with `iscrowd` 1 count neither as correct nor as wrong. A missing `iscrowd` means 0,
            a missing `area` means the area of the box. Annotation ids are ignored and may start at 0.
        max_detections: Number of detections that count per class and image: those with the highest scores.
        by_size: Whether to compute APs, APm and APl. Without them scoring takes a third of the time.

    Raises:
        DataError: The file cannot be read or is not JSON.
        ValueError: The ground truth lacks a list; an image or category has no id; or the image, category or box of an
            annotation is missing, unknown or malformed.
    """

    def __init__(self, ground_truth: dict | str | Path, *, max_detections: int = 100, by_size: bool = True) -> None:
        dataset = ground_truth if isinstance(ground_truth, dict) else read_json(ground_truth, "ground truth")
        self.max_detections = max_detections
        self._parameters = Params(iouType="bbox")
        if not by_size:
            # The first range of pycocotools covers all sizes.
            self._parameters.areaRng = self._parameters.areaRng[:1]
            self._parameters.areaRngLbl = self._parameters.areaRngLbl[:1]
        self._name = "the ground truth" if isinstance(ground_truth, dict) else str(ground_truth)
        if not isinstance(dataset, dict) or not {"images", "categories", "annotations"} <= dataset.keys():
            raise ValueError(
                f"{self._name} needs the lists 'images', 'categories' and 'annotations'; give the annotation file of "
                "a data set, not a file of results or of a test set without annotations"
            )
        self._image_ids = self._ids(dataset, "images")
        self._category_ids = self._ids(dataset, "categories")
        self._check(
            dataset["annotations"],
            f"annotations of {self._name}",
            cure="remove these annotations, or add the missing entries",
        )
        for number, entry in enumerate(dataset["annotations"]):
            if not is_finite_number(entry.get("area", 0)) or entry.get("iscrowd", 0) not in (0, 1):
                raise ValueError(
                    f"entry {number} of the annotations of {self._name} (image_id {entry['image_id']!r}) has area "
                    f"{entry.get('area')!r} and iscrowd {entry.get('iscrowd')!r}: expected a number, and 0 or 1"
                )
        # COCOeval stores the id of the matched object, or 0 for no match. An object of id 0 would never be found.
        annotations = [_annotation(id_, entry) for id_, entry in enumerate(dataset["annotations"], start=1)]
        self._ground_truth = _index(dataset["images"], dataset["categories"], annotations)

    def __call__(self, results: Sequence[dict]) -> dict[str, float]:
        """Return average precision and recall **in percent**.

        Equals `summary(by_category(results, category_ids))`. To divide the work among processes, call `by_category`
        on a share of the categories in each process, and `summary` on the scores of all categories.

        Args:
            results: COCO detections `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}` with boxes in
                pixels of the original image. They are not modified. Objects of images without results count as missed.

        Returns:
            `AP`, the mean over the IoU thresholds 0.50, 0.55, ..., 0.95; `AP50` to `AP90`, at a single threshold;
                `APs`, `APm` and `APl`, the AP of objects with an area of at most 32², of 32² to 96², and of at least
                96² pixels; `AR100`, the mean recall, named after `max_detections`. Each is in [0, 100], or NaN if the
                ground truth has no such objects.

        Raises:
            ValueError: A result lacks a key, names an image or category that the ground truth does not list, or has a
                score that is not finite or a box that is not four finite numbers with sizes of at least 0.
        """
        return self.summary(self.by_category(results, self.category_ids))

    @property
    def category_ids(self) -> list:
        """Category ids of the ground truth, sorted."""
        return sorted(self._category_ids)

    def by_category(self, results: Sequence[dict], category_ids: Sequence) -> list[CategoryScores]:
        """Score the given categories.

        Args:
            results: As in `__call__`. Results of other categories are checked and ignored.
            category_ids: The categories to score, sorted.

        Returns:
            One entry per category, in the given order.

        Raises:
            ValueError: As in `__call__`.
        """
        self._check(
            results,
            "results",
            cure="evaluate them on the annotation file of their images and classes",
        )
        for number, result in enumerate(results):
            if not is_finite_number(result.get("score")):
                raise ValueError(
                    f"entry {number} of the results (image_id {result['image_id']!r}) has score "
                    f"{result.get('score')}: expected a finite number; NaN usually means that training diverged"
                )
        if not category_ids:
            return []
        # Replaces COCO.loadRes, which fails on an empty list and writes into the caller's results. Drops an 'area' that
        # a result may have, because the box may have been refined since.
        detections = [
            _annotation(id_, {key: result[key] for key in _PLACE}) | {"score": result["score"]}
            for id_, result in enumerate(results, start=1)
        ]
        dataset = self._ground_truth.dataset
        with _silence():
            evaluation = COCOeval(
                self._ground_truth,
                _index(dataset["images"], dataset["categories"], detections),
                iouType="bbox",
            )
            evaluation.params.catIds = list(category_ids)
            evaluation.params.maxDets = [self.max_detections]
            evaluation.params.areaRng = self._parameters.areaRng
            evaluation.params.areaRngLbl = self._parameters.areaRngLbl
            evaluation.evaluate()
            evaluation.accumulate()
        # Precision is [IoU threshold, recall, category, area, max_detections]; recall lacks the second dimension.
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        return [CategoryScores(precision[:, :, k, :, 0], recall[:, k, :, 0]) for k in range(len(category_ids))]

    def summary(self, scores: Sequence[CategoryScores]) -> dict[str, float]:
        """Return average precision and recall as `__call__` does.

        Args:
            scores: Scores of all categories, in the order of `category_ids`.
        """
        ranges = self._parameters.areaRngLbl
        everything = ranges.index("all")
        summary = {"AP": _percent([of_category.precision[..., everything] for of_category in scores])}
        for column in AP_COLUMNS[1:]:
            # The thresholds are a linspace, whose 0.6 need not equal the float 0.6, so take the nearest.
            threshold = np.abs(self._parameters.iouThrs - int(column.removeprefix("AP")) / 100).argmin()
            summary[column] = _percent([of_category.precision[threshold, :, everything] for of_category in scores])
        for column, size in (("APs", "small"), ("APm", "medium"), ("APl", "large")):
            if size in ranges:
                summary[column] = _percent([of_category.precision[..., ranges.index(size)] for of_category in scores])
        summary[f"AR{self.max_detections}"] = _percent([of_category.recall[..., everything] for of_category in scores])
        return summary

    def _ids(self, dataset: dict, key: str) -> set:
        for number, entry in enumerate(dataset[key]):
            if "id" not in entry:
                raise ValueError(f"entry {number} of the {key} of {self._name} has no 'id': {entry}")
        return {entry["id"] for entry in dataset[key]}

    def _check(self, entries: Sequence[dict], label: str, *, cure: str) -> None:
        for number, entry in enumerate(entries):
            missing = [key for key in _PLACE if key not in entry]
            if missing:
                raise ValueError(f"entry {number} of the {label} lacks {', '.join(missing)}: {entry}")
            where = f"entry {number} of the {label} (image_id {entry['image_id']!r})"
            box = list(entry["bbox"]) if isinstance(entry["bbox"], (list, tuple, np.ndarray)) else entry["bbox"]
            if bbox_fault(box) or min(box[2:]) < 0:
                raise ValueError(
                    f"{where} has bbox {box}: expected [x, y, width, height], all finite, with width and height of at "
                    "least 0"
                )
            for key in ("image_id", "category_id"):
                if not isinstance(entry[key], Hashable):
                    raise ValueError(f"{where} has {key} {entry[key]!r}: expected an id")
        for key, known in (("image_id", self._image_ids), ("category_id", self._category_ids)):
            unknown = list(dict.fromkeys(entry[key] for entry in entries if entry[key] not in known))
            if unknown:
                first = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
                raise ValueError(
                    f"the {label} have {len(unknown)} {key}(s) that {self._name} does not list: {first}; {cure}"
                )


def markdown_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str] = AP_COLUMNS) -> str:
    """Format a Markdown table that is also aligned as plain text.

    Args:
        rows: Name of a method → column → value, as returned by `CocoEvaluator`.
        columns: Columns to show, in this order.

    Returns:
        The table without a final newline. Values have one decimal place; NaN becomes a dash.
    """
    lines = [["", *columns]]
    for method, values in rows.items():
        lines.append([method, *("–" if math.isnan(values[c]) else f"{values[c]:.1f}" for c in columns)])
    first, *others = (max(4, *map(len, column)) for column in zip(*lines, strict=True))
    lines = [[name.ljust(first), *map(str.rjust, values, others)] for name, *values in lines]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(of_categories: list[np.ndarray]) -> float:
    # Categories come last, as in the arrays of COCOeval, so that the sum is rounded in the same way.
    values = np.moveaxis(np.array(of_categories), 0, -1)
    present = values[values > -1]  # COCOeval writes -1 for a category without objects
    return 100 * float(present.mean()) if present.size else math.nan


def _annotation(id_: int, entry: dict) -> dict:
    """Copy the keys that COCOeval reads, because COCOeval adds keys to the dictionaries that it is given."""
    x, y, width, height = map(float, entry["bbox"])
    return {
        "id": id_,
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": [x, y, width, height],
        "area": entry.get("area", width * height),
        "iscrowd": entry.get("iscrowd", 0),
    }


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with _silence():
        coco.createIndex()
    return coco


def _silence() -> contextlib.redirect_stdout:
    """Suppress the output of pycocotools, which would break a progress bar."""
    return contextlib.redirect_stdout(io.StringIO())
