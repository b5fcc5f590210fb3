"""Better boxes for images: IoU-Net's own detections, or those of any other detector, refined.

Print the refined boxes of a photo; nothing is written:

    iounet-refine photo.jpg --weights runs/bccd/model_final.pth

Detect and refine the images of a folder, and write them with pictures and a report:

    iounet-refine photos/ --weights runs/bccd/model_final.pth --output runs/refined

Refine the boxes of another detector, given as COCO results JSON:

    iounet-refine photos/ --weights runs/bccd/model_final.pth --output runs/refined \\
        --detections detections.json --annotations instances_val.json

In a clone, python tools/refine_boxes.py is the same as iounet-refine.

Of a folder, the images directly in it are taken, and those to which the file names of the annotation file lead from it
(COCO's train/x.jpg). An image_id in the detections file is the annotation file's id, or the image's file name with or
without suffix (as ultralytics writes it), or, without an annotation file, the number in that name. Classes are matched
by the names in the annotation file, or, without one, by id. Boxes of classes that the refiner was not trained on stay
as they are, unless --class-agnostic is given; if it was trained on few objects of each class, try that for all boxes.
With --output, where the annotation file has objects, AP before and after is printed.

Boxes are in the frame of the stored pixels. With --exif they are in the upright frame, in and out: that in which
viewers show a photograph that carries an EXIF orientation.

Without --output, each image's boxes are printed as a table or, with --json, as one JSON object a line: image, image_id,
width, height, and boxes by falling score, each with category_id, class, score, predicted_iou_before, predicted_iou,
box_before and box ([x1, y1, x2, y2] in pixels).

With --output, the folder then holds detections.json in the form of COCO results. With --detections these are the same
entries in the same order with every key kept, bbox replaced, and predicted_iou and predicted_iou_before added. Without,
they are new detections, and images.json tells which image each id is. Beside it lie pictures/ with the boxes before and
after, report.html and, with ground truth, evaluation.json with the AP. A run that was stopped goes on with --resume,
even if images were added or taken out since.

An image that cannot be read ends the run. With --skip-bad it is skipped and named at the end, detections given for it
stay as they are, and the exit code is 3.
"""

import argparse
import sys
from pathlib import Path

from ..errors import is_out_of_space
from ..refiner import RefinementRun
from ..terminal import print_any_name
from .exits import errors_in_one_line

IMAGES_SKIPPED = 3  # exit code; 1 is that of an error, 2 of a wrong command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint that iounet-train wrote")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="image files, or folders of them")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="the same as PATH")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write there; made if it is not there")
    parser.add_argument("--json", action="store_true", help="print a JSON object an image instead of a table")
    parser.add_argument("--detections", metavar="JSON", help="COCO results of any detector, to be refined")
    parser.add_argument("--annotations", metavar="JSON", help="COCO-form file of the images' ids, classes and objects")
    parser.add_argument("--class-agnostic", action="store_true", help="refine every box without regard to its class")
    parser.add_argument("--rescore", action="store_true", help="multiply each score by the predicted IoU")
    parser.add_argument(
        "--exif", action="store_true", help="turn photographs upright; boxes are in that frame, in and out"
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip images that are missing or cannot be read")
    parser.add_argument("--resume", action="store_true", help="continue the run that was stopped in this folder")
    parser.add_argument(
        "--pictures",
        type=int,
        default=20,
        metavar="N",
        help="with --output, draw the first N images (default: 20)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: a GPU if there is one (default)")
    args = parser.parse_intermixed_args()  # PATH may stand before, between and after the options
    args.images = args.paths + args.images
    del args.paths
    print_any_name()
    if not args.images:
        parser.error("the following arguments are required: PATH")
    try:
        with errors_in_one_line():
            skipped = RefinementRun(**vars(args)).run()
    except KeyboardInterrupt:
        continues = f"; --resume continues with what lies in {args.output}" if args.output else ""
        print(f"\nstopped{continues}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        cure = f": make room for {args.output}; --resume continues" if is_out_of_space(error) else ""
        sys.exit(f"{error}{cure}")
    sys.exit(IMAGES_SKIPPED if skipped else None)


if __name__ == "__main__":
    main()
