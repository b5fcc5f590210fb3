"""Measure time and memory of everything but the network, on simulated data of COCO's size.

    python -m benchmarks.coco_size --output docs/benchmarks/coco_size.json --document docs/benchmarks.md

Each step runs in a new process, so that its memory can be measured. Each step is also measured at half the size, to
show that the time per image does not grow with the number of images. The numbers are those of COCO 2017: 118,287
training images with 860,001 objects, 5,000 validation images with 36,781 objects and at most 100 detections each, 80
classes, and files of 160 kB. Refinement runs on 10,000 images with a minimal network.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iounet import IoURefiner, build_detector
from iounet.config import load_config
from iounet.data import CocoDataset, build_transforms, train_loader
from iounet.evaluation import CocoEvaluator
from iounet.evaluation.tables import markdown
from iounet.files import write_json_list
from iounet.refiner.journal import Journal
from iounet.refiner.read_ahead import read_ahead
from iounet.refiner.results import DetectionsFile, find_images
from iounet.refiner.sources import OtherBoxes
from iounet.training.checkpoint import save_checkpoint

from .timing import Figures, add_output_arguments, processor_name, write_results

CLASSES = 80
TRAIN_IMAGES, TRAIN_OBJECTS = 118_287, 860_001
VAL_IMAGES, VAL_OBJECTS = 5_000, 36_781
REFINED_IMAGES = 10_000
DETECTIONS = 100  # per image
IMAGE_SIZE = (480, 640)
# Standard deviation of the pixel noise. It gives JPEG files of 160 kB, the mean size in COCO.
NOISE = 18.5
MARKER = "<!-- coco size -->"

Measured = dict[str, float]


def simulate(num_images: int, num_objects: int, generator: np.random.Generator) -> dict[str, Any]:
    """Return a data set in COCO format whose objects have random positions and sizes."""
    height, width = IMAGE_SIZE
    corners = np.sort(generator.random((num_objects, 2, 2)), axis=1)
    corners[:, 1] += 0.01  # so that every box has an area
    boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], 1) * np.tile([width, height], 2) / 1.01
    columns = zip(
        generator.integers(num_images, size=num_objects).tolist(),
        generator.integers(1, CLASSES + 1, size=num_objects).tolist(),
        boxes.tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}
            for number in range(num_images)
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box}
            for number, (image, category, box) in enumerate(columns)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
    }


def detections(ground_truth: dict, generator: np.random.Generator) -> list[dict]:
    """Return DETECTIONS boxes per image: the objects with slightly moved edges, and random boxes with lower scores."""
    num_images = len(ground_truth["images"])
    found = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": moved(entry["bbox"], generator.uniform(-0.1, 0.1, 4)),
            "score": generator.uniform(0.3, 1.0),
        }
        for entry in ground_truth["annotations"]
    ]
    others = simulate(num_images, num_images * DETECTIONS - len(found), generator)["annotations"]
    return found + [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": generator.uniform(0.05, 0.5)}
        for entry in others
    ]


def moved(box: list[float], shifts: np.ndarray) -> list[float]:
    """Return the box [x, y, width, height] with its edges shifted. `shifts` are relative to the box's size."""
    x, y, width, height = box
    left, top, right, bottom = shifts * [width, height, width, height]
    return [x + left, y + top, width + right - left, height + bottom - top]


def write_images(folder: Path, images: list[dict], pixels: np.ndarray) -> Path:
    """Write one JPEG and link it under every image's name. Return the path of the first."""
    first = folder / images[0]["file_name"]
    Image.fromarray(pixels).save(first, quality=90)
    for entry in images[1:]:
        os.link(first, folder / entry["file_name"])
    return first


