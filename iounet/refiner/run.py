"""A run over many image files: refines their boxes and writes COCO results and a report page.

A journal records each finished image, so that a stopped run can be resumed.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from ..data import has_exif_rotation
from ..errors import DataError, OptionError, check_range
from ..files import write_json_list, write_text
from ..progress import progress
from ..wording import counted
from .ground_truth import GroundTruth
from .journal import Journal
from .pictures import Pictures
from .printing import print_refined
from .read_ahead import read_ahead
from .refiner import IoURefiner
from .report import is_report, write_report
from .results import DetectionsFile, ImageIndex, find_images
from .sources import OtherBoxes, OwnBoxes, Record, Source

WRITTEN = "detections.json"


@dataclass(frozen=True)
class RefinementRun:
    """Inputs, options and output folder of a run; the command iounet-refine in Python.

    Attributes:
        weights: checkpoint of the refiner.
        images: image files, or folders of images.
        output: folder for detections.json, report.html, pictures/ and, with ground truth, evaluation.json. None prints
            the boxes and writes nothing.
        detections: COCO results of another detector to refine. None detects with the IoU-Net itself.
        annotations: annotation file in COCO format with ids, classes and objects of the images.
        class_agnostic: refine every box regardless of its class.
        rescore: multiply each score by the predicted IoU.
        exif: rotate photographs upright according to their EXIF orientation; all boxes are then in the upright frame.
            Otherwise, pixels are used as stored.
        skip_bad: skip images that are missing or cannot be read, and leave the given detections of these images
            unchanged.
        resume: continue the stopped run in ``output``. The list of images may have changed.
        pictures: number of images to draw.
        batch_size: number of images in a batch.
        device: as in `iounet.devices.build_device`.
        json: print one JSON object per image instead of a table; requires ``output`` to be None.

    Raises:
        OptionError: ``batch_size`` is below 1, ``class_agnostic`` is used without ``detections``, ``resume`` without
            ``output``, or ``json`` with ``output``.
    """

    weights: str
    images: list[str]
    output: Path | None = None
    detections: str | None = None
    annotations: str | None = None
    class_agnostic: bool = False
    rescore: bool = False
    exif: bool = False
    skip_bad: bool = False
    resume: bool = False
    pictures: int = 20
    batch_size: int = 1
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        if self.class_agnostic and not self.detections:
            raise OptionError("class_agnostic", "needs detections, the boxes of another detector")
        if self.resume and self.output is None:
            raise OptionError("resume", "needs output, the folder of the run that was stopped")
        if self.json and self.output is not None:
            raise OptionError("json", "cannot be combined with an output folder; the run writes detections.json there")

    def run(self) -> int:
        """Refine the boxes and print or write them.

        Returns:
            Number of images that were skipped because of ``skip_bad``.

        Raises:
            CheckpointError, ConfigError: as in `IoURefiner.from_checkpoint`.
            DataError: an input file is invalid, or the output folder contains a different run, or unrelated files with
                the names of the results.
            OptionError: the output folder cannot be created.
            OSError: a result cannot be written.
        """
        if self.output is not None:
            self._check_output(self.output)
        refiner = IoURefiner.from_checkpoint(self.weights, device=self.device)
        index = ImageIndex.read(self.annotations) if self.annotations else None
        files = find_images(self.images, index.file_names.values() if index else ())
        skipped: dict[Any, str] = {}  # image id → reason
        source: Source
        if self.detections:
            detections = DetectionsFile.read(
                self.detections, files, index, refiner.categories, allow_missing=self.skip_bad
            )
            skipped |= {image_id: f"image_id {image_id!r}: no such image was given" for image_id in detections.missing}
            source = OtherBoxes(refiner, detections, class_agnostic=self.class_agnostic)
        else:
            source = OwnBoxes(refiner, files, index)
        facts = dict(source.facts)
        if not self.exif and (rotated := [path for path in source.paths.values() if has_exif_rotation(path)]):
            facts["orientation"] = _about_rotated(rotated, len(source.paths))
        for fact in facts.values():
            print(fact, file=sys.stderr if self.json else sys.stdout)
        if self.output is None:
            print_refined(
                source,
                batch_size=self.batch_size,
                rescore=self.rescore,
                as_json=self.json,
                exif=self.exif,
                on_fault=self._skip_to(skipped),
            )
            _name_images({"skipped": list(skipped.values())}, file=sys.stderr)
        else:
            self._write(refiner, source, index, files, self.output, facts, skipped)
        return len(skipped)

    def _write(
        self,
        refiner: IoURefiner,
        source: Source,
        index: ImageIndex | None,
        files: list[Path],
        output: Path,
        facts: dict[str, str],
        skipped: dict[Any, str],
    ) -> None:
        """Refine the boxes; write the results, the report and the pictures; print their paths."""
        truth = GroundTruth.read(index, files, source, exif=self.exif) if index else None
        pictures = Pictures(output / "pictures", source.paths, self.pictures, refiner.categories, truth)
        target = output / WRITTEN
        journal = self._open_journal(output)
        records = _Records(journal, source)
        self._refine(source, records, pictures, skipped)

        left = {
            "skipped": list(skipped.values()),
            "too thin to be resized, boxes unchanged": [
                f"{record['file']}: {record['width']} x {record['height']} pixels"
                for record in records
                if not refiner.detector.can_resize((record["height"], record["width"]))
            ],
        }
        facts |= {f"images {what}": "\n".join(images) for what, images in left.items() if images}
        count = write_json_list(target, source.results(records, "after", rescore=self.rescore))
        images_file = output / "images.json"
        if self.detections:
            images_file.unlink(missing_ok=True)  # left by an earlier run
        else:
            write_text(images_file, json.dumps(_images(source, index, records, refiner.categories)))
        write_report(output, count, records, source, facts, truth, pictures)
        journal.finish()
        _name_images(left, file=sys.stdout)
        print(f"{count} detections in {target}, pictures and tables in {output / 'report.html'}")

    def _skip_to(self, skipped: dict[Any, str]) -> Callable[[Any, DataError], None]:
        """Return a function that records or raises the error of an image that cannot be read."""

        def skip(image_id: Any, error: DataError) -> None:
            if not self.skip_bad:
                continues = "; then add --resume to continue" if self.output else ""
                raise DataError(f"{error}, or skip such images with --skip-bad{continues}") from error
            skipped[image_id] = str(error)

        return skip

    def _check_output(self, output: Path) -> None:
        """Raise DataError if the run would overwrite a file that this command did not write."""
        if self.detections and (output / WRITTEN).resolve() == Path(self.detections).resolve():
            raise DataError(
                f"{self.detections}: the results would overwrite this file; choose another folder with --output"
            )
        if is_report(output / "report.html") or (output / "progress.jsonl").exists():
            return
        for name in (WRITTEN, "images.json", "evaluation.json", "report.html"):
            if (output / name).exists():
                raise DataError(
                    f"{output / name} was not written by this command and would be overwritten; choose another folder "
                    "with --output"
                )

    def _open_journal(self, output: Path) -> Journal:
        """Open the journal of this run.

        Its first line records every input and option that changes the boxes, except the images. A resumed run must have
        the same inputs and options.
        """
        inputs = {"checkpoint": self.weights, "detections file": self.detections, "annotation file": self.annotations}
        digests = {name: sha256(Path(path).read_bytes()).hexdigest() if path else None for name, path in inputs.items()}
        options = {"--class-agnostic": self.class_agnostic, "--exif": self.exif}
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{output} cannot be created ({error.strerror}); choose another folder"
            raise OptionError("output", problem) from error
        return Journal(output / "progress.jsonl", digests | options, resume=self.resume)

    def _refine(self, source: Source, records: "_Records", pictures: Pictures, skipped: dict[Any, str]) -> None:
        """Refine, draw and record the images without a record; add unreadable images to ``skipped``."""
        journal = records.journal
        done = {record["image_id"] for record in records}
        if not done and any(True for _ in journal):
            raise DataError(
                f"{journal.path} belongs to a run with other images; pass those images, choose another output folder, "
                "or delete the file to start over"
            )
        todo = {image_id: path for image_id, path in source.paths.items() if image_id not in done}

        skip = self._skip_to(skipped)
        with progress(total=len(source.paths), initial=len(done), desc="refine", unit="image") as bar:
            for image_ids, tensors in read_ahead(todo, self.batch_size, exif=self.exif, on_fault=skip):
                for refined in source.refine(image_ids, tensors):
                    pictures.draw(refined)
                    journal.append(refined.record() | {"file": str(source.paths[refined.image_id].absolute())})
                    bar.update()


@dataclass(frozen=True)
class _Records:
    """The journal's records of images of this run; the list of images may have changed since the journal was begun."""

    journal: Journal
    source: Source

    def __iter__(self) -> Iterator[Record]:
        return filter(None, map(self.source.current, self.journal))


