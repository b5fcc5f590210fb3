"""Compare the speed of the refiner in PyTorch, ONNX Runtime and AOTInductor, in one process.

    python -m benchmarks.onnx_refiner --output docs/benchmarks/exported_refiner.json --document docs/benchmarks.md

One call refines boxes in each photograph of examples/photos, starting from uint8 pixels. The boxes are those of the
objects, with each edge moved by up to a tenth of the box's width or height. Every round runs all runtimes, so that
other load on the machine affects all of them equally. Ratios are computed within each round; the table shows their
median and quartiles.

Loading time and memory are measured in a new process per runtime (refiner_footprint.py). AOTInductor needs a C++
compiler and is skipped without one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from iounet import IoURefiner
from iounet.evaluation.tables import markdown
from iounet.export.onnx_file import export_onnx
from iounet.export.program import compile_program, cxx
from iounet.files import read_json

from .refiner_footprint import AOT, LOADERS, ONNX, PYTORCH, Refine, num_threads
from .timing import Figures, add_output_arguments, processor_name, spread, take_turns, timed, write_results

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
MARKER = "<!-- exported refiner -->"
CPU = torch.device("cpu")
COUNTS = (10, 100)
MOST_MOVED = 0.1  # largest shift of an edge, relative to the box's width or height

Work = list[tuple[np.ndarray, np.ndarray]]  # per photograph: uint8 [H, W, 3], boxes float32 [N, 4]


def photographs(count: int) -> Work:
    """Return the photographs, each with `count` boxes around its objects. The boxes are the same on every call."""
    content = read_json(PHOTOS / "annotations.json", "annotations")
    generator = np.random.default_rng(0)
    work = []
    for image in content["images"]:
        with Image.open(PHOTOS / image["file_name"]) as opened:
            pixels = np.array(opened.convert("RGB"))
        objects = np.array([entry["bbox"] for entry in content["annotations"] if entry["image_id"] == image["id"]])
        corners, sizes = np.split(np.resize(objects, (count, 4)), 2, axis=1)
        moves = generator.uniform(-MOST_MOVED, MOST_MOVED, (count, 4)) * np.tile(sizes, 2)
        work.append((pixels, (np.concatenate([corners, corners + sizes], axis=1) + moves).astype(np.float32)))
    return work


def export(weights: Path, folder: Path) -> dict[str, Path]:
    """Export the refiner for each runtime, and return the files by runtime."""
    refiner = IoURefiner.from_checkpoint(weights)
    files = {PYTORCH: weights, ONNX: folder / "refiner.onnx"}
    export_onnx(refiner, files[ONNX])
    if shutil.which(cxx()):
        files[AOT] = folder / "refiner.pt2"
        compile_program(refiner, files[AOT])
    return files


def footprint(name: str, file: Path, work: Path) -> dict[str, float | None]:
    """Run refiner_footprint.py in a new process and return its measurements."""
    command = [sys.executable, "-m", f"{__package__}.refiner_footprint", name, str(file), str(work)]
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} cannot be measured: its process failed with the error above")
    return json.loads(done.stdout)


def measure_files(files: dict[str, Path], folder: Path) -> list[Figures]:
    image, boxes = photographs(max(COUNTS))[0]
    work = folder / "work.npz"
    np.savez(work, image=image, boxes=boxes)
    return [
        {"runtime": name, "megabytes": file.stat().st_size / 1e6} | footprint(name, file.resolve(), work)
        for name, file in files.items()
    ]


def measure_speed(refiners: dict[str, Refine], seconds: float) -> list[Figures]:
    rows = []
    for count in COUNTS:
        work = photographs(count)
        calls: dict[str, Callable[[], float]] = {
            name: timed(partial(refine_all, refine, work), CPU) for name, refine in refiners.items()
        }
        rounds = take_turns(calls, seconds / len(COUNTS), alternating=True)
        rows += [
            {"boxes": count, "runtime": name, "seconds": [one / len(work) for one in measured]}
            for name, measured in rounds.items()
        ]
    return rows


def refine_all(refine: Refine, work: Work) -> None:
    for image, boxes in work:
        refine(image, boxes)


def heading(figures: Figures) -> str:
    return (
        f"{figures['device']}, {figures['threads']} threads, torch {figures['torch']}, onnxruntime "
        f"{figures['onnxruntime']}; {figures['weights']}, {figures['photographs']} photographs."
    )


def table(figures: Figures) -> str:
    """Return two tables: milliseconds per image with ratios, as medians with quartiles; loading time and memory."""
    of_pytorch = {row["boxes"]: row["seconds"] for row in figures["speed"] if row["runtime"] == PYTORCH}
    speed = [
        [
            row["runtime"],
            str(row["boxes"]),
            spread([1e3 * value for value in row["seconds"]], ".1f"),
            spread([a / b for a, b in zip(row["seconds"], of_pytorch[row["boxes"]], strict=True)], ".2f"),
        ]
        for row in figures["speed"]
    ]
    files = [
        [
            row["runtime"],
            f"{row['megabytes']:.1f}",
            f"{row['seconds_to_load']:.1f}",
            *("" if row[name] is None else f"{row[name]:.0f}" for name in ("mib_loaded", "mib_peak")),
        ]
        for row in figures["files"]
    ]
    files_head = ["", "file, MB", "seconds to import and load", "MiB then", f"MiB with {max(COUNTS)} boxes"]
    return f"{markdown(['', 'boxes', 'ms an image', 'ratio to PyTorch'], speed)}\n\n{markdown(files_head, files)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("weights/cards.pth"),
        metavar="FILE",
        help="checkpoint written by iounet-train (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="seconds to spend on measuring speed (default: 120)"
    )
    add_output_arguments(parser, MARKER)
    args = parser.parse_args()
    torch.set_num_threads(num_threads())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = export(args.weights, folder)
        figures: Figures = {
            "device": processor_name(CPU),
            "threads": num_threads(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "weights": str(args.weights),
            "photographs": len(photographs(1)),
            "files": measure_files(files, folder),
            "speed": measure_speed({name: LOADERS[name](file) for name, file in files.items()}, args.seconds),
        }
    write_results(args, figures, heading(figures), table(figures), MARKER)


if __name__ == "__main__":
    main()
