"""Energy, predicted IoU and true IoU of shifted and widened boxes around an object."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..boxes import box_offsets, boxes_at, elementwise_iou
from ..detections import Detections
from ..modeling import BoxFunction, IoUNet
from .figures import new_figure

GRID = 61  # points on each axis
MOVED = 0.5  # largest shift, in widths of the object
WIDENED = 0.7  # largest logarithm of the relative width: from half to twice the width


@dataclass(frozen=True)
class Landscape:
    """Values for boxes that are shifted horizontally (columns) and widened (rows) relative to an object's box.

    Attributes:
        image: float [3, H, W], RGB in [0, 1].
        ground_truth: float [4], the object's box, xyxy in pixels of the image.
        moved: float [G], shifts in widths of the object's box.
        widened: float [G], logarithms of the width relative to the object's box.
        energy: float [G, G], the energy minus its maximum.
        predicted: float [G, G], the predicted IoU.
        true: float [G, G], the true IoU.
        path: float [T + 1, 4], a box after 0, 1, ..., T steps of refinement, xyxy in pixels of the image.
    """

    image: Tensor
    ground_truth: Tensor
    moved: Tensor
    widened: Tensor
    energy: Tensor
    predicted: Tensor
    true: Tensor
    path: Tensor


@torch.no_grad()
def landscape(
    detector: IoUNet, image: Tensor, ground_truth: Tensor, label: int, *, start: tuple[float, float] = (0.18, 0.25)
) -> Landscape:
    """Evaluate the heads of a detector around an object.

    Args:
        detector: A detector with an energy head.
        image: float [3, H, W], RGB in [0, 1], on the detector's device.
        ground_truth: float [4], the object's box, xyxy in pixels of the image.
        label: Class of the object.
        start: (moved, widened) of the box from which refinement starts.
    """
    assert detector.energy_head is not None
    detector.eval()
    ground_truth = ground_truth.to(image)
    moved = torch.linspace(-MOVED, MOVED, GRID, device=image.device)
    widened = torch.linspace(-WIDENED, WIDENED, GRID, device=image.device)
    offsets = torch.zeros(GRID, GRID, 4, device=image.device)
    offsets[..., 0], offsets[..., 2] = moved, widened[:, None]
    boxes = boxes_at(offsets, ground_truth).reshape(-1, 4)
    features = detector.extract([image])

    def as_detections(boxes: Tensor) -> Detections:
        ones = torch.ones(len(boxes), device=boxes.device)
        detections = Detections(boxes, torch.full_like(ones, label, dtype=torch.int64), ones, ones)
        return detections.rescaled(features.original_sizes[0], features.sizes[0])

    grid, centre = as_detections(boxes), as_detections(ground_truth[None])

    def on_grid(head: BoxFunction) -> Tensor:
        # All boxes use the pyramid level of the object, because refinement keeps the level of its initial box.
        levels = head.assign_levels(features.maps, [centre.boxes], features.sizes).expand(len(boxes))
        values: Tensor = head(features.maps, [grid.boxes], grid.labels, features.sizes, levels)
        return values.reshape(GRID, GRID)

    energy = on_grid(detector.energy_head)
    predicted = detector.iou_head.calibrated(on_grid(detector.iou_head))
    start_box = boxes_at(torch.tensor([[start[0], 0.0, start[1], 0.0]], device=image.device), ground_truth)
    options = replace(detector.postprocessing.refinement, num_steps=20)
    path = torch.cat(
        [
            features.to_original(after)[0].boxes
            for after in detector.refinement_path(features, [as_detections(start_box)], options)
        ]
    )
    return Landscape(
        image.cpu(),
        ground_truth.cpu(),
        moved.cpu(),
        widened.cpu(),
        (energy - energy.max()).cpu(),
        predicted.cpu(),
        elementwise_iou(boxes, ground_truth).reshape(GRID, GRID).cpu(),
        path.cpu(),
    )


def landscape_figure(values: Landscape, path: Path) -> None:
    """Plot the image and the three planes, with the path of the refined box, to a PNG file."""
    figure, canvas = new_figure((11, 3.3))
    photo, *planes = figure.subplots(1, 4, width_ratios=(1.1, 1, 1, 1))
    photo.imshow(values.image.permute(1, 2, 0).clamp(0, 1).numpy())
    photo.axis("off")
    photo.set_title("loose box, steps, tight box", fontsize=10)
    for number, box in enumerate(values.path.tolist()):
        first, last = number == 0, number == len(values.path) - 1
        colour = "tab:orange" if first else "lime" if last else "white"
        x1, y1, x2, y2 = box
        photo.plot(
            [x1, x2, x2, x1, x1],
            [y1, y1, y2, y2, y1],
            color=colour,
            linewidth=2 if first or last else 0.6,
            alpha=1 if first or last else 0.5,
            linestyle="--" if first else "-",
        )
    low, high = values.path[:, :2].amin(0), values.path[:, 2:].amax(0)
    margin = 0.25 * (high - low).amax()
    photo.set_xlim(float(low[0] - margin), float(high[0] + margin))
    photo.set_ylim(float(high[1] + margin), float(low[1] - margin))
    path_offsets = box_offsets(values.path, values.ground_truth)
    moved, widened = path_offsets[:, 0], path_offsets[:, 2]
    for axes, title, plane, levels in (
        (planes[0], "energy (log density)", values.energy, torch.linspace(-40, 0, 21)),
        (planes[1], "predicted IoU", values.predicted, torch.linspace(0, 1, 21)),
        (planes[2], "true IoU", values.true, torch.linspace(0, 1, 21)),
    ):
        grid = (values.moved, values.widened)
        axes.contourf(*grid, plane.clamp(min=float(levels[0])), levels=levels, cmap="viridis")
        axes.contour(*grid, plane, levels=levels[::2], colors="white", linewidths=0.4, alpha=0.6)
        axes.plot(moved, widened, color="tab:orange", marker=".", markersize=4, linewidth=1.2)
        axes.plot(moved[-1], widened[-1], color="lime", marker="o", markersize=6, linestyle="none")
        axes.plot(0, 0, color="red", marker="+", markersize=11, markeredgewidth=2, linestyle="none")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("shift in widths of the object", fontsize=9)
        axes.set_yticks([-0.693, 0, 0.693], ["½", "1", "2"])
        axes.set_ylim(-WIDENED, WIDENED)
        axes.set_xlim(-MOVED, MOVED)
    planes[0].set_ylabel("width relative to the object", fontsize=9)
    canvas.print_png(path)
