"""Calibrate the predicted IoU of a trained detector on other data, or calibrate an intermediate checkpoint.

    python tools/calibrate.py --config-file configs/bccd.yaml --weights runs/bccd/model_final.pth \\
        --output runs/bccd/model_calibrated.pth DATA.VAL_ANNOTATIONS mine/val.json DATA.VAL_IMAGES mine/images

Training calibrates the predicted IoU on DATA.VAL_* only at the end of a run. This tool writes a copy of a checkpoint
with a new calibration. Calibration preserves the order of predicted IoUs, so results change only where the predicted
IoU is multiplied by the class score (TEST.NMS_RANKING score_times_iou, TEST.FINAL_SCORE class_times_iou).
"""

import iounet.commands  # isort: skip  # noqa: F401 - sets how OpenMP threads wait, before torch is imported

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
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the training run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="calibrated checkpoint to write")
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
