"""Generates a synthetic detection data set in COCO format, reproducible from a seed.

    python -m iounet.data.synthetic --output DIR

The command writes ``DIR/{train,val,test}/000001.png ...``, ``DIR/annotations/{train,val,test}.json``, and the
parameters of the set to ``DIR/dataset.json``.
"""

import argparse
import json
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import DataError
from ..files import make_folder
from ..progress import progress
from .scene import Scene, render_scene, visible_boxes
from .shapes import CLASS_NAMES

# Increase with every change to the generated files, so that an old set is not mistaken for a new one.
VERSION = 3


def make_synthetic(
    output: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    image_size: tuple[int, int] = (128, 128),
    seed: int = 0,
    num_workers: int = 0,
) -> Path:
    """Generate the set in the folder ``output``, unless it is there already, and return the folder.

    The set is written to a temporary folder that is renamed when complete, so ``output`` never contains a partial set.

    Args:
        num_train, num_val, num_test: number of images per split, at least 1 each.
        image_size: (height, width) in pixels, each at least 64.
        seed: image i of a split depends only on the seed, the split and i, not on the number of images.
        num_workers: number of drawing processes; 0 draws in this process.

    Raises:
        DataError: if ``output`` contains other files, or a set with other parameters.
        ConfigError: if no files can be written beside ``output``.
        ValueError: if a number of images, the image size or the seed is too small.
    """
    output = Path(output)
    counts = {"train": num_train, "val": num_val, "test": num_test}
    if min(counts.values()) < 1 or min(image_size) < 64 or seed < 0:
        raise ValueError(
            "need at least 1 image per split, an image size of at least 64 pixels and a seed of at least 0; "
            f"got {counts}, {image_size} and {seed}"
        )
    parameters = {
        "generator": "iounet.data.synthetic",
        "version": VERSION,
        "seed": seed,
        "image_size": list(image_size),
        "num_images": counts,
    }
    if _is_complete(output, parameters):
        return output
    unfinished = output.with_name(output.name + ".partial")
    make_folder(output.parent)
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "annotations").mkdir(parents=True)
    for split_number, (split, num_images) in enumerate(counts.items()):
        (unfinished / split).mkdir()
        annotations = _write_split(unfinished / split, num_images, image_size, (seed, split_number), num_workers)
        (unfinished / "annotations" / f"{split}.json").write_text(json.dumps(annotations))
    (unfinished / "dataset.json").write_text(json.dumps(parameters, indent=2) + "\n")
    if output.exists():
        output.rmdir()  # empty; not every system can rename to an existing folder
    unfinished.rename(output)
    return output


def _is_complete(output: Path, parameters: dict[str, Any]) -> bool:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = json.loads((output / "dataset.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"{output}: exists and is not a synthetic set; choose another output folder") from None
    if found != parameters:
        raise DataError(
            f"{output}: contains a synthetic set with other parameters, {json.dumps(found)} instead of "
            f"{json.dumps(parameters)}; remove it, or choose another output folder"
        )
    return True


def _write_split(
    folder: Path, num_images: int, image_size: tuple[int, int], seed: tuple[int, int], num_workers: int
) -> dict[str, list[dict[str, Any]]]:
    height, width = image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    image_ids = range(1, num_images + 1)
    draw = partial(_write_image, folder, image_size, seed)
    with ProcessPoolExecutor(num_workers, initializer=_ignore_ctrl_c) if num_workers else nullcontext() as pool:
        drawn = pool.map(draw, image_ids, chunksize=16) if pool else map(draw, image_ids)
        for image_id, objects in zip(
            image_ids,
            progress(drawn, desc=f"drawing {folder.name}", total=num_images, unit="image"),
            strict=True,
        ):
            images.append({"id": image_id, "file_name": _file_name(image_id), "width": width, "height": height})
            for annotation in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASS_NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _ignore_ctrl_c() -> None:
    """Ignore Ctrl-C in a worker: the main process handles it, and each worker would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_image(
    folder: Path, image_size: tuple[int, int], seed: tuple[int, int], image_id: int
) -> list[dict[str, Any]]:
    scene = render_scene(np.random.default_rng([*seed, image_id]), image_size)
    Image.fromarray(scene.image).save(folder / _file_name(image_id), compress_level=1)
    return _annotations(scene)


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.png"


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    boxes = visible_boxes(scene.instances, len(scene.labels)).tolist()
    areas = np.bincount(scene.instances.ravel(), minlength=len(boxes) + 1)[1:].tolist()
    return [
        {
            "category_id": label,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "segmentation": _run_lengths(scene.instances == number),
            "iscrowd": 0,
        }
        for number, (label, (x0, y0, x1, y1), area) in enumerate(
            zip(scene.labels.tolist(), boxes, areas, strict=True), start=1
        )
    ]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Encode the visible pixels in COCO's run-length format."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m iounet.data.synthetic",
        description="Generate a synthetic detection data set in COCO format, reproducible from a seed.",
        epilog="example: python -m iounet.data.synthetic --output runs/synthetic",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--train", type=int, default=1500, metavar="N", help="training images (default: 1500)")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images (default: 200)")
    parser.add_argument("--test", type=int, default=200, metavar="N", help="test images (default: 200)")
    parser.add_argument(
        "--size", type=int, default=128, metavar="PX", help="height and width of the images (default: 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the set (default: 0)")
    args = parser.parse_args()
    try:
        make_synthetic(
            args.output,
            num_train=args.train,
            num_val=args.val,
            num_test=args.test,
            image_size=(args.size, args.size),
            seed=args.seed,
            num_workers=os.cpu_count() or 1,
        )
    except KeyboardInterrupt:
        parser.exit(130)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(f"{args.output}: {args.train} training, {args.val} validation and {args.test} test images")


if __name__ == "__main__":
    main()
