"""The paper's tables and figures, of a trained IoU-Net on any data set in COCO form.

    python tools/reproduce.py --config-file configs/bccd.yaml --weights runs/bccd/model_final.pth \\
        --baseline runs/bccd_plain/model_final.pth --output runs/bccd/reproduction \\
        DATA.VAL_ANNOTATIONS runs/bccd/data/test.json

Detects once on DATA.VAL_*; every table and figure starts from these boxes. report.html and README.md in the output
folder show them all, each table stands beside them as .csv and .md, and reproduction.json holds every number. The
baseline is a detector trained the same way without the IoU branch (MODEL.IOU_HEAD.LOSS_WEIGHT 0). Most of the time goes
into refining the same boxes in several ways, five of lambda and ten steps one by one; with --beyond, twice as many.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm
from yacs.config import CfgNode

from iounet.boxes import box_sizes
from iounet.build import build_dataset, build_device, load_detector
from iounet.config import ConfigError, add_override_arguments, load_config
from iounet.data import CocoDataset, DataError, eval_loader
from iounet.evaluation import CocoEvaluator, ReproductionReport, detect, reproduce
from iounet.evaluation.evaluate import GREEDY, REFINED, table_rows
from iounet.evaluation.reproduction import beyond_rows, step_size_rows
from iounet.evaluation.reproduction_report import BASELINE, paper_tables
from iounet.training.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="what the weights were trained with")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of tools/train.py")
    parser.add_argument("--baseline", metavar="FILE", help="checkpoint of a detector trained without the IoU branch")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for tables and figures")
    parser.add_argument("--beyond", action="store_true", help="also try changes to the paper's inference, each a row")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    try:
        run(load_config(args.config_file, args.overrides), args)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    device = build_device(cfg.MODEL.DEVICE)
    dataset = build_dataset(cfg, "val")
    detector = load_detector(cfg, args.weights, dataset).to(device)
    baseline = load_detector(cfg, args.baseline, dataset) if args.baseline else None
    paper = table_rows(detector.postprocessing)
    tables = paper_tables(paper) | {"step_size": step_size_rows(paper[REFINED])}
    if args.beyond:
        tables["beyond"] = beyond_rows(paper[REFINED], mean_object_size(dataset, cfg))

    def batches(description: str) -> tqdm:
        loader = eval_loader(dataset, batch_size=cfg.TEST.BATCH_SIZE, num_workers=cfg.DATA.NUM_WORKERS)
        return tqdm(loader, desc=description, unit="batch", leave=False)

    variants = [variant for rows in tables.values() for variant in rows.values()]
    measured = reproduce(detector, batches("detect, suppress, refine"), variants, device=device)
    plain = None
    if baseline:
        plain = detect(baseline.to(device), batches(BASELINE), paper[GREEDY], device=device)
    print("scoring ...", file=sys.stderr)
    report = ReproductionReport(args.output, CocoEvaluator(dataset.as_coco(), by_size=False), dataset.category_ids)
    facts = {
        "command": shlex.join(sys.argv),
        "data": f"{dataset.annotation_file}, {len(dataset)} images",
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    report.write(measured, tables, plain, facts)
    print(f"{dataset.annotation_file}, {len(dataset)} images\n\n{(args.output / 'ablation.md').read_text()}")
    print(f"all tables and figures: {args.output / 'report.html'}")


def mean_object_size(dataset: CocoDataset, cfg: CfgNode) -> float:
    """Mean of the objects' sqrt(width * height) in pixels of the resized images."""
    sizes = []
    for index, image in enumerate(dataset.images):
        short, long = sorted((image["height"], image["width"]))
        scale = min(cfg.INPUT.MIN_SIZE / short, cfg.INPUT.MAX_SIZE / long)
        sizes.append(scale * box_sizes(dataset.ground_truth(index)["boxes"]).prod(1).sqrt())
    return torch.cat(sizes).mean().item()


if __name__ == "__main__":
    main()