def read_annotations(folder: Path, num_images: int) -> Measured:
    file = folder / "train.json"
    generator = np.random.default_rng(0)
    file.write_text(json.dumps(simulate(num_images, TRAIN_OBJECTS * num_images // TRAIN_IMAGES, generator)))
    (folder / f"{0:012d}.jpg").touch()  # CocoDataset checks that the first image exists
    before, start = memory(), time.perf_counter()
    dataset = CocoDataset(file, folder)
    return {"pieces": len(dataset), "seconds": time.perf_counter() - start, "MiB": memory() - before}


def load_images(folder: Path, num_images: int) -> Measured:
    """Measure reading, decoding, flipping and conversion to float in one process, with files in the page cache."""
    generator = np.random.default_rng(0)
    height, width = IMAGE_SIZE
    coarse = Image.fromarray(generator.integers(256, size=(15, 20, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse) + NOISE * generator.standard_normal((height, width, 3))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    content = simulate(num_images, num_images * 7, np.random.default_rng(0))
    first = write_images(folder, content["images"], pixels)
    (folder / "train.json").write_text(json.dumps(content))
    dataset = CocoDataset(folder / "train.json", folder, transforms=build_transforms(True, horizontal_flip=0.5))
    torch.set_num_threads(1)
    before, start = memory(), time.perf_counter()
    for _ in train_loader(dataset, batch_size=1, num_workers=0, seed=0, num_iterations=num_images):
        pass
    seconds = time.perf_counter() - start
    return {"pieces": num_images, "seconds": seconds, "MiB": memory() - before, "kB a file": first.stat().st_size / 1e3}


def score(folder: Path, num_images: int, processes: int = 1) -> Measured:
    """Measure how long one process takes to score its share of the categories, given only their detections."""
    generator = np.random.default_rng(0)
    ground_truth = simulate(num_images, VAL_OBJECTS * num_images // VAL_IMAGES, generator)
    results = detections(ground_truth, generator)
    evaluator = CocoEvaluator(ground_truth)
    share = evaluator.category_ids[::processes]
    results = [entry for entry in results if entry["category_id"] in share]
    before, start = memory(), time.perf_counter()
    ap = evaluator.summary(evaluator.by_category(results, share))["AP"]
    seconds = time.perf_counter() - start
    return {"pieces": num_images, "seconds": seconds, "MiB": memory(peak=True) - before, "AP": ap}


def score_eighth(folder: Path, num_images: int) -> Measured:
    return score(folder, num_images, processes=8)


def refine(folder: Path, num_images: int) -> Measured:
    """Measure refinement of 100 detections per image, as in tools/refine_boxes.py.

    "MiB" is the increase in memory after the first tenth of the images.
    """
    cfg = load_config(
        None,
        "MODEL.BACKBONE.NAME resnet18 MODEL.FPN.CHANNELS 16 MODEL.IOU_HEAD.HIDDEN_DIM 32 MODEL.BOX_HEAD.HIDDEN_DIM 32 "
        f"INPUT.MIN_SIZE 48 MODEL.NUM_CLASSES {CLASSES}".split(),
    )
    generator = np.random.default_rng(0)
    content = simulate(num_images, num_images, generator)
    # Images have a tenth of COCO's height and width.
    write_images(folder, content["images"], generator.integers(256, size=(48, 64, 3), dtype=np.uint8))
    boxes = detections(content, generator)
    for entry in boxes:
        entry["bbox"] = [value / 10 for value in entry["bbox"]]
    (folder / "detections.json").write_text(json.dumps(boxes))
    del boxes
    save_checkpoint(
        folder / "model.pth",
        model=build_detector(cfg).state_dict(),
        categories=content["categories"],
        config=cfg.dump(),
    )
    refiner = IoURefiner.from_checkpoint(folder / "model.pth")
    torch.set_num_threads(1)
    detections_file = DetectionsFile.read(folder / "detections.json", find_images([folder]), None, refiner.categories)
    source = OtherBoxes(refiner, detections_file, class_agnostic=False)
    journal = Journal(folder / "progress.jsonl", {}, resume=False)
    start = time.perf_counter()
    for count, (image_ids, images) in enumerate(read_ahead(source.paths, 1), start=1):
        for refined in source.refine(image_ids, images):
            journal.append(refined.record())
        if count == num_images // 10:
            early = memory(), len(os.listdir("/proc/self/fd"))
    seconds = time.perf_counter() - start
    late = memory(), len(os.listdir("/proc/self/fd"))
    written = write_json_list(folder / "refined.json", source.results(journal, "after"))
    journal.finish()
    return {
        "pieces": num_images,
        "seconds": seconds,
        "MiB": late[0] - early[0],
        "open files": late[1] - early[1],
        "boxes": written,
    }


def memory(peak: bool = False) -> float:
    """Return the current or peak memory of this process in MiB."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


STEPS: dict[str, tuple[Callable[[Path, int], Measured], int]] = {
    "read the training annotations": (read_annotations, TRAIN_IMAGES),
    "load training images": (load_images, 500),
    "score detections, 100 an image": (score, VAL_IMAGES),
    "the same, the first of 8 processes": (score_eighth, VAL_IMAGES),
    "refine detections, 100 an image": (refine, REFINED_IMAGES),
}


def in_new_process(step: Callable[[Path, int], Measured], size: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, (Path(folder), size))


def heading(figures: Figures) -> str:
    return figures["device"]


def table(figures: Figures) -> str:
    cells = [
        [
            row["step"],
            f"{row['pieces']:,}",
            f"{row['seconds']:.1f}",
            f"{1e3 * row['seconds'] / row['pieces']:.2f}",
            f"{row['MiB']:.0f}",
        ]
        for row in figures["rows"]
    ]
    return markdown(["", "images", "seconds", "ms an image", "MiB"], cells, text_columns=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=1.0, help="fraction of COCO's size to simulate (default: 1)")
    add_output_arguments(parser, MARKER)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    figures: Figures = {"device": f"{processor_name(torch.device('cpu'))}, torch {torch.__version__}.", "rows": rows}
    print(heading(figures), flush=True)
    for name, (step, size) in STEPS.items():
        for part in (0.5, 1.0):
            rows.append({"step": name} | in_new_process(step, max(int(size * part * args.part), 10)))
            print(rows[-1], flush=True)
    write_results(args, figures, heading(figures), table(figures), MARKER)


if __name__ == "__main__":
    main()
