"""Reproduce the paper's tables and figures for a trained IoU-Net on any data set in COCO format.

    python tools/reproduce.py --config-file configs/bccd.yaml --weights runs/bccd/model_final.pth \\
        --baseline runs/bccd_plain/model_final.pth --output runs/bccd/reproduction \\
        DATA.VAL_ANNOTATIONS runs/bccd/data/test.json

Detects once on DATA.VAL_*; every table and figure uses these candidates. In the output folder, report.html and
README.md show all tables and figures, each table is also a .csv and a .md file, and reproduction.json contains every
number.

The baseline is a detector trained the same way without the IoU branch (MODEL.IOU_HEAD.LOSS_WEIGHT 0). Most of the time
is spent on refining the same boxes repeatedly, for five values of lambda and for one to ten steps. --beyond doubles the
time.
"""

import iounet.commands  # isort: skip  # noqa: F401 - sets how OpenMP threads wait, before torch is imported

import argparse
import shlex
import sys
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

from iounet.boxes import box_sizes
from iounet.build import build_evaluation, configured_device
from iounet.config import add_override_arguments, load_config
from iounet.data import eval_loader
from iounet.errors import ConfigError, UserError
from iounet.evaluation import CocoEvaluator, ReproductionReport, detect, reproduce
from iounet.evaluation.predictions import GREEDY, REFINED, table_rows
from iounet.evaluation.reproduction import beyond_rows, step_size_rows
from iounet.evaluation.reproduction_report import BASELINE, paper_tables
from iounet.files import make_folder
from iounet.jobs import EvaluationJob
from iounet.progress import progress
from iounet.wording import counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the training run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--baseline", metavar="FILE", help="checkpoint of a detector trained without the IoU branch")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="output folder")
    parser.add_argument("--beyond", action="store_true", help="also measure changes to the paper's inference")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config_file, args.overrides)
        device = configured_device(cfg)
        job = build_evaluation(cfg, args.weights, device=device)
        baseline = build_evaluation(cfg, args.baseline, device=device) if args.baseline else None
        run(job, baseline, args.output, beyond=args.beyond, device=device)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(
    job: EvaluationJob, baseline: EvaluationJob | None, output: Path, *, beyond: bool, device: torch.device
) -> None:
    dataset = job.dataset
    paper = table_rows(job.detector.postprocessing)
    tables = paper_tables(paper) | {"step_size": step_size_rows(paper[REFINED])}
    if beyond and paper[REFINED].refinement.objective != "iou":
        raise ConfigError(
            "--beyond requires TEST.REFINE.OBJECTIVE iou; for a detector with an energy head, use tools/compare.py"
        )
    if beyond:
        tables["beyond"] = beyond_rows(paper[REFINED], mean_object_size(job))
    make_folder(output)

    def batches(description: str) -> tqdm:
        loader = eval_loader(dataset, batch_size=job.batch_size, num_workers=job.num_workers)
        return progress(loader, desc=description, unit="batch", leave=False)

    variants = [variant for rows in tables.values() for variant in rows.values()]
    measured = reproduce(job.detector, batches("detect, suppress, refine"), variants, device=device)
    plain = None
    if baseline:
        plain = detect(baseline.detector, batches(BASELINE), paper[GREEDY], device=device)
    print("scoring ...", file=sys.stderr)
    report = ReproductionReport(output, CocoEvaluator(dataset.as_coco(), by_size=False), dataset.category_ids)
    facts = {
        "command": shlex.join(sys.argv),
        "data": f"{dataset.annotation_file}, {counted(len(dataset), 'image')}",
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    report.write(measured, tables, plain, facts)
    print(f"{facts['data']}\n\n{(output / 'ablation.md').read_text(encoding='utf-8')}")
    print(f"all tables and figures are in {output / 'report.html'}")


def mean_object_size(job: EvaluationJob) -> float:
    """Mean object size, sqrt(width * height), in pixels of the resized images."""
    transform = job.detector.transform
    sizes = []
    for index, image in enumerate(job.dataset.images):
        short, long = sorted((image["height"], image["width"]))
        scale = min(transform.min_size[-1] / short, transform.max_size / long)
        sizes.append(scale * box_sizes(job.dataset.ground_truth(index)["boxes"]).prod(1).sqrt())
    return torch.cat(sizes).mean().item()


if __name__ == "__main__":
    main()
