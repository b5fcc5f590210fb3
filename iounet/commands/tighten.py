"""Tighten the label boxes of a data set: write a corrected copy and a page to review every change.

    iounet-tighten annotations.json --images photos/ --weights runs/mine/model_final.pth --output runs/tightened

SOURCE is a data set in COCO format (a .json file), Pascal VOC format (a folder of .xml files) or YOLO format (data.yaml
or its folder). Its files and images are never modified. The IoU-Net of --weights refines each label box. A proposed box
is accepted if its predicted IoU is at least --min-iou, the gain in predicted IoU is at least --min-gain, and 1 - IoU of
the two boxes is at most --max-move. A label stays unchanged if the refiner does not know its class, if it is a crowd
region, or if it has more than a box, such as a polygon.

The output folder contains:

    labels/        a copy of the label files, in the same format, with the accepted boxes
    review.html    the proposals with the largest gains; accept each one or keep the original box
    boxes.json     one row per label: both boxes, predicted IoUs, decision and reason; boxes.csv holds the same rows

Open review.html in a browser, make your decisions, press "Save decisions", and run the same command again with

    --decisions decisions.json

This run takes the proposals from boxes.json. Labels that were not on the page are decided by the thresholds.

If the IoU-Net was trained on the labels that you want to check, or on other classes, use --folds 4. It divides the
images into four parts and trains new IoU and energy heads on the frozen backbone of --weights. The labels of each part
are judged by heads that were trained on the other three.

In a clone of the repository, python tools/tighten_labels.py is the same command.
"""

import argparse
import sys
from pathlib import Path

from ..data.label_files import read_labels
from ..terminal import print_any_name
from ..tightening import Thresholds, TighteningRun
from .exits import errors_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="data set: a file or a folder")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by iounet-train")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder; created if missing")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder, if the labels do not locate the images"
    )
    parser.add_argument("--split", metavar="NAME", help="use one split of the data set, such as train")
    parser.add_argument("--min-gain", type=float, default=Thresholds.min_gain, metavar="G",
                        help="minimum gain in predicted IoU (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-move", type=float, default=Thresholds.max_move, metavar="M",
                        help="maximum 1 - IoU of the two boxes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--min-iou", type=float, default=Thresholds.min_iou, metavar="I",
                        help="minimum predicted IoU of the proposed box (default: %(default)s)")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS", help="tighten only labels of these classes")
    parser.add_argument("--class-agnostic", action="store_true", help="refine every box regardless of its class")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="decisions saved from review.html")
    parser.add_argument("--folds", type=int, default=0, metavar="K", help="train new heads in K folds, so that no "
                        "label is judged by heads trained on it (default: 0, use the heads of --weights)")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=TighteningRun.iterations, metavar="N",
                        help="training iterations of each fold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--review", type=int, default=TighteningRun.review, metavar="N",
                        help="maximum number of labels on the review page (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or auto: a GPU if available (default: auto)"
    )
    options = vars(parser.parse_args())
    print_any_name()
    try:
        with errors_in_one_line():
            thresholds = Thresholds(*(options.pop(name) for name in ("min_gain", "max_move", "min_iou")))
            source, images, split = (options.pop(name) for name in ("source", "images", "split"))
            TighteningRun(read_labels(source, images=images, split=split), thresholds=thresholds, **options).run()
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options['output']} is unchanged", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
