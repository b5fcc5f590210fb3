"""Exports a checkpoint's refiner, or its detector, as one ONNX file of standard operators, or checks such a file.

    python tools/export_onnx.py --weights weights/cards.pth --output refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --output detector.onnx --detector
    python tools/export_onnx.py --weights weights/cards.pth --check refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --check detector.onnx --detector

A refiner's file takes an image, boxes and labels, and gives refined boxes and predicted IoUs; iounet.onnx.OnnxRefiner
runs it without PyTorch. A detector's file takes an image alone, and gives boxes, labels, scores and predicted IoUs.
docs/guides/deploy.md shows how to use them from C++, C# and JavaScript. Exporting needs pip install 'iounet[export]'.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

from iounet import IoURefiner
from iounet.checks import BoxWarning
from iounet.errors import UserError

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def check(refiner: IoURefiner, path: Path, folder: Path, detector: bool) -> bool:
    """Prints how far the file's answers lie from PyTorch's; returns whether they are near enough."""
    from iounet.export.checking import answers_of, compare, compare_detections, print_comparison
    from iounet.onnx import OnnxRefiner

    if detector:
        passes = print_comparison(partial(compare_detections, refiner, path), folder)
    else:
        passes = print_comparison(partial(compare, refiner, answers_of(OnnxRefiner(path))), folder)
    if not passes:
        print("float16 and int8 weights move boxes further: tools/onnx_accuracy.py measures what they cost")
    return passes


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
            sys.exit(0 if check(refiner, args.check, args.images, args.detector) else 1)
        from iounet.export.onnx_file import export_detector_onnx, export_onnx

        export = export_detector_onnx if args.detector else export_onnx
        export(refiner, args.output, weights_dtype=args.weights_dtype)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed, which exporting needs: pip install 'iounet[export]'")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
