"""A run over image files: their boxes refined, and printed, or written as COCO results and shown on a page.

Each image is noted in a journal once it is done, so that a run that was stopped can be resumed.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from ..errors import DataError, OptionError
from ..files import write_json_list, write_text
from .ground_truth import GroundTruth
from .journal import Journal
from .pictures import Pictures
from .printing import print_refined
from .read_ahead import read_ahead
from .refiner import IoURefiner
from .report import write_report
from .results import DetectionsFile, ImageIndex, find_images
from .sources import OtherBoxes, OwnBoxes, Record, Source

WRITTEN = "detections.json"  # in the output folder


@dataclass(frozen=True)
class RefinementRun:
    """What a run takes, and where it leaves what it makes.

    Attributes:
        weights: checkpoint of the refiner.
        images: image files, or folders of them.
        output: folder of detections.json, report.html, pictures/ and, with ground truth, evaluation.json; None: the
            boxes are printed, and nothing is written.
        detections: COCO results of another detector, to be refined; None: the refiner's own detector detects.
        annotations: COCO-form file of the images' ids, classes and objects.
        class_agnostic: refine every box without regard to its class.
        rescore: multiply each score by the predicted IoU.
        resume: go on with the run that was stopped in this folder.
        pictures: images to draw.
        batch_size: images at once.
        device: as :func:`iounet.devices.build_device` takes it.
        json: print a JSON object an image instead of a table; without ``output``.

    Raises:
        OptionError: a batch size below 1, ``class_agnostic`` without ``detections``, ``resume`` without ``output``, or
            ``json`` with it.
    """

    weights: str
    images: list[str]
    output: Path | None
    detections: str | None = None
    annotations: str | None = None
    class_agnostic: bool = False
    rescore: bool = False
    resume: bool = False
    pictures: int = 20
    batch_size: int = 1
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError("batch_size", f"must be at least 1, got {self.batch_size}")
        if self.class_agnostic and not self.detections:
            raise OptionError("class_agnostic", "needs detections, the boxes of another detector")
        if self.resume and self.output is None:
            raise OptionError("resume", "needs the output folder of the run that was stopped")
        if self.json and self.output is not None:
            raise OptionError("json", "prints instead of writing; detections.json in the output folder is JSON, too")

    def run(self) -> None:
        """Refines; prints the boxes, or writes them and prints what was found.

        Raises:
            CheckpointError, ConfigError: as :meth:`IoURefiner.from_checkpoint`.
            DataError: a file cannot be used, or the folder holds another run.
            OSError: the folder cannot be written.
        """
        if self.output and self.detections and (self.output / WRITTEN).resolve() == Path(self.detections).resolve():
            raise DataError(f"{self.detections}: the result would overwrite it; give another folder with --output")
        refiner = IoURefiner.from_checkpoint(self.weights, device=self.device)
        files = find_images(self.images)
        index = ImageIndex.read(self.annotations) if self.annotations else None
        source: Source
        if self.detections:
            detections = DetectionsFile.read(self.detections, files, index, refiner.categories)
            source = OtherBoxes(refiner, detections, class_agnostic=self.class_agnostic)
        else:
            source = OwnBoxes(refiner, files, index)
        for fact in source.facts.values():
            print(fact, file=sys.stderr if self.json else sys.stdout)
        if self.output is None:
            print_refined(source, batch_size=self.batch_size, rescore=self.rescore, as_json=self.json)
            return
        output, target = self.output, self.output / WRITTEN
        truth = GroundTruth.read(index, files, source) if index else None

        # What the boxes depend on: a journal is not continued where any of it has changed.
        inputs = {"checkpoint": self.weights, "detections file": self.detections, "annotation file": self.annotations}
        digests = {name: sha256(Path(path).read_bytes()).hexdigest() if path else None for name, path in inputs.items()}
        images = "\n".join(f"{image_id!r} {path.absolute()}" for image_id, path in source.paths.items())
        others = {"list of images": sha256(images.encode()).hexdigest(), "--class-agnostic": self.class_agnostic}
        journal = Journal(output / "progress.jsonl", digests | others, resume=self.resume)
        done = {record["image_id"] for record in journal}
        todo = {image_id: path for image_id, path in source.paths.items() if image_id not in done}

        pictures = Pictures(output / "pictures", source.paths, self.pictures, refiner.categories)
        with tqdm(total=len(source.paths), initial=len(done), desc="refine", unit="image") as bar:
            for image_ids, tensors in read_ahead(todo, self.batch_size):
                for refined in source.refine(image_ids, tensors):
                    pictures.draw(refined)
                    journal.append(refined.record())
                    bar.update()

        count = write_json_list(target, source.results(journal, "after", rescore=self.rescore))
        images_file = output / "images.json"
        if self.detections:
            images_file.unlink(missing_ok=True)  # of an earlier run, on other ids
        else:
            write_text(images_file, json.dumps(_images(source, index, journal, refiner.categories)))
        write_report(output, count, journal, source, truth, pictures)
        journal.finish()
        print(f"{count} detections in {target}, pictures and tables in {output / 'report.html'}")


def _images(
    source: Source, index: ImageIndex | None, records: Iterable[Record], categories: list[dict]
) -> dict[str, list]:
    """The images in COCO form, which tells what their ids mean; named as in the annotation file if there is one."""
    paths = {image_id: path.absolute() for image_id, path in source.paths.items()}
    # In folders of which the last ones tell images of one name apart.
    root = os.path.commonpath([path.parent for path in paths.values()])
    names = index.file_names if index else {id_: path.relative_to(root).as_posix() for id_, path in paths.items()}
    images = [
        {"id": record["image_id"], "file_name": names[record["image_id"]]}
        | {key: record[key] for key in ("height", "width")}
        for record in records
    ]
    return {"images": images, "annotations": [], "categories": categories}
