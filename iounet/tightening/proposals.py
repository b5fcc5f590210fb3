"""Refine label boxes: a proposed box for each label, or the reason why there is none."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from ..categories import match_names
from ..data.labels import Box, LabeledBox, LabelSet
from ..errors import DataError
from ..progress import progress
from ..refiner import IoURefiner
from ..refiner.read_ahead import read_ahead

# Reasons why a label has no proposal. The summary counts labels by them.
CROWD = "crowd or difficult"
MORE_THAN_A_BOX = "has more than a box, such as a polygon"
NOT_SELECTED = "class not in --only"
UNKNOWN_CLASS = "class unknown to the refiner"
UNREADABLE = "image missing or damaged"
NOT_FINITE = "predicted IoU is not a number"

# Decimal places of a proposed box, in pixels. Labels are hardly ever finer.
_DIGITS = 2


@dataclass(frozen=True)
class Proposal:
    """A refined box for a label.

    Attributes:
        box: Box in xyxy, in the frame of `iounet.data.labels.LabeledBox.box`, rounded to a hundredth of a pixel; the
            label's box if the refiner did not move it.
        iou_before: Predicted IoU of the label's box with the object.
        iou_after: Predicted IoU of `box` with the object.
        move: 1 - IoU of the label's box and `box`, in [0, 1].
    """

    box: Box
    iou_before: float
    iou_after: float
    move: float

    @property
    def gain(self) -> float:
        """Rise of the predicted IoU."""
        return self.iou_after - self.iou_before

    @classmethod
    def of(cls, label: Box, refined: Sequence[float], iou_before: float, iou_after: float) -> "Proposal":
        """Make a proposal from a refined box, which is rounded."""
        left, top, right, bottom = (round(edge, _DIGITS) for edge in refined)
        box = (left, top, right, bottom)
        if tuple(refined) == label or right <= left or bottom <= top:
            return cls(label, iou_before, iou_before, 0.0)
        overlap = box_iou(torch.tensor([label], dtype=torch.float64), torch.tensor([box], dtype=torch.float64))
        return cls(box, iou_before, iou_after, 1 - float(overlap))


# A proposal, or the reason why there is none.
Judgement = Proposal | str


def reason_to_stay(label: LabeledBox, only: Collection[str]) -> str:
    """Return the reason why no refiner may move a label, or "" if it may be moved.

    Args:
        label: The label.
        only: Names of the classes to tighten. Empty means all.
    """
    if label.crowd:
        return CROWD
    if not label.movable:
        return MORE_THAN_A_BOX
    return NOT_SELECTED if only and label.class_name not in only else ""


def propose(
    refiner: IoURefiner,
    labels: LabelSet,
    rows: Sequence[int],
    *,
    class_agnostic: bool = False,
    batch_size: int = 1,
    description: str = "tighten",
) -> dict[int, Judgement]:
    """Refine the boxes of labels. Images that cannot be read are skipped.

    Args:
        refiner: Refines the boxes.
        labels: The label set.
        rows: Indices of the labels to refine in `labels.boxes`.
        class_agnostic: Refine every box without regard to its class.
        batch_size: Images per batch.
        description: Label of the progress bar.

    Returns:
        Row → proposal, or the reason why there is none.
    """
    known = match_names(labels.class_names, refiner.categories)
    label_of = dict(zip(labels.class_names, known, strict=True))
    judged: dict[int, Judgement] = {}
    in_images: dict[int, list[int]] = {}
    for row in rows:
        if class_agnostic or label_of[labels.boxes[row].class_name]:
            in_images.setdefault(labels.boxes[row].image, []).append(row)
        else:
            judged[row] = UNKNOWN_CLASS

    def give_up(image: int, error: DataError) -> None:
        judged.update(dict.fromkeys(in_images[image], UNREADABLE))
        tqdm.write(f"skipped: {error}")

    paths = {image: labels.images[image].path for image in sorted(in_images)}
    with progress(total=len(paths), desc=description, unit="image", disable=not paths) as bar:
        for images, tensors in read_ahead(paths, batch_size, on_fault=give_up):
            batch = [in_images[image] for image in images]
            boxes = [
                torch.tensor([labels.boxes[row].box for row in of_image], dtype=torch.float64) for of_image in batch
            ]
            classes = [
                [0 if class_agnostic else label_of[labels.boxes[row].class_name] for row in of_image]
                for of_image in batch
            ]
            for of_image, refined in zip(batch, refiner.refine_batch(tensors, boxes, classes), strict=True):
                columns = (refined.boxes.tolist(), refined.ious_before.tolist(), refined.ious.tolist())
                for row, box, before, after in zip(of_image, *columns, strict=True):
                    judged[row] = _judgement(labels.boxes[row].box, box, before, after)
            bar.update(len(images))
        bar.update(bar.total - bar.n)  # skipped images
    return judged


def _judgement(label: Box, refined: Sequence[float], iou_before: float, iou_after: float) -> Judgement:
    # Weights that overflow give NaN, which passes every threshold and is not valid JSON for a browser.
    if not all(map(math.isfinite, (*refined, iou_before, iou_after))):
        return NOT_FINITE
    return Proposal.of(label, refined, iou_before, iou_after)
