"""Compare the accuracy of exported refiners with that of their checkpoint in PyTorch.

    python tools/onnx_accuracy.py runs/cards/data/test.json --images cards --weights weights/cards.pth \\
        --onnx float32.onnx float16.onnx int8.onnx --output docs/results/onnx_weights.json

For AP, the detector's own detections are computed once in PyTorch and refined with each file. For the IoU of loose
boxes, each object gets jittered boxes whose IoUs are uniform over [0.6, 0.9].
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iounet import Detections, IoURefiner
from iounet.boxes import elementwise_iou
from iounet.data import CocoDataset, check_categories, open_dataset
from iounet.errors import UserError
from iounet.evaluation import CocoEvaluator, without_nan
from iounet.evaluation.tables import markdown
from iounet.files import write_text
from iounet.onnx import OnnxRefiner
from iounet.postprocess import postprocess
from iounet.training import jitter_boxes

PER_OBJECT = 16
MIN_IOU, MAX_IOU = 0.6, 0.9
DIGITS = {"MB": 1, "AP": 2, "AP75": 2, "AP90": 2, "IoU of loose boxes": 4, "error of the predicted IoU": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="data set in COCO, VOC or YOLO format")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--onnx", required=True, nargs="+", type=Path, metavar="FILE", help="exported refiners")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON file for the results")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder, if the labels do not name it")
    parser.add_argument("--split", default="test", metavar="NAME", help="split, if there are several (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the loose boxes (default: 0)")
    args = parser.parse_args()
    try:
        detector = IoURefiner.from_checkpoint(args.weights)
        exported = {path.name: OnnxRefiner(path) for path in args.onnx}
        dataset = open_dataset(args.source, args.images, split=args.split)
        check_categories(detector.categories, dataset, args.weights)
        table = measure(detector, {"PyTorch": detector, **exported}, dataset, args.seed)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for path in args.onnx:
        table[path.name]["MB"] = path.stat().st_size / 1e6
    facts = {"images": len(dataset), "seed": args.seed, "table": table}
    write_text(args.output, json.dumps(without_nan(facts), indent=1) + "\n")
    rows = [
        [name, *(f"{row[column]:.{digits}f}" if column in row else "" for column, digits in DIGITS.items())]
        for name, row in table.items()
    ]
    print(markdown(["", *DIGITS], rows))


def measure(
    detector: IoURefiner, refiners: dict[str, IoURefiner | OnnxRefiner], dataset: CocoDataset, seed: int
) -> dict[str, dict[str, float]]:
    """Measure every refiner: row → column → value. The first row is for boxes before refinement.

    Args:
        detector: Finds the detections, and scores the loose boxes of the first row.
        refiners: The refiners of the other rows, by name.
        seed: Seed of the loose boxes.
    """

    def unchanged(detections: Sequence[Detections], _: object) -> Sequence[Detections]:
        return detections

    generator = torch.Generator().manual_seed(seed)
    rows = ("not refined", *refiners)
    results: dict[str, list[dict]] = {row: [] for row in rows}
    true: dict[str, list[Tensor]] = {row: [] for row in rows}
    predicted: dict[str, list[Tensor]] = {row: [] for row in rows}
    # NMS and refinement are replaced by no-ops: only the final score and the order remain.
    options = detector.detector.postprocessing
    for image, target in map(dataset.__getitem__, range(len(dataset))):
        found = detector.detect(image)[0]
        loose, objects = jittered(target, (image.shape[1], image.shape[2]), generator)
        loose = replace(loose, ious=detector.score(image, loose.boxes, loose.labels))
        for row in rows:
            refine = partial(refined, image=image, refiner=refiners.get(row))
            (final,) = postprocess([refine(found)], options, unchanged, unchanged)
            results[row] += final.to_coco(target["image_id"], dataset.category_ids)
            there = refine(loose)
            true[row].append(elementwise_iou(there.boxes, objects))
            predicted[row].append(there.ious)
    evaluate = CocoEvaluator(dataset.as_coco(), by_size=False)
    table = {}
    for row in rows:
        of_loose = torch.cat(true[row])
        table[row] = evaluate(results[row]) | {
            "IoU of loose boxes": of_loose.mean().item(),
            "error of the predicted IoU": (torch.cat(predicted[row]) - of_loose).abs().mean().item(),
        }
    return table


def refined(detections: Detections, image: Tensor, refiner: IoURefiner | OnnxRefiner | None) -> Detections:
    """Refine detections and set their predicted IoUs; return them unchanged if the refiner is None."""
    if refiner is None:
        return detections
    columns = (detections.boxes.numpy(), detections.labels.numpy(), detections.scores.numpy())
    found = refiner.refine(image.permute(1, 2, 0).numpy(), *columns)
    return replace(detections, boxes=torch.as_tensor(found.boxes), ious=torch.as_tensor(found.ious))


def jittered(target: dict[str, Any], size: tuple[int, int], generator: torch.Generator) -> tuple[Detections, Tensor]:
    """Return loose boxes in an image of `size` (height, width), and the box of the object of each, Tensor [N, 4]."""
    boxes, ious = jitter_boxes(target["boxes"], PER_OBJECT, min_iou=MIN_IOU, image_size=size, generator=generator)
    chosen = ious < MAX_IOU
    objects = target["boxes"][:, None].expand_as(boxes)[chosen]
    labels = target["labels"][:, None].expand_as(ious)[chosen]
    ones = torch.ones(len(labels))
    return Detections(boxes[chosen], labels, ones, ones), objects


if __name__ == "__main__":
    main()
