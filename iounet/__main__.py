"""All commands in one: ``python -m iounet train ...``; without arguments, the list of them."""

import sys
from importlib import import_module

COMMANDS = {
    "train": ("commands.train", "train and evaluate a detector on a data set"),
    "refine": ("commands.refine", "detect in photographs, or refine the boxes of another detector"),
    "tighten": ("commands.tighten", "correct the label boxes of a data set"),
    "demo": ("commands.demo", "draw loose boxes on photographs, and see them tighten, in a browser"),
    "convert": ("data.convert", "say what label files hold (COCO, VOC, YOLO), and convert them to COCO form"),
    "check": ("data.check", "say what is wrong with a COCO-form file, and repair it"),
    "voc": ("data.voc", "convert all splits of Pascal VOC to COCO form"),
    "synthetic": ("data.synthetic", "make a data set to try things on"),
}


def main() -> int | None:
    """Runs the command that the first argument names; returns its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        lines = [f"  {command:<10} {what}" for command, (_, what) in COMMANDS.items()]
        print("usage: python -m iounet COMMAND ...; COMMAND --help says more", *lines, sep="\n")
        return 0 if name in ("-h", "--help") else 2
    sys.argv[:2] = [f"python -m iounet {name}"]
    return import_module(f".{COMMANDS[name][0]}", "iounet").main()


if __name__ == "__main__":
    sys.exit(main())
