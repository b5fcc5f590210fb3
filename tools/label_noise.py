"""Measure how well iounet-tighten finds and restores label boxes that were moved at random.

    python tools/label_noise.py runs/cards/data/test.json --images cards --weights weights/cards.pth \\
        --output docs/results/label_noise/cards

Moves half of the labels by up to 5, 10 and 20 % of their width and height, and tightens all labels. Use a data set that
the IoU-Net was not trained on. iounet/tightening/label_noise.py describes the protocol.

Writes label_noise.json and label_noise.md: the IoU with the original boxes before and after tightening, and how well
the predicted IoU, its gain and the move distinguish moved labels from the others. If cleanlab is installed (pip install
cleanlab), its score is measured as well.
"""

import argparse
import json
import sys
from pathlib import Path

from iounet import IoURefiner
from iounet.data.label_files import read_labels
from iounet.errors import UserError
from iounet.evaluation import without_nan
from iounet.files import write_text
from iounet.tightening import Thresholds
from iounet.tightening.label_noise import first_images, mean_over_seeds, measure, noise_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="data set, as for iounet-tighten")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by iounet-train")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder; created if missing")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder, if the labels do not locate the images"
    )
    parser.add_argument("--split", metavar="NAME", help="use one split of the data set")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.1, 0.2], metavar="P",
                        help="maximum shift of an edge, relative to box size (default: 0.05 0.1 0.2)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N",
                        help="seeds of the noise (default: 0 1 2)")  # fmt: skip
    parser.add_argument("--max-images", type=int, default=sys.maxsize, metavar="N", help="use only the first N images")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU if available)")
    args = parser.parse_args()
    if not all(0 < amount < 0.5 for amount in args.noise):
        parser.error("--noise: every value must be greater than 0 and less than 0.5")
    try:
        labels = first_images(read_labels(args.source, images=args.images, split=args.split), args.max_images)
        refiner = IoURefiner.from_checkpoint(args.weights, args.device)
        thresholds = Thresholds()
        of_seeds = [
            measure(refiner, labels, args.noise, thresholds=thresholds, seed=seed, batch_size=args.batch_size)
            for seed in args.seeds
        ]
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    facts = {"source": str(args.source), "weights": args.weights, "seeds": args.seeds, **vars(thresholds)}
    facts |= {"num_images": len(labels.images), "num_labels": len(labels.boxes)}
    mean = mean_over_seeds(of_seeds)
    facts |= {"mean": mean, "of_seeds": of_seeds}
    table = noise_table(mean)
    write_text(args.output / "label_noise.json", json.dumps(without_nan(facts), indent=1) + "\n")
    write_text(args.output / "label_noise.md", table + "\n")
    print(table)


if __name__ == "__main__":
    main()
