"""Export the refiner of a checkpoint as a torch.export program, or check such a file.

    python tools/export_torch.py --weights weights/cards.pth --output refiner.pt2
    python tools/export_torch.py --weights weights/cards.pth --output refiner.pt2 --compile
    python tools/export_torch.py --weights weights/cards.pth --check refiner.pt2

Without --compile, PyTorch's kernels run the program. With --compile, AOTInductor compiles the program to machine code
for CPUs like this machine's, which needs a C++ compiler and about a minute. Both kinds of file are used in the
same way:

    refine = iounet.export.program.load_program("refiner.pt2")
    # image: float32 [1, 3, H, W], RGB in [0, 1]; boxes: float32 [N, 4]; labels: int64 [N], 0 for an unknown class
    refined_boxes, ious_before, ious, stops = refine(image, boxes, labels)

The file runs only in Python with prroi_pool installed. For other languages, use tools/export_onnx.py.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iounet import IoURefiner
from iounet.checks import BoxWarning
from iounet.errors import UserError
from iounet.export.checking import compare, print_comparison
from iounet.export.program import compile_program, load_program, save_program
from iounet.refiner.inputs import as_tensor

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def check(refiner: IoURefiner, path: Path, folder: Path) -> bool:
    """Print the differences between the program's outputs and PyTorch's; return whether they are within tolerance."""
    program = load_program(path)

    def answers(image: np.ndarray, *given: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(values.numpy() for values in program(as_tensor(image)[None], *map(torch.from_numpy, given)))

    return print_comparison(partial(compare, refiner, answers), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="checkpoint written by iounet-train"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="FILE", help=".pt2 file to write")
    task.add_argument("--check", type=Path, metavar="FILE", help="exported file to compare with PyTorch")
    parser.add_argument("--compile", action="store_true", help="compile the program for this machine with AOTInductor")
    parser.add_argument(
        "--images", type=Path, default=PHOTOS, metavar="FOLDER", help="photos for --check (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.output and args.output.suffix != ".pt2":
        parser.error(f"--output {args.output}: the file name must end in .pt2")
    try:
        refiner = IoURefiner.from_checkpoint(args.weights)
        if args.check:
            warnings.simplefilter("ignore", BoxWarning)  # the check includes odd boxes on purpose
            sys.exit(0 if check(refiner, args.check, args.images) else 1)
        (compile_program if args.compile else save_program)(refiner, args.output)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
