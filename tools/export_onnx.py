"""Exports a checkpoint's refiner, or its detector, as one ONNX file of standard operators, or checks such a file.

    python tools/export_onnx.py --weights weights/cards.pth --output refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --output detector.onnx --detector
    python tools/export_onnx.py --weights weights/cards.pth --check refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --check detector.onnx --detector

A refiner's file takes an image, boxes and labels, and gives refined boxes and predicted IoUs; iounet.onnx.OnnxRefiner
runs it without PyTorch. A detector's file takes an image alone, and gives boxes, labels, scores and predicted IoUs.
docs/deployment.md shows how to use them from C++, C# and JavaScript. Exporting needs pip install 'iounet[export]'.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from iounet import IoURefiner
from iounet.checks import BoxWarning
from iounet.errors import UserError
from iounet.refiner.results import find_images

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def check(refiner: IoURefiner, path: Path, folder: Path, detector: bool) -> int:
    """Prints how far the file's answers lie from PyTorch's; returns 1 if that is too far."""
    from iounet.export.checking import MAX_BEYOND, MAX_IOU, MAX_PIXELS, compare, compare_detections, random_images
    from iounet.onnx import OnnxRefiner

    def photographs() -> Iterator[np.ndarray]:
        for file in find_images([folder]):
            with Image.open(file) as image:
                yield np.array(image.convert("RGB"))

    exported = None if detector else OnnxRefiner(path)
    columns = ("boxes", "largest px", "score, IoU" if detector else "IoU", "beyond", "others" if detector else "stops")
    print("".join(f"{column:>15}" for column in ("", *columns)))
    fails = False
    for name, images in (("random images", random_images()), ("photographs", photographs())):
        if exported is None:
            difference = compare_detections(refiner, path, images)
        else:
            difference = compare(refiner, exported, images)
        fails |= not difference.passes
        print(
            f"{name:>15}{difference.boxes:>15}{difference.pixels:>15.4f}{difference.ious:>15.5f}"
            f"{difference.beyond:>15}{difference.others:>15}"
        )
    verdict = "FAILED" if fails else "passed"
    print(f"{verdict}: at most {MAX_BEYOND:.1%} of the boxes may be beyond {MAX_PIXELS} px or {MAX_IOU}")
    if fails:
        print("float16 and int8 weights move boxes further: tools/onnx_accuracy.py measures what they cost")
    return int(fails)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="checkpoint of iounet-train")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="FILE", help="the ONNX file to write")
    task.add_argument("--check", type=Path, metavar="FILE", help="an exported file, to be compared with PyTorch")
    parser.add_argument("--detector", action="store_true", help="the file is the whole detector, which needs no boxes")
    parser.add_argument(
        "--weights-dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="how the file stores its weights: float16 takes half of the room, int8 a quarter (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=Path, default=PHOTOS, metavar="FOLDER", help="photographs for --check (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights)
        if args.check:
            warnings.simplefilter("ignore", BoxWarning)  # some of the boxes are odd on purpose
            sys.exit(check(refiner, args.check, args.images, args.detector))
        from iounet.export.onnx_file import export_detector_onnx, export_onnx

        export = export_detector_onnx if args.detector else export_onnx
        export(refiner, args.output, weights_dtype=args.weights_dtype)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
