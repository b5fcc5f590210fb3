"""Train and evaluate IoU-Net on a data set: COCO JSON, Pascal VOC or YOLO labels.

    iounet-train --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd
    iounet-train --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd --resume
    iounet-train --config-file configs/bccd.yaml --eval-only MODEL.WEIGHTS runs/bccd/model_final.pth
    torchrun --standalone --nproc-per-node=8 -m iounet.commands.train --config-file configs/coco_r50.yaml

In a clone, python tools/train.py is the same as iounet-train.

SGD's learning rate is scaled linearly from SOLVER.REFERENCE_BATCH_SIZE to SOLVER.GLOBAL_BATCH_SIZE.

SIGTERM and Ctrl-C end a run after the current step: it saves a checkpoint and exits with 143 or 130. --resume continues
from there as if nothing had happened. A resumed run uses the configuration given now and prints the settings that
differ from before; settings that are incompatible with the weights are refused. A damaged checkpoint is set aside with
a warning, and the one before it is used.

The run folder (OUTPUT_DIR) then holds config.yaml, environment.json (command, commit, versions, hardware), git.diff if
there are uncommitted changes, metrics.json (a JSON object a line), metrics.csv, evaluation.csv, tensorboard/,
checkpoints/, model_final.pth, and the last evaluation: table.md, evaluation.json, detections.json, correlation.png,
boxes.png, changes.png, and report.html with all of it. The same run again:

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
        "--config-file", required=True, metavar="FILE", help="YAML file of differences from the defaults"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATA.VAL_*; no training")
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
    except KeyboardInterrupt:  # before training or in an evaluation; training itself saves a checkpoint first
        sys.exit(130)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        if job is None or not is_out_of_space(error):
            raise
        cure = "" if args.eval_only else "; --resume continues from the newest whole checkpoint in it"
        sys.exit(f"{error}: make room for {job.output_dir}{cure}")
    if dist.is_initialized():  # not after an error: the others, which wait for this process, could keep it waiting
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
