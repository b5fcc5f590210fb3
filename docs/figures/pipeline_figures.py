"""Figure of the detector's stages, each drawn on a crop around one card in a photograph."""

from pathlib import Path

import torch
from card_photos import card_with_two_candidates, refiner
from figure_style import AFTER, BEFORE, CONTEXT, LOOSE, TIGHT, new_figure, outline, photo, save
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.ops import box_iou

ROW, CARD = 2, 0  # the photograph and its card
BLUE, DARK_BLUE = "#59b4ff", "#2a86d1"  # on photographs, and on white
NUM_PROPOSALS = 12


@torch.no_grad()
def draw(folder: Path) -> None:
    card = card_with_two_candidates(ROW, CARD)
    detector = refiner().detector
    features = detector.extract([card.image])
    height, width = card.image.shape[1:]
    to_photo = torch.tensor([width, height]) / torch.tensor(features.sizes[0]).flip(0)
    proposals = detector.propose(features)[0] * to_photo.repeat(2)
    proposals = proposals[box_iou(card.truth[None], proposals)[0] > 0.3][:NUM_PROPOSALS]
    pair = card.found[torch.stack([card.greedy, card.guided])]
    refined = refiner().refine(card.image, pair.boxes[1:], pair.labels[1:])

    figure = new_figure(4.7)
    rows = figure.subfigures(2, 1)
    rows[0].suptitle("Faster R-CNN", fontsize=12, color=CONTEXT, weight="bold", x=0.01, ha="left")
    rows[1].suptitle("IoU-Net adds", fontsize=12, color=AFTER, weight="bold", x=0.01, ha="left")
    upper, lower = (row.subplots(1, 4) for row in rows)
    titles = ("image", "features", "proposals", "boxes, class scores", "predicted IoU", "IoU-guided NMS", "refinement")
    for axes, title in zip((*upper, *lower), titles, strict=False):
        photo(axes, card.image, card.truth, margin=0.35)
        axes.set_title(title, fontsize=11)
    # Cover the whole photograph with the feature map, and keep the limits of the other panels.
    finest = features.maps["0"][0].abs().mean(0)
    upper[1].imshow(finest, cmap="Greys_r", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    upper[1].set(xlim=upper[0].get_xlim(), ylim=upper[0].get_ylim())
    for box in proposals:
        outline(upper[2], box, BLUE, width=0.9)
    _labelled(upper[3], pair.boxes, pair.scores)
    _labelled(lower[0], pair.boxes, pair.ious)
    outline(lower[1], pair.boxes[1], BLUE)
    outline(lower[2], pair.boxes[1], BLUE, width=1.2, line="--")
    outline(lower[2], refined.boxes[0], TIGHT)
    _true_ious(lower[3], box_iou(torch.cat([pair.boxes, refined.boxes]), card.truth[None])[:, 0])
    save(figure, folder / "method_pipeline.png", photographs=True, exact=(BLUE, DARK_BLUE, CONTEXT))


def _labelled(axes: Axes, boxes: Tensor, values: Tensor) -> None:
    """Draw the boxes that greedy NMS (orange) and IoU-guided NMS (blue) keep, with their values underneath."""
    colours = ((LOOSE, BEFORE), (BLUE, DARK_BLUE))
    for box, value, (line, colour), place in zip(boxes, values, colours, (0.25, 0.75), strict=True):
        outline(axes, box, line, width=1.6)
        style = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": 12, "weight": "bold"}
        axes.text(place, -0.03, f"{value:.2f}", color=colour, **style)


def _true_ious(axes: Axes, ious: Tensor) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.94, "true IoU after", transform=axes.transAxes, fontsize=10, ha="center", va="top")
    names = ("greedy NMS", "IoU-guided NMS", "refinement")
    for height, name, iou, colour in zip((0.62, 0.36, 0.1), names, ious, (BEFORE, DARK_BLUE, AFTER), strict=True):
        style = {"transform": axes.transAxes, "color": colour, "ha": "center", "va": "bottom"}
        axes.text(0.5, height, f"{iou:.2f}", fontsize=13, weight="bold", **style)
        axes.text(0.5, height - 0.09, name, fontsize=9, **style)
