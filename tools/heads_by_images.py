"""Measure how many labelled images new heads need on the frozen backbone of another model (iounet-tighten --folds).

    python tools/heads_by_images.py runs/bccd/data/train.json runs/bccd/data/test.json \\
        --images BCCD_Dataset/BCCD/JPEGImages --weights weights/cards.pth \\
        --output docs/results/label_noise/bccd_new_heads

Trains IoU and energy heads on the first 20, 50, ... images of TRAIN, on the frozen backbone of --weights. Then moves
the labels of TEST at random, tightens them, and measures the IoU with the original boxes, as tools/label_noise.py does.
"""

import argparse
import json
import sys
from pathlib import Path

from iounet import IoURefiner
from iounet.data.label_files import read_labels
from iounet.devices import build_device
from iounet.errors import DataError, UserError
from iounet.evaluation import without_nan
from iounet.files import write_text
from iounet.tightening import Thresholds
from iounet.tightening.folds import train_heads
from iounet.tightening.label_noise import mean_over_seeds, measure, noise_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", metavar="TRAIN", type=Path, help="labels to train on, as for iounet-tighten")
    parser.add_argument("test", metavar="TEST", type=Path, help="labels to move and tighten; same classes as TRAIN")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by iounet-train")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder; created if missing")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder, if the labels do not locate the images"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 50, 200], metavar="N",
                        help="numbers of training images (default: 20 50 200)")  # fmt: skip
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.2], metavar="P",
                        help="maximum shift of an edge, relative to box size (default: 0.1 0.2)")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=300, metavar="N",
                        help="training iterations for each number of images (default: 300)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N",
                        help="seeds of the noise (default: 0 1 2)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU if available)")
    args = parser.parse_args()
    results, tables = {}, []
    try:
        train, test = (read_labels(source, images=args.images) for source in (args.train, args.test))
        if train.class_names != test.class_names:
            raise DataError(
                f"{args.test}: the classes differ from those of {args.train}; use data sets with the same classes"
            )
        categories = [{"id": number, "name": name} for number, name in enumerate(train.class_names, start=1)]
        with_labels = sorted({label.image for label in train.boxes if not label.crowd})
        for count in args.counts:
            images = with_labels[:count]
            device = build_device(args.device)
            detector = train_heads(args.weights, train, images, args.iterations, device, f"{len(images)} images")
            refiner = IoURefiner(detector, categories)
            mean = mean_over_seeds(
                [
                    measure(refiner, test, args.noise, thresholds=Thresholds(), seed=seed, cleanlab=False)
                    for seed in args.seeds
                ]
            )
            results[str(len(images))] = mean
            tables.append(f"{len(images)} images:\n\n{noise_table(mean)}\n")
            facts = {"weights": args.weights, "iterations": args.iterations, "seeds": args.seeds, "images": results}
            write_text(args.output / "heads_by_images.json", json.dumps(without_nan(facts), indent=1) + "\n")
            write_text(args.output / "heads_by_images.md", "\n".join(tables))
            print(tables[-1])
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
