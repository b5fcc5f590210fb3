"""Draw how refinement changes loose boxes around annotated objects.

    python tools/show_refinement.py --weights runs/cards_energy_heads/model_final.pth --output runs/shown \\
        --annotations runs/cards/data/test.json --images cards --rows 0 1 2 3

Moves and scales the box of the largest object in each image of --rows at random until its IoU is between 0.6 and 0.72,
refines it, and writes

    loose.png        the boxes before and after refinement
    steps.gif        the same, step by step
    landscape.png    energy, predicted IoU and true IoU around the first object (only with an energy head)
"""

import argparse
import sys
from pathlib import Path

import torch

from iounet import IoURefiner
from iounet.data import CocoDataset
from iounet.errors import UserError
from iounet.evaluation.landscape import landscape, landscape_figure
from iounet.training import jitter_boxes
from iounet.visualization import BoxChange, animation, before_and_after, save_animation

LOOSE = (0.6, 0.72)  # IoUs at the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--annotations", required=True, metavar="FILE", help="annotation file in COCO format")
    parser.add_argument("--images", required=True, metavar="DIR", help="image folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder; created if missing")
    parser.add_argument("--rows", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N",
                        help="images to draw, by their index in the file, from 0 (default: 0 1 2 3)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the loose boxes (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU if available)")
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights, args.device)
        dataset = CocoDataset(args.annotations, args.images)
        args.output.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(args.seed)
        changes = [loose(refiner, dataset, row, generator) for row in args.rows]
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    before_and_after(changes).save(args.output / "loose.png")
    save_animation(animation(changes), str(args.output / "steps.gif"))
    if refiner.detector.energy_head is not None:
        image, target = dataset[args.rows[0]]
        chosen = largest(target)
        label = int(target["labels"][chosen])
        seen = landscape(refiner.detector, image.to(refiner.device), target["boxes"][chosen], label)
        landscape_figure(seen, args.output / "landscape.png")
    gains = ", ".join(f"{change.true_ious[0]:.2f} → {change.true_ious[-1]:.2f}" for change in changes)
    print(f"{args.output}: true IoU {gains}")


def largest(target: dict) -> int:
    boxes = target["boxes"]
    return int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())


def loose(refiner: IoURefiner, dataset: CocoDataset, row: int, generator: torch.Generator) -> BoxChange:
    """A loose box around the largest object of an image, and the box after every step of refinement."""
    image, target = dataset[row]
    chosen = largest(target)
    truth, label = target["boxes"][chosen], target["labels"][chosen : chosen + 1]
    height, width = image.shape[-2:]
    tries, ious = jitter_boxes(truth[None], 64, generator=generator, image_size=(height, width))
    start = tries[0, ((ious[0] > LOOSE[0]) & (ious[0] < LOOSE[1])).nonzero()[0]]
    path = refiner.refinement_path(image, start, label)[:, 0]
    predicted = torch.cat([refiner.score(image, box[None], label) for box in path])
    return BoxChange(image, path, predicted, truth, dataset.class_names[int(label) - 1])


if __name__ == "__main__":
    main()
