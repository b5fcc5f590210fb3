"""Better boxes for the labels of a data set: a corrected copy, and a page to review every change.

    iounet-tighten annotations.json --images photos/ --weights runs/mine/model_final.pth --output runs/tightened

SOURCE is a data set in COCO form (a .json file), in Pascal VOC's (a folder of .xml files) or YOLO's (data.yaml, or its
folder). Its files and images are read, never written. Each label box is refined by the IoU-Net of --weights. The
proposed box is accepted if its predicted IoU is at least --min-iou and higher by at least --min-gain, and 1 - IoU of
the two boxes is at most --max-move. Labels stay as they are if the refiner does not know their class, if they are
crowds, or if they have more than a box, such as a polygon.

The output folder then holds

    labels/        a copy of the label files, in the same form, with the accepted boxes
    review.html    the proposals of the greatest gains, to be accepted or kept one by one
    boxes.json     a row for each label: both boxes, predicted IoUs, decision and reason; boxes.csv is the same

Open review.html in a browser, decide, press "Save decisions", and run the same command again with

    --decisions decisions.json

which takes the proposals from boxes.json. Labels that were not on the page are decided by the thresholds.

If the IoU-Net was trained on the very labels that you want to check, or on other classes, let --folds 4 train new IoU
and energy heads, on the frozen backbone of --weights: the images are divided into four parts, and the labels of each
are judged by heads that learned those of the three others.

In a clone, python tools/tighten_labels.py is the same as iounet-tighten.
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
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the data set: a file or a folder")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint that iounet-train wrote")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="made if it is not there")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if the labels do not tell")
    parser.add_argument("--split", metavar="NAME", help="one split of a data set of several, such as train")
    parser.add_argument("--min-gain", type=float, default=Thresholds.min_gain, metavar="G",
                        help="least rise of the predicted IoU (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-move", type=float, default=Thresholds.max_move, metavar="M",
                        help="greatest 1 - IoU of both boxes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--min-iou", type=float, default=Thresholds.min_iou, metavar="I",
                        help="least predicted IoU of the proposed box (default: %(default)s)")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS", help="tighten labels of these classes alone")
    parser.add_argument("--class-agnostic", action="store_true", help="refine every box without regard to its class")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="what you decided on review.html")
    parser.add_argument("--folds", type=int, default=0, metavar="K", help="train heads, so that none judges a label "
                        "that it learned (default: 0, judge with those of --weights)")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=TighteningRun.iterations, metavar="N",
                        help="of training the heads of each fold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--review", type=int, default=TighteningRun.review, metavar="N",
                        help="labels on the page, at most (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: a GPU if there is one (default)")
    options = vars(parser.parse_args())
    print_any_name()
    try:
        with errors_in_one_line():
            thresholds = Thresholds(*(options.pop(name) for name in ("min_gain", "max_move", "min_iou")))
            source, images, split = (options.pop(name) for name in ("source", "images", "split"))
            TighteningRun(read_labels(source, images=images, split=split), thresholds=thresholds, **options).run()
    except KeyboardInterrupt:
        print(f"\nstopped; {options['output']} is as it was", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
