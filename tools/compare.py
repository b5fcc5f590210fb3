"""Compare methods of placing and ranking boxes on the same candidates of one trained detector.

    python tools/compare.py --config-file configs/bccd_energy.yaml --weights runs/bccd_energy/model_final.pth \\
        --baseline configs/bccd.yaml runs/bccd_plain/model_final.pth --output runs/bccd_energy/comparison \\
        DATA.VAL_ANNOTATIONS runs/bccd/data/test.json

Writes comparison.md, a table of AP, TIDE's localisation error and milliseconds per image. Its rows are NMS variants,
box averaging, repeated box regression, the paper's NMS and refinement, the method of the configuration, and upper
bounds that use the true IoU. comparison.json also contains the calibration of the predicted IoU and the accuracy of
refined boxes for each range of initial IoUs.

The baseline is a detector trained without the added heads. Command-line overrides also apply to the baseline. The
bounds keep the class score, so a method that changes both boxes and scores can exceed them.
"""

import iounet.commands  # isort: skip  # noqa: F401 - sets how OpenMP threads wait, before torch is imported

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from iounet.build import build_evaluation, configured_device
from iounet.config import add_override_arguments, load_config
from iounet.engine import Process, batches_of
from iounet.errors import UserError
from iounet.evaluation import (
    CocoEvaluator,
    compare,
    comparison_summary,
    detect,
    markdown_table,
    measure_basins,
    methods,
)
from iounet.evaluation.predictions import GREEDY, table_rows
from iounet.evaluation.report import without_nan
from iounet.files import write_text
from iounet.jobs import EvaluationJob
from iounet.training import jitter_boxes
from iounet.wording import counted

BOXES_PER_OBJECT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the training run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument(
        "--baseline", nargs=2, metavar=("CONFIG", "FILE"), help="config and checkpoint of a plain detector"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config_file, args.overrides)
        device = configured_device(cfg)
        job = build_evaluation(cfg, args.weights, device=device)
        baseline = None
        if args.baseline:
            config, weights = args.baseline
            baseline = build_evaluation(load_config(config, args.overrides), weights, device=device)
        run(job, baseline, args.output, device=device)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(job: EvaluationJob, baseline: EvaluationJob | None, output: Path, *, device: torch.device) -> None:
    dataset = job.dataset

    batches = partial(batches_of, job, Process(device))
    plain = None
    if baseline:
        greedy = table_rows(baseline.detector.postprocessing)[GREEDY]
        plain = detect(baseline.detector, batches("plain detector"), greedy, device=device)
    rows = methods(job.detector.postprocessing)
    measured = compare(job.detector, batches("compare"), rows, device=device)
    print("scoring ...", file=sys.stderr)
    evaluator = CocoEvaluator(dataset.as_coco(), by_size=False)
    summary = comparison_summary(measured, evaluator, dataset.category_ids, plain)
    jitter = partial(jittered, generator=torch.Generator().manual_seed(0))
    summary["basins"] = measure_basins(job.detector, batches("jitter, refine"), jitter, device=device)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "comparison.json", json.dumps(without_nan(summary), indent=1) + "\n")
    table = markdown_table(summary["table"], list(summary["table"][next(iter(rows))]))
    write_text(output / "comparison.md", table + "\n")
    print(f"{dataset.annotation_file}, {counted(len(dataset), 'image')}\n\n{table}\n")
    print(f"all numbers are in {output / 'comparison.json'}")


def jittered(boxes: Tensor, size: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    return jitter_boxes(boxes, BOXES_PER_OBJECT, min_iou=0.5, image_size=size, generator=generator)[0]


if __name__ == "__main__":
    main()
