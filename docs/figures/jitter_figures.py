"""Figures of the IoU head's training boxes, which are uniform in IoU, unlike boxes with independently moved edges."""

from pathlib import Path

import torch
from card_photos import photographs
from figure_style import AFTER, BEFORE, LOOSE, new_figure, outline, photo, plain, save
from torch import Tensor

from iounet.boxes import box_sizes, elementwise_iou
from iounet.training import jitter_boxes

NUM_BOXES = 20_000
SHOWN_IOUS = (0.55, 0.65, 0.75, 0.85, 0.95)
ROW, OBJECT = 0, 0  # the photograph and its object


def draw(folder: Path) -> None:
    _draw_histograms(folder / "method_jitter_ious.png")
    _draw_boxes(folder / "method_jitter_boxes.png")


def naive_ious(box: Tensor, reach: float = 0.3) -> Tensor:
    """Return the IoUs ≥ 0.5 of boxes whose edges move independently by up to ``reach`` of the width or height."""
    generator = torch.Generator().manual_seed(0)
    shifts = reach * (2 * torch.rand(NUM_BOXES, 4, generator=generator) - 1)
    ious = elementwise_iou(box, box + shifts * box_sizes(box).repeat(2))
    return ious[ious >= 0.5]


def jittered_ious(box: Tensor) -> Tensor:
    return jitter_boxes(box[None], NUM_BOXES, generator=torch.Generator().manual_seed(0))[1][0]


def _draw_histograms(path: Path) -> None:
    figure = new_figure(2.5)
    left, right = figure.subplots(1, 2, sharey=True)
    box = torch.tensor([0.0, 0.0, 100.0, 140.0])
    edges = torch.linspace(0.5, 1, 21)
    for axes, ious, colour, title in (
        (left, naive_ious(box), BEFORE, "each edge moved at random"),
        (right, jittered_ious(box), AFTER, "jitter_boxes: IoU drawn first"),
    ):
        plain(axes).hist(ious, edges, color=colour, density=True, edgecolor="white", linewidth=0.6)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("IoU with the ground truth", fontsize=10)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    left.set_ylabel("boxes", fontsize=10)
    save(figure, path)


def _draw_boxes(path: Path) -> None:
    image, target = photographs()[ROW]
    truth = target["boxes"][OBJECT]
    boxes, ious = jitter_boxes(
        truth[None], 400, image_size=tuple(image.shape[1:]), generator=torch.Generator().manual_seed(1)
    )
    figure = new_figure(1.75)
    for axes, wanted in zip(figure.subplots(1, len(SHOWN_IOUS)), SHOWN_IOUS, strict=True):
        chosen = int((ious[0] - wanted).abs().argmin())
        photo(axes, image, truth, margin=0.3)
        outline(axes, truth, "white", width=1.2)
        outline(axes, boxes[0, chosen], LOOSE, width=2)
        axes.set_title(f"IoU {ious[0, chosen]:.2f}", fontsize=11)
    save(figure, path, photographs=True)
