"""Make a small checkpoint for sharing: no training state, weights in half precision.

    python tools/publish.py --weights runs/cards_small/model_final.pth --output weights/cards.pth

IoURefiner, iounet-refine and iounet-tighten read the result and compute in float32. Vectors, such as the statistics of
norm layers, stay in float32: they take little space and may exceed the range of float16.
"""

import argparse
import sys
from pathlib import Path

import torch

from iounet.config import without_paths
from iounet.errors import UserError
from iounet.training.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="checkpoint written by tools/train.py"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="small checkpoint to write")
    args = parser.parse_args()
    if args.output.resolve() == args.weights.resolve():
        parser.error("--output would overwrite --weights; choose another file")
    try:
        content = load_checkpoint(args.weights)
        model = {
            name: values.half() if values.dtype == torch.float32 and values.dim() > 1 else values
            for name, values in content["model"].items()
        }
        if too_large := [name for name, values in model.items() if values.is_floating_point() and values.isinf().any()]:
            sys.exit(f"{args.weights}: {too_large[0]} has values that overflow in half precision")
        save_checkpoint(
            args.output,
            model=model,
            categories=content["categories"],
            config=without_paths(content["config"], str(args.weights)),
        )
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
