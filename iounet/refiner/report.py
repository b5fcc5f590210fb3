"""The report page of a run, with AP before and after refinement if the ground truth is known."""

import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torchvision

from ..evaluation import AP_IN_WORDS, DRAWN_IN_WORDS, changes_section, markdown_table, without_nan
from ..files import write_text
from ..html_report import Picture, Section, write_html
from ..visualization import changes_sheet
from .ground_truth import GroundTruth
from .pictures import Pictures
from .sources import Record, Source

_TITLE = "Refined boxes"
SHOWN = 6  # number of pictures on the page; pictures/ contains all of them


def write_report(
    folder: Path,
    num_detections: int,
    records: Iterable[Record],
    source: Source,
    more_facts: dict[str, str],
    truth: GroundTruth | None,
    pictures: Pictures,
) -> None:
    """Write report.html and, with ground truth, evaluation.json.

    Args:
        folder: output folder; it already contains detections.json with the results of ``records``.
        num_detections: number of detections in detections.json.
        records: records of all images; iterated several times.
        source: the images and boxes.
        more_facts: further facts about the images and boxes, heading → text.
        truth: ground truth, if known.
        pictures: the pictures of the run.
    """
    (folder / "evaluation.json").unlink(missing_ok=True)  # left by an earlier run
    sections = [*_comparison(folder, truth, source, records), _pictures_section(pictures)]
    before, after = ([iou for record in records for iou in record[name]] for name in ("ious_before", "ious"))
    means = f"{statistics.fmean(before):.3f} before, {statistics.fmean(after):.3f} refined" if after else "no boxes"
    facts = {
        "command": shlex.join(sys.argv),
        "images": str(len(source.paths)),
        "detections": str(num_detections),
        "mean predicted IoU": means,
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    write_html(folder / "report.html", f"{_TITLE}: {folder.name}", facts=facts | more_facts, sections=sections)


def is_report(path: Path) -> bool:
    """Return whether the file is a page that `write_report` wrote."""
    return path.is_file() and f"<title>{_TITLE}: ".encode() in path.read_bytes()[:2000]


def _comparison(
    folder: Path, truth: GroundTruth | None, source: Source, records: Iterable[Record]
) -> Iterator[Section]:
    """Yield the sections on AP, which is also printed, and on the boxes that changed most."""
    if truth is None:
        return
    before, left_out = truth.ap(source.results(records, "before"))
    refined, _ = truth.ap(json.loads((folder / "detections.json").read_bytes()))  # includes rescored scores
    table = {"before": before, "refined": refined}
    print(f"\n{markdown_table(table)}\n")
    write_text(folder / "evaluation.json", json.dumps(without_nan({"table": table}), indent=1) + "\n")
    notes = []
    if left_out:
        notes.append(
            f"AP leaves out {left_out} of the detections: their image or class is not in the annotation file, or their "
            "width or height is negative."
        )
    if refined["AP"] < before["AP"]:
        notes.append(
            "Refinement lowered AP: the refiner has probably seen too few objects of this kind. Train it on more of "
            "them; for boxes of another detector, try --class-agnostic."
        )
    for note in notes:
        print(f"{note}\n")
    text = "\n\n".join([AP_IN_WORDS, *notes])
    yield Section("Average precision", text, table=table)
    yield changes_section(
        changes_sheet(truth.most_changed(records)),
        "Only boxes with an IoU of at least 0.5 with an object of their class before refinement.",
    )


def _pictures_section(pictures: Pictures) -> Section:
    """Return the section with the first pictures that exist. An earlier, stopped run may have drawn fewer or more."""
    text = (
        "Dashed: before refinement. Solid: after refinement, with the predicted IoU before → after. White: ground "
        f"truth, if known. {DRAWN_IN_WORDS}"
    )
    shown = [
        Picture(path, path.stem, f"The boxes of {path.stem} before and after refinement")
        for path in islice(filter(Path.exists, pictures.paths.values()), SHOWN)
    ]
    return Section("Boxes before and after refinement", text, pictures=shown)
