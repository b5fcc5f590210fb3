"""Measure how refinement improves loose boxes, and how accurate the predicted IoU is afterwards.

    python tools/loose_boxes.py runs/cards/data/test.json --images cards --weights weights/cards.pth \\
        --output weights/cards.json

Each object gets jittered boxes whose IoUs are uniform over [0.6, 1]. Boxes with an initial IoU above 0.9 are
reported separately: they are as good as an annotator's, and often cannot improve.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from iounet import IoURefiner
from iounet.data import check_categories, eval_loader, open_dataset
from iounet.errors import UserError
from iounet.evaluation import measure_calibration, without_nan
from iounet.evaluation.basins import jittered_paths
from iounet.evaluation.tables import markdown
from iounet.files import write_text
from iounet.training import jitter_boxes

BOXES_PER_OBJECT = 16
STARTS = {"0.6 to 0.7": (0.6, 0.7), "0.7 to 0.8": (0.7, 0.8), "0.8 to 0.9": (0.8, 0.9), "0.6 to 0.9": (0.6, 0.9)}
STARTS |= {"0.9 to 1": (0.9, 1.01)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="data set in COCO, VOC or YOLO format")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON file for the results")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder, if the labels do not locate the images"
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="split, if there are several (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the loose boxes (default: 0)")
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights)
        dataset = open_dataset(args.source, args.images, split=args.split)
        check_categories(refiner.categories, dataset, args.weights)
        generator = torch.Generator().manual_seed(args.seed)

        def jitter(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
            return jitter_boxes(boxes, BOXES_PER_OBJECT, min_iou=0.6, image_size=image_size, generator=generator)[0]

        num_steps = refiner.detector.postprocessing.refinement.num_steps
        batches = eval_loader(dataset, batch_size=1, num_workers=0)
        true, predicted = jittered_paths(
            refiner.detector, batches, jitter, num_steps=num_steps, device=torch.device("cpu")
        )
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    figures = {name: summary(true, predicted, *limits) for name, limits in STARTS.items()}
    facts = {"images": len(dataset), "seed": args.seed, "starts": figures}
    write_text(args.output, json.dumps(without_nan(facts), indent=1) + "\n")
    head = ["IoU at the start", "boxes", "IoU", "improved", "predicted IoU", "calibration error"]
    rows = [
        [
            name,
            str(row["boxes"]),
            f"{row['before']:.3f} → {row['after']:.3f}",
            f"{row['improved']:.0%}",
            f"{row['predicted_before']:.3f} → {row['predicted_after']:.3f}",
            f"{row['calibration_error']:.3f}",
        ]
        for name, row in figures.items()
    ]
    print(markdown(head, rows))


def summary(true: Tensor, predicted: Tensor, low: float, high: float) -> dict[str, float]:
    """Means over the boxes with an initial IoU in [low, high); rows of `true` and `predicted` are steps."""
    chosen = (true[0] >= low) & (true[0] < high)
    before, after = true[0, chosen], true[-1, chosen]
    return {
        "boxes": len(before),
        "before": before.mean().item(),
        "after": after.mean().item(),
        "improved": (after > before).double().mean().item(),
        "predicted_before": predicted[0, chosen].mean().item(),
        "predicted_after": predicted[-1, chosen].mean().item(),
        "calibration_error": measure_calibration(predicted[-1, chosen], after).error,
    }


if __name__ == "__main__":
    main()
