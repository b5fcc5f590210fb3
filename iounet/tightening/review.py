"""The review page: one card for each of the proposals with the largest gains, to accept or reject."""

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

# At this size a card takes 16 to 30 kB, and a page of 200 cards 4 to 6 MB.
_CROP = 300
_MARGIN = 1.35  # side of the crop relative to a square around both boxes; leaves some background visible
_JPEG_QUALITY = 80


def write_review(
    path: Path, labels: LabelSet, judgements: Sequence[Judgement], decisions: Sequence[Decision], *, limit: int
) -> int:
    """Write a page that contains its pictures, works from a file:// address and loads nothing from the network.

    Each card shows the label's box and the proposed box, and starts with the given decision. The button "Save
    decisions" downloads a file for `ReviewedLabels`.

    Args:
        path: The HTML file to write.
        labels: The label set.
        judgements: One per label.
        decisions: One per label.
        limit: Maximum number of cards. The page shows the moved boxes with the largest gains in predicted IoU.

    Returns:
        The number of cards.
    """
    moved = [
        (judgement.gain, row, judgement)
        for row, judgement in enumerate(judgements)
        if isinstance(judgement, Proposal) and judgement.move > 0
    ]
    best = sorted(moved, key=lambda candidate: (-candidate[0], candidate[1]))[:limit]
    # Group the cards by image, so that each image is read once.
    cards: dict[int, dict[str, Any]] = {}
    for image in sorted({labels.boxes[row].image for _, row, _ in best}):
        try:
            photo = to_pil(read_image(labels.images[image].path).as_subclass(Tensor))
        except DataError:  # the image was removed after its boxes were refined
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
        # A class named "</script>" would end the script element.
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
    """Convert a box to x, y, width, height in pixels of the crop."""
    scale = _CROP / region.side
    left, top, right, bottom = box
    return [round(value * scale, 1) for value in (left - region.left, top - region.top, right - left, bottom - top)]
