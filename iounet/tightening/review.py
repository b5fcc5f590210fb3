"""The review page: a card for each of the proposals of the greatest gains, to be accepted or not by a person."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import read_image
from ..data.labels import LabelSet
from ..errors import DataError
from ..files import write_text
from ..visualization.crops import Region, magnified, region_around
from ..visualization.drawing import to_pil
from .decisions import DECISIONS_FORMAT, Decision, labels_fingerprint, proposals_fingerprint
from .proposals import Judgement, Proposal

# A card of 16 to 30 kB, so that 200 make a page of 4 to 6 MB.
_CROP = 300
_MARGIN = 1.35  # of the crop around both boxes: enough to see what the object stands before
_JPEG_QUALITY = 80


def write_review(
    path: Path, labels: LabelSet, judgements: Sequence[Judgement], decisions: Sequence[Decision], *, limit: int
) -> int:
    """Writes a page that holds its pictures, works from a file:// address and asks nothing of the network.

    Each card shows the label's box and the proposed one and begins with the decision there is. The button "Save
    decisions" downloads a file for :class:`ReviewedLabels`.

    Args:
        judgements, decisions: one a label.
        limit: cards, at most; those of the greatest gains in predicted IoU. Boxes that were not moved have none.

    Returns:
        The number of cards.
    """
    moved = [
        (judgement.gain, row, judgement)
        for row, judgement in enumerate(judgements)
        if isinstance(judgement, Proposal) and judgement.move > 0
    ]
    best = sorted(moved, key=lambda candidate: (-candidate[0], candidate[1]))[:limit]
    # Each image is read once, for all of its cards.
    cards: dict[int, dict[str, Any]] = {}
    for image in sorted({labels.boxes[row].image for _, row, _ in best}):
        try:
            photo = to_pil(read_image(labels.images[image].path).as_subclass(Tensor))
        except DataError:  # removed since its boxes were refined
            continue
        for _, row, proposal in best:
            if labels.boxes[row].image == image:
                cards[row] = _card(photo, labels, row, proposal, decisions[row])
    content = {
        "format": DECISIONS_FORMAT,
        "labels": labels_fingerprint(labels),
        "proposals": proposals_fingerprint(labels, judgements),
        "cards": [cards[row] for _, row, _ in best if row in cards],
    }
    page = files(__package__) / "page"
    parts = {name: (page / f"review.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    html = Template(parts["html"]).substitute(
        title=escape(f"Review of {labels.source.name}"),
        source=escape(str(labels.source)),
        num_moved=f"{len(moved):,}",
        num_labels=f"{len(labels.boxes):,}",
        crop=_CROP,
        style=parts["css"],
        script=parts["js"],
        # A class named "</script>" would end the script that holds it.
        content=json.dumps(content).replace("<", "\\u003c"),
    )
    write_text(path, html)
    return len(content["cards"])


def _card(photo: Image.Image, labels: LabelSet, row: int, proposal: Proposal, decision: Decision) -> dict[str, Any]:
    label = labels.boxes[row]
    corners = torch.tensor([label.box, proposal.box]).view(4, 2)
    region = region_around(corners, _MARGIN)
    file = io.BytesIO()
    magnified(photo, region, _CROP).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return {
        "key": label.key,
        "class": label.class_name,
        "image": labels.images[label.image].path.name,
        "before": _in_crop(label.box, region),
        "after": _in_crop(proposal.box, region),
        "iou_before": round(proposal.iou_before, 4),
        "iou_after": round(proposal.iou_after, 4),
        "gain": round(proposal.gain, 4),
        "move": round(proposal.move, 4),
        "decision": decision.name,
        "reason": decision.reason,
        "jpeg": base64.b64encode(file.getvalue()).decode("ascii"),
    }


def _in_crop(box: Sequence[float], region: Region) -> list[float]:
    """A box as x, y, width, height in pixels of the crop."""
    scale = _CROP / region.side
    left, top, right, bottom = box
    return [round(value * scale, 1) for value in (left - region.left, top - region.top, right - left, bottom - top)]
