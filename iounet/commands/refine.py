"""Detect objects in images, or refine the boxes of another detector.

Print the refined boxes of a photo, without writing any file:

    iounet-refine photo.jpg --weights runs/bccd/model_final.pth

Detect objects in a folder of images, refine the boxes, and write results, pictures and a report:

    iounet-refine photos/ --weights runs/bccd/model_final.pth --output runs/refined

Refine the boxes of another detector, given as COCO results JSON:

    iounet-refine photos/ --weights runs/bccd/model_final.pth --output runs/refined \\
        --detections detections.json --annotations instances_val.json

In a clone of the repository, python tools/refine_boxes.py is the same command.

Images. The images directly inside a folder are used. Images in its subfolders are used only if the annotation file
names them (for example train/x.jpg in COCO). An image_id in the detections file is an id of the annotation file or the
image's file name, with or without suffix (as ultralytics writes it). Without an annotation file, it can also be the
number in the file name.

Classes. Detections are matched with the refiner's classes by name if there is an annotation file, otherwise by id.
Boxes of classes that the refiner was not trained on stay unchanged unless you pass --class-agnostic. If the refiner was
trained on few objects of each class, try --class-agnostic for all boxes.

Coordinates. Boxes refer to the pixels as they are stored. With --exif, boxes refer to the upright image that viewers
show for a photograph with an EXIF orientation, both in the detections file and in the results.

Without --output, the command prints a table of boxes for each image. With --json, it prints one JSON object per line
with the keys image, image_id, width, height and boxes. Boxes are sorted by descending score; each has category_id,
class, score, predicted_iou_before, predicted_iou, box_before and box ([x1, y1, x2, y2] in pixels).

With --output, the folder DIR contains:

    detections.json    the refined boxes as COCO results. With --detections, the entries keep their order and all their
                       keys; bbox is replaced, predicted_iou and predicted_iou_before are added
    images.json        the image of each image_id; only without --detections
    pictures/          boxes before and after refinement
    report.html        summary page
    evaluation.json    AP before and after, which is also printed; only if the annotation file contains objects

To resume an interrupted run, add --resume; images may have been added or removed since.

An image that cannot be read stops the run. With --skip-bad, such images are skipped and listed at the end, their
detections stay unchanged, and the exit code is 3.
"""

import argparse
import sys
from pathlib import Path

from ..errors import is_out_of_space
from ..refiner import RefinementRun
from ..terminal import print_any_name
from .exits import errors_in_one_line

IMAGES_SKIPPED = 3  # exit code; 1 means an error, 2 a wrong command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by iounet-train")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="image files or folders")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="the same as PATH")
    parser.add_argument("--output", type=Path, metavar="DIR", help="output folder; created if missing")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image instead of a table")
    parser.add_argument("--detections", metavar="JSON", help="detections to refine: COCO results of any detector")
    parser.add_argument(
        "--annotations", metavar="JSON", help="COCO-format file with image ids, classes and ground truth"
    )
    parser.add_argument("--class-agnostic", action="store_true", help="refine every box regardless of its class")
    parser.add_argument("--rescore", action="store_true", help="multiply each score by the predicted IoU")
    parser.add_argument(
        "--exif", action="store_true", help="apply EXIF orientation; input and output boxes refer to the upright image"
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip images that are missing or cannot be read")
    parser.add_argument("--resume", action="store_true", help="resume the interrupted run in --output")
    parser.add_argument(
        "--pictures",
        type=int,
        default=20,
        metavar="N",
        help="with --output, draw the first N images (default: 20)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or auto: a GPU if available (default: auto)"
    )
    args = parser.parse_intermixed_args()  # PATH may come before, between or after the options
    args.images = args.paths + args.images
    del args.paths
    print_any_name()
    if not args.images:
        parser.error("the following arguments are required: PATH")
    try:
        with errors_in_one_line():
            skipped = RefinementRun(**vars(args)).run()
    except KeyboardInterrupt:
        continues = f"; add --resume to continue the run in {args.output}" if args.output else ""
        print(f"\ninterrupted{continues}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        cure = f": free disk space for {args.output}, then add --resume to continue" if is_out_of_space(error) else ""
        sys.exit(f"{error}{cure}")
    sys.exit(IMAGES_SKIPPED if skipped else None)


if __name__ == "__main__":
    main()
