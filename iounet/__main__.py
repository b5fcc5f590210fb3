"""Run any command as `python -m iounet COMMAND ...`; without arguments, list the commands."""

import sys
from importlib import import_module

COMMANDS = {
    "train": ("commands.train", "train and evaluate a detector on a data set"),
    "refine": ("commands.refine", "detect objects in images, or refine the boxes of another detector"),
    "tighten": ("commands.tighten", "tighten the label boxes of a data set"),
    "demo": ("commands.demo", "draw loose boxes on photos in a browser and watch them tighten"),
    "convert": ("data.convert", "summarise label files (COCO, VOC, YOLO) and convert them to COCO format"),
    "check": ("data.check", "list the problems of a COCO-format file and repair it"),
    "voc": ("data.voc", "convert all splits of a Pascal VOC data set to COCO format"),
    "synthetic": ("data.synthetic", "generate a small synthetic data set"),
}


def main() -> int | None:
    """Run the command named by the first argument and return its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        if not name.startswith("-"):
            print(f"unknown command '{name}'", file=sys.stderr)
        lines = [f"  {command:<10} {what}" for command, (_, what) in COMMANDS.items()]
        print("usage: python -m iounet COMMAND ...; for details: python -m iounet COMMAND --help", *lines, sep="\n")
        return 0 if name in ("-h", "--help") else 2
    sys.argv[:2] = [f"python -m iounet {name}"]
    return import_module(f".{COMMANDS[name][0]}", "iounet").main()


if __name__ == "__main__":
    sys.exit(main())
