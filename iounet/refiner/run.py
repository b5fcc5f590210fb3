"""A run over many image files: their boxes refined, written as COCO results, and shown on a page.

Each image is noted in a journal once it is done, so that a run that was stopped can be resumed.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from ..errors import DataError, OptionError
from ..files import replacing
from .ground_truth import GroundTruth
from .journal import Journal
from .pictures import Pictures
from .read_ahead import read_ahead
from .refiner import IoURefiner
from .report import write_report
from .results import DetectionsFile, ImageIndex, find_images
from .sources import OtherBoxes, OwnBoxes, RefinedImage, Source


@dataclass(frozen=True)
class RefinementRun:
    """What a run takes, and where it leaves what it makes.

    Attributes:
        weights: checkpoint of the refiner.
        images: image files, or folders of them.
        output: folder of detections.json, report.html, pictures/ and, with ground truth, evaluation.json.
        detections: COCO results of another detector, to be refined; None: the refiner's own detector detects.
        annotations: COCO-form file of the images' ids, classes and objects.
        class_agnostic: refine every box without regard to its class.
        rescore: multiply each score by the predicted IoU.
        resume: go on with the run that was stopped in this folder.
        num_pictures: images to draw.
        batch_size: images at once.
        device: as :func:`iounet.build.build_device` takes it.

    Raises:
        OptionError: a batch size below 1, or ``class_agnostic`` without ``detections``.
    """

    weights: str
    images: list[str]
    output: Path
    detections: str | None = None
    annotations: str | None = None
    class_agnostic: bool = False
    rescore: bool = False
    resume: bool = False
    num_pictures: int = 20
    batch_size: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError("batch_size", f"must be at least 1, got {self.batch_size}")
        if self.class_agnostic and not self.detections:
            raise OptionError("class_agnostic", "is for the boxes of another detector, which detections gives")

    def run(self) -> None:
        """Refines, prints what was found, and writes.

        Raises:
            CheckpointError, ConfigError: as :meth:`IoURefiner.from_checkpoint`.
            DataError: a file cannot be used, or the folder holds another run.
            OSError: the folder cannot be written.
        """
        target = self.output / "detections.json"
        if self.detections and target.resolve() == Path(self.detections).resolve():
            raise DataError(f"{self.detections}: the result would overwrite it; give another folder with --output")
        refiner = IoURefiner.from_checkpoint(self.weights, device=self.device)
        files = find_images(self.images)
        index = ImageIndex.read(self.annotations) if self.annotations else None
        source = self._source(refiner, files, index)
        facts = {}
        if isinstance(source, OtherBoxes):
            facts["classes"] = source.class_report()
            print(facts["classes"])
        truth = _ground_truth(index, files, source)

        journal = Journal(self.output / "progress.jsonl", self._identity(source), resume=self.resume)
        pictures = Pictures(self.output / "pictures", source.paths, self.num_pictures, refiner.categories)
        done = {record["image_id"] for record in journal}
        with tqdm(total=len(source.paths), initial=len(done), desc="refine", unit="image") as bar:
            for refined in refine_files(source, done, self.batch_size):
                pictures.draw(refined)
                journal.append(refined.record())
                bar.update()

        count = write_list(target, source.results(journal, "after", rescore=self.rescore))
        if not self.detections:
            self._write_images(source, journal, refiner.categories)
        facts = {
            "command": shlex.join(sys.argv),
            "images": str(len(source.paths)),
            "detections": str(count),
            "mean predicted IoU": _mean_ious(journal),
            "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        } | facts
        write_report(self.output, facts, journal, source, truth, pictures)
        journal.finish()
        print(f"{count} detections in {target}, pictures and tables in {self.output / 'report.html'}")

    def _source(self, refiner: IoURefiner, files: list[Path], index: ImageIndex | None) -> OwnBoxes | OtherBoxes:
        if not self.detections:
            return OwnBoxes(refiner, files, index)
        detections = DetectionsFile.read(self.detections, files, index)
        return OtherBoxes(refiner, detections, class_agnostic=self.class_agnostic)

    def _identity(self, source: Source) -> dict[str, Any]:
        """What the boxes of a run depend on."""
        inputs = {"checkpoint": self.weights, "detections file": self.detections, "annotation file": self.annotations}
        digests = {name: sha256(Path(path).read_bytes()).hexdigest() if path else None for name, path in inputs.items()}
        images = "\n".join(f"{image_id!r} {path.absolute()}" for image_id, path in source.paths.items())
        return digests | {
            "list of images": sha256(images.encode()).hexdigest(),
            "--class-agnostic": self.class_agnostic,
        }

    def _write_images(self, source: Source, journal: Journal, categories: list[dict]) -> None:
        images = [
            {"id": record["image_id"], "file_name": source.paths[record["image_id"]].name}
            | {key: record[key] for key in ("height", "width")}
            for record in journal
        ]
        with replacing(self.output / "images.json") as file:
            json.dump({"images": images, "annotations": [], "categories": categories}, file)


def refine_files(source: Source, done: Container[Any], batch_size: int) -> Iterator[RefinedImage]:
    """Refines images one after the other, but for those whose ids are ``done``.

    Raises:
        DataError: an image cannot be read.
    """
    todo = [image_id for image_id in source.paths if image_id not in done]
    start = 0
    for images in read_ahead([source.paths[image_id] for image_id in todo], batch_size):
        yield from source.refine(todo[start : start + batch_size], images)
        start += batch_size


def _ground_truth(index: ImageIndex | None, files: list[Path], source: Source) -> GroundTruth | None:
    if index is None or not index.content.get("annotations"):
        return None
    try:
        return GroundTruth(index, files, source)
    except (ValueError, KeyError, TypeError) as error:  # boxes can be refined all the same
        print(
            f"no AP: the objects of {index.path} cannot be used ({error}); "
            f"python -m iounet.data.check {index.path} lists what is wrong"
        )
        return None


def _mean_ious(journal: Journal) -> str:
    before, after = ([iou for record in journal for iou in record[name]] for name in ("ious_before", "ious"))
    return f"{statistics.fmean(before):.3f} before, {statistics.fmean(after):.3f} refined" if after else "no boxes"


def write_list(path: Path, entries: Iterable[dict[str, Any]]) -> int:
    """Writes a JSON list, one entry a line, whole or not at all; the number of entries."""
    count = 0
    with replacing(path) as file:
        file.write("[")
        for count, entry in enumerate(entries, start=1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(entry))
        file.write("\n]\n")
    return count
