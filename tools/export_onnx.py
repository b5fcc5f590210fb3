"""Export the refiner or the detector of a checkpoint as one ONNX file of standard operators, or check such a file.

    python tools/export_onnx.py --weights weights/cards.pth --output refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --output detector.onnx --detector
    python tools/export_onnx.py --weights weights/cards.pth --check refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --check detector.onnx --detector

An exported refiner takes an image, boxes and labels, and returns refined boxes and predicted IoUs. To run it without
PyTorch, use iounet.onnx.OnnxRefiner. An exported detector takes only an image, and returns boxes, labels, scores and
predicted IoUs. docs/guides/deploy.md shows how to run both from C++, C# and JavaScript.

Exporting needs extra packages: pip install onnx onnxscript onnxruntime.
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
    """Print the differences between the file's outputs and PyTorch's; return whether they are within tolerance."""
    from iounet.export.checking import answers_of, compare, compare_detections, print_comparison
    from iounet.onnx import OnnxRefiner

    if detector:
        passes = print_comparison(partial(compare_detections, refiner, path), folder)
    else:
        passes = print_comparison(partial(compare, refiner, answers_of(OnnxRefiner(path))), folder)
    if not passes:
        print("float16 and int8 weights may exceed the tolerance; measure their accuracy with tools/onnx_accuracy.py")
    return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="checkpoint written by iounet-train"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="FILE", help="ONNX file to write")
    task.add_argument("--check", type=Path, metavar="FILE", help="exported file to compare with PyTorch")
    parser.add_argument(
        "--detector", action="store_true", help="export or check the whole detector, which needs no input boxes"
    )
    parser.add_argument(
        "--weights-dtype",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="data type of the stored weights: float16 halves the file size, int8 quarters it (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=Path, default=PHOTOS, metavar="FOLDER", help="photos for --check (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights)
        if args.check:
            warnings.simplefilter("ignore", BoxWarning)  # the check includes odd boxes on purpose
            sys.exit(0 if check(refiner, args.check, args.images, args.detector) else 1)
        from iounet.export.onnx_file import export_detector_onnx, export_onnx

        export = export_detector_onnx if args.detector else export_onnx
        export(refiner, args.output, weights_dtype=args.weights_dtype)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"exporting needs {error.name}, which is not installed; run pip install onnx onnxscript onnxruntime")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
