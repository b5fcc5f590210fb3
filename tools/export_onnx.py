"""Exports a checkpoint's refiner as one ONNX file of standard operators.

    python tools/export_onnx.py --weights weights/cards.pth --output refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --check refiner.onnx [--images FOLDER]

The file takes an image, boxes and labels, and gives refined boxes and predicted IoUs; iounet.onnx.OnnxRefiner runs it
without PyTorch. docs/deployment.md tells how to use it from C++, C# and JavaScript.
"""

import argparse
import sys
from pathlib import Path

from iounet import IoURefiner
from iounet.errors import UserError
from iounet.export.onnx_file import export_onnx
from iounet.export.weights import WEIGHT_DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="checkpoint of iounet-train")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the ONNX file")
    parser.add_argument(
        "--weights-dtype",
        choices=WEIGHT_DTYPES,
        default="float32",
        help="how the file stores its weights: float16 takes half of the room, int8 a quarter (default: %(default)s)",
    )
    args = parser.parse_args()
    try:
        export_onnx(IoURefiner.from_checkpoint(args.weights), args.output, weights_dtype=args.weights_dtype)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
