"""Calibrates the predicted IoU of a trained detector on other data, or that of an earlier checkpoint.

    python tools/calibrate.py --config-file configs/bccd.yaml --weights runs/bccd/model_final.pth \\
        --output runs/bccd/model_calibrated.pth DATA.VAL_ANNOTATIONS mine/val.json DATA.VAL_IMAGES mine/images

Training has already calibrated it on its own DATA.VAL_*. The output is a copy of the checkpoint with another
calibration. That keeps the order of predicted IoUs: results change only where they are multiplied by the class score
(TEST.NMS_RANKING score_times_iou, TEST.FINAL_SCORE class_times_iou).
"""

import iounet.commands  # isort: skip  # noqa: F401 - before torch, as it says how torch's threads wait

import argparse
import sys
from pathlib import Path

from iounet.build import build_evaluation, configured_device
from iounet.config import add_override_arguments, load_config
from iounet.engine import Process, calibrate
from iounet.errors import UserError
from iounet.training.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="what the weights were trained with")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of tools/train.py")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the calibrated checkpoint")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config_file, args.overrides)
        device = configured_device(cfg)
        job = build_evaluation(cfg, args.weights, device=device)
        print(calibrate(job, Process(device)))
        content = load_checkpoint(args.weights)
        content["model"]["iou_head.calibration"] = job.detector.iou_head.calibration.cpu()
        save_checkpoint(args.output, **{key: value for key, value in content.items() if key != "format"})
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
