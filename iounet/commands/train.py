"""Train and evaluate IoU-Net on a data set with COCO, Pascal VOC or YOLO labels.

Train, resume a stopped run, evaluate a checkpoint, and train on eight GPUs:

    iounet-train --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd
    iounet-train --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd --resume
    iounet-train --config-file configs/bccd.yaml --eval-only MODEL.WEIGHTS runs/bccd/model_final.pth
    torchrun --standalone --nproc-per-node=8 -m iounet.commands.train --config-file configs/coco_r50.yaml

In a clone of the repository, python tools/train.py is the same command.

SGD's learning rate is scaled linearly from SOLVER.REFERENCE_BATCH_SIZE to SOLVER.GLOBAL_BATCH_SIZE.

On SIGTERM or Ctrl-C, a run finishes the current step, saves a checkpoint and exits with code 143 or 130. --resume
continues exactly from there. A resumed run uses the configuration of the new command line and prints the settings that
have changed; settings that are incompatible with the weights are refused. If the newest checkpoint is damaged, the run
warns, renames the checkpoint and resumes from the one before.

The run folder (OUTPUT_DIR) contains config.yaml, environment.json (command, commit, versions, hardware), git.diff if
there are uncommitted changes, metrics.json (one JSON object per line), metrics.csv, evaluation.csv, tensorboard/,
checkpoints/, model_final.pth, and the last evaluation: table.md, evaluation.json, detections.json, correlation.png,
boxes.png, changes.png, and report.html, which shows all of these. To repeat a run:

    iounet-train --config-file runs/bccd/config.yaml OUTPUT_DIR runs/again
"""

import argparse
import sys

import torch.distributed as dist

from ..build import build_evaluation, build_training, configured_device
from ..config import add_override_arguments, load_config
from ..engine import evaluate_and_report, init_process, train
from ..errors import UserError, is_out_of_space
from ..jobs import EvaluationJob, TrainingJob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="YAML file with the keys that differ from the defaults"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATA.VAL_* without training"
    )
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    job: TrainingJob | EvaluationJob | None = None
    try:
        cfg = load_config(args.config_file, args.overrides)
        process = init_process(configured_device(cfg))
        if args.eval_only:
            job = build_evaluation(cfg, device=process.device)
            evaluate_and_report(job, process)
        else:
            job = build_training(cfg, device=process.device, num_processes=process.world_size)
            train(job, process, resume=args.resume)
    except KeyboardInterrupt:  # outside the training loop, which saves a checkpoint first
        sys.exit(130)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        if job is None or not is_out_of_space(error):
            raise
        cure = "" if args.eval_only else "; then add --resume to continue from its newest intact checkpoint"
        sys.exit(f"{error}: free disk space for {job.output_dir}{cure}")
    if dist.is_initialized():  # not after an error: the call could block while other processes wait for this one
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
