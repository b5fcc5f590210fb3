"""Write boxes.json and boxes.csv, which have one row per label with its proposal and decision. Read boxes.json."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.labels import LabelSet
from ..errors import DataError
from ..files import read_json, replacing
from .decisions import Decision, labels_fingerprint, proposals_fingerprint
from .proposals import Judgement, Proposal

FORMAT = "iounet-tighten-1"

_COLUMNS = (
    *("key", "image", "class"),
    *(f"{edge}_{when}" for when in ("before", "after") for edge in ("x1", "y1", "x2", "y2")),
    *("predicted_iou_before", "predicted_iou_after", "gain", "move", "decision", "reason"),
)


def write_records(
    folder: Path,
    labels: LabelSet,
    judgements: Sequence[Judgement],
    decisions: Sequence[Decision],
    settings: dict[str, Any],
) -> None:
    """Write boxes.json and boxes.csv.

    Args:
        folder: Where the files go.
        labels: The label set.
        judgements: One per label.
        decisions: One per label.
        settings: What the proposals depend on besides the labels; `read_judgements` compares them.
    """
    content = {
        "format": FORMAT,
        "source": str(labels.source),
        "labels": labels_fingerprint(labels),
        "proposals": proposals_fingerprint(labels, judgements),
        "settings": settings,
        "faults": [asdict(fault) for fault in labels.faults],
    }
    head = json.dumps(content, indent=1).removesuffix("\n}")
    with replacing(folder / "boxes.json") as file:
        file.write(f'{head},\n "boxes": [')
        for number, row in enumerate(_rows(labels, judgements, decisions)):
            file.write((",\n" if number else "\n") + json.dumps(row))  # one row per line, for readers and for diff
        file.write("\n]\n}\n")
    with replacing(folder / "boxes.csv") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_flat, _rows(labels, judgements, decisions)))


def read_judgements(folder: Path, labels: LabelSet, settings: dict[str, Any]) -> list[Judgement] | None:
    """Read the judgements of an earlier run from boxes.json.

    Returns:
        One judgement per label, or None if there is no boxes.json or if it belongs to other labels or settings.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / "boxes.json"
    content = _read_record(path)
    if content is None:
        return None
    try:
        if content["labels"] != labels_fingerprint(labels) or content["settings"] != settings:
            return None
        return [_judgement(row) for row in content["boxes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: was modified ({error!r}); delete it to compute its boxes again") from error


def is_record(path: Path) -> bool:
    """Return whether a file is a boxes.json that `write_records` wrote."""
    return _read_record(path) is not None


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_json(path, "record of boxes")
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _rows(labels: LabelSet, judgements: Sequence[Judgement], decisions: Sequence[Decision]) -> Iterator[dict[str, Any]]:
    for label, judgement, decision in zip(labels.boxes, judgements, decisions, strict=True):
        row: dict[str, Any] = {
            "key": label.key,
            "image": labels.images[label.image].key,
            "class": label.class_name,
            "box_before": label.box,
        }
        if isinstance(judgement, Proposal):
            row |= {
                "box_after": judgement.box,
                "predicted_iou_before": judgement.iou_before,
                "predicted_iou_after": judgement.iou_after,
                "gain": judgement.gain,
                "move": judgement.move,
            }
        yield row | {"decision": decision.name, "reason": decision.reason}


def _judgement(row: dict[str, Any]) -> Judgement:
    if "box_after" not in row:
        return str(row["reason"])
    left, top, right, bottom = row["box_after"]
    return Proposal((left, top, right, bottom), row["predicted_iou_before"], row["predicted_iou_after"], row["move"])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of boxes.json to one of boxes.csv: a box becomes four columns, numbers are rounded."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name.startswith("box_"):
            when = name.removeprefix("box_")
            flat |= {
                f"{edge}_{when}": f"{of_edge:.2f}"
                for edge, of_edge in zip(("x1", "y1", "x2", "y2"), value, strict=True)
            }
        else:
            flat[name] = f"{value:.4f}" if isinstance(value, float) else value
    return flat