def _name_images(left: dict[str, list[str]], *, file: TextIO) -> None:
    """Print the images that were skipped or left unchanged, with the reasons."""
    for what, images in left.items():
        if images:
            print(f"{counted(len(images), 'image')} {what}:", *images, sep="\n  ", file=file)


def _about_rotated(paths: list[Path], number: int) -> str:
    names = ", ".join(path.name for path in paths[:3]) + ", ..." * (len(paths) > 3)
    return (
        f"warning: {len(paths)} of {number} images have an EXIF orientation ({names}), which is ignored; boxes are in "
        "the frame of the stored pixels. For boxes in the upright frame, as image viewers show it, pass --exif"
    )


def _images(
    source: Source, index: ImageIndex | None, records: Iterable[Record], categories: list[dict]
) -> dict[str, list]:
    """Return the images in COCO format, with their ids and with the file names in the annotation file, if any."""
    paths = {image_id: path.absolute() for image_id, path in source.paths.items()}
    # Names include folders, which distinguish images with the same name.
    root = os.path.commonpath([path.parent for path in paths.values()])
    names = index.file_names if index else {id_: path.relative_to(root).as_posix() for id_, path in paths.items()}
    images = [
        {"id": record["image_id"], "file_name": names[record["image_id"]]}
        | {key: record[key] for key in ("height", "width")}
        for record in records
    ]
    return {"images": images, "annotations": [], "categories": categories}
