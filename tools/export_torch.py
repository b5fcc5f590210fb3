"""Exports a checkpoint's refiner as a program of torch.export, or checks such a file.

    python tools/export_torch.py --weights weights/cards.pth --output refiner.pt2
    python tools/export_torch.py --weights weights/cards.pth --output refiner.pt2 --compile
    python tools/export_torch.py --weights weights/cards.pth --check refiner.pt2

PyTorch's own kernels run the file. With --compile it holds machine code by AOTInductor, for CPUs of this machine's
kind, which takes a C++ compiler and a minute. Either is called with an image, boxes and labels:

    refine = iounet.export.program.load_program("refiner.pt2")
    # image: float32 [1, 3, H, W], RGB in [0, 1]; boxes: float32 [N, 4]; labels: int64 [N], 0 for an unknown class
    refined_boxes, ious_before, ious, stops = refine(image, boxes, labels)

The file runs in Python alone, where prroi_pool is installed. For other languages use tools/export_onnx.py.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from iounet import IoURefiner
from iounet.errors import DataError, UserError
from iounet.export.program import compile_program, load_program, save_program
from iounet.refiner.inputs import as_tensor
from iounet.refiner.results import find_images

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
MAX_PIXELS, MAX_IOU = 0.05, 1e-3


def check(refiner: IoURefiner, path: Path, folder: Path) -> bool:
    """Prints how far the program's answers lie from PyTorch's, for the detector's own detections in photographs."""
    program = load_program(path)
    count, pixels, ious = 0, 0.0, 0.0
    for file in find_images([folder]):
        with Image.open(file) as opened:
            image = as_tensor(opened)
        detections, _ = refiner.detect(image)
        expected = refiner.refine(image, detections.boxes, detections.labels)
        boxes, *found = program(image[None], detections.boxes, detections.labels)
        count += len(boxes)
        pixels = max(pixels, _largest(boxes - expected.boxes))
        for ours, theirs in zip((expected.ious_before, expected.ious), found[:2], strict=True):
            ious = max(ious, _largest(ours - theirs))
    if not count:
        raise DataError(f"{folder}: the detector finds nothing in its images; choose others with --images")
    passes = pixels <= MAX_PIXELS and ious <= MAX_IOU
    print(f"{count} boxes: refined boxes differ by up to {pixels:.4f} px, predicted IoUs by up to {ious:.5f}")
    print(f"{'passed' if passes else 'FAILED'}: at most {MAX_PIXELS} px and {MAX_IOU} are expected")
    return passes


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="checkpoint of iounet-train")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="FILE", help="the .pt2 file to write")
    task.add_argument("--check", type=Path, metavar="FILE", help="an exported file, to be compared with PyTorch")
    parser.add_argument("--compile", action="store_true", help="compile the program for this machine, by AOTInductor")
    parser.add_argument(
        "--images", type=Path, default=PHOTOS, metavar="FOLDER", help="photographs for --check (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.output and args.output.suffix != ".pt2":
        parser.error(f"--output {args.output}: a program's name ends in .pt2")
    try:
        refiner = IoURefiner.from_checkpoint(args.weights)
        if args.check:
            sys.exit(0 if check(refiner, args.check, args.images) else 1)
        (compile_program if args.compile else save_program)(refiner, args.output)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
