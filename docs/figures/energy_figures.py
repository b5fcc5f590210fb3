"""Figure of what the energy head learns, and of how its peak differs from the peak of the predicted IoU."""

from pathlib import Path

import torch
from card_photos import photographs, refiner
from figure_style import AFTER, CONTEXT, DATA, LOOSE, TIGHT, new_figure, outline, photo, plain, save

from iounet.boxes import boxes_at
from iounet.training.noise import BoxNoise

ROW, OBJECT = 0, 1  # the photograph and its object
NUM_NOISE_BOXES = 24


def draw(folder: Path) -> None:
    _draw_noise(folder / "method_energy_noise.png")


@torch.no_grad()
def _draw_noise(path: Path) -> None:
    image, target = photographs()[ROW]
    truth, label = target["boxes"][OBJECT], target["labels"][OBJECT : OBJECT + 1]
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    photo(left, image, truth, margin=0.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        offsets = BoxNoise().sample(NUM_NOISE_BOXES, truth)
    for box in boxes_at(offsets, truth):
        outline(left, box, LOOSE, width=0.9, alpha=0.75)
    outline(left, truth, TIGHT, width=2.6)
    left.set_title("training: which is the object's box?", fontsize=11)

    moved = torch.linspace(-0.4, 0.4, 161)
    offsets = torch.zeros(len(moved), 4)
    offsets[:, 0] = moved
    boxes = boxes_at(offsets, truth)
    detector = refiner().detector
    features = detector.extract([image])
    scale = torch.tensor([new / old for new, old in zip(features.sizes[0], image.shape[1:], strict=True)])
    boxes = boxes * scale.flip(0).repeat(2)
    labels = label.expand(len(moved))
    predicted = refiner().score(image, boxes_at(offsets, truth), labels)
    assert detector.energy_head is not None
    energy = detector.energy_head(features.maps, [boxes], labels, features.sizes)
    plain(right)
    right.plot(moved, (energy - energy.max()).exp(), color=AFTER, linewidth=2.2)
    right.plot(moved, predicted, color=DATA, linewidth=2.2)
    right.set_xlabel("box moved sideways (box widths)", fontsize=10)
    right.set_yticks([0, 0.5, 1])
    right.set_title("what the heads predict", fontsize=11)
    right.text(0.2, float(predicted[120]) + 0.05, "predicted IoU", color=DATA, fontsize=10)
    right.text(0.045, 0.12, "exp(energy)", color=AFTER, fontsize=10)
    right.axvline(0, color=CONTEXT, linewidth=0.8, linestyle=":")
    save(figure, path, photographs=True)
