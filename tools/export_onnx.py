"""Exports a checkpoint's refiner, or its detector, as one ONNX file of standard operators.

    python tools/export_onnx.py --weights weights/cards.pth --output refiner.onnx
    python tools/export_onnx.py --weights weights/cards.pth --output detector.onnx --detector
    python tools/export_onnx.py --weights weights/cards.pth --check refiner.onnx [--images FOLDER]

The refiner's file takes an image, boxes and labels, and gives refined boxes and predicted IoUs; iounet.onnx.OnnxRefiner
runs it without PyTorch. The detector's file takes an image alone, and gives boxes, labels, scores and predicted IoUs.
docs/deployment.md tells how to use them from C++, C# and JavaScript.
"""

import argparse
import sys
from pathlib import Path

from iounet import IoURefiner
from iounet.errors import UserError
from iounet.export.onnx_file import export_detector_onnx, export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="checkpoint of iounet-train")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the ONNX file")
    parser.add_argument("--detector", action="store_true", help="export the whole detector: it needs no boxes")
    args = parser.parse_args()
    export = export_detector_onnx if args.detector else export_onnx
    try:
        export(IoURefiner.from_checkpoint(args.weights), args.output)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
