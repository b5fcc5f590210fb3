"""The page of a run, and AP before and after refinement where the objects are known."""

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
SHOWN = 6  # pictures on the page; all of them lie in pictures/


def write_report(
    folder: Path,
    num_detections: int,
    records: Iterable[Record],
    source: Source,
    more_facts: dict[str, str],
    truth: GroundTruth | None,
    pictures: Pictures,
) -> None:
    """Writes report.html and, with ground truth, evaluation.json.

    Args:
        num_detections: all that were written.
        records: of all images; iterated over several times. detections.json, made of them, lies in the folder.
        more_facts: what a user should know of the images and boxes, under headings.
        truth: the objects; None: they are not known.
    """
    (folder / "evaluation.json").unlink(missing_ok=True)  # of an earlier run, on other boxes
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
    """Whether the file is a page that :func:`write_report` wrote."""
    return path.is_file() and f"<title>{_TITLE}: ".encode() in path.read_bytes()[:2000]


def _comparison(
    folder: Path, truth: GroundTruth | None, source: Source, records: Iterable[Record]
) -> Iterator[Section]:
    """AP before and after, which is printed, too, and the boxes that changed most."""
    if truth is None:
        return
    before, left_out = truth.ap(source.results(records, "before"))
    refined, _ = truth.ap(json.loads((folder / "detections.json").read_bytes()))  # with the scores written there
    table = {"before": before, "refined": refined}
    print(f"\n{markdown_table(table)}\n")
    write_text(folder / "evaluation.json", json.dumps(without_nan({"table": table}), indent=1) + "\n")
    notes = []
    if left_out:
        notes.append(
            f"{left_out} of the detections have no part in it: their image or class is not in the annotation file, or "
            "their width or height is negative."
        )
    if refined["AP"] < before["AP"]:
        notes.append(
            "Refinement lowered AP: the refiner has learned too little about such objects. Train it on more of them; "
            "for boxes of another detector, try --class-agnostic."
        )
    for note in notes:
        print(f"{note}\n")
    text = "\n\n".join([AP_IN_WORDS, *notes])
    yield Section("Average precision", text, table=table)
    yield changes_section(
        changes_sheet(truth.most_changed(records)),
        "Of the boxes that overlapped an object of their class by an IoU of at least 0.5.",
    )


def _pictures_section(pictures: Pictures) -> Section:
    """The first pictures that lie in the folder: a resumed run may have had another number of them."""
    text = (
        "Dashed: before. Solid: refined, with the predicted IoU before → after. White: the object, where it is known. "
        f"{DRAWN_IN_WORDS}"
    )
    shown = [
        Picture(path, path.stem, f"The boxes of {path.stem} before and after refinement")
        for path in islice(filter(Path.exists, pictures.paths.values()), SHOWN)
    ]
    return Section("Boxes before and after refinement", text, pictures=shown)
