"""Train and evaluate IoU-Net on a data set in COCO form.

    python tools/train.py --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd
    python tools/train.py --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd --resume
    python tools/train.py --config-file configs/bccd.yaml --eval-only MODEL.WEIGHTS runs/bccd/model_final.pth
    torchrun --standalone --nproc-per-node=8 tools/train.py --config-file configs/coco_r50.yaml

With another SOLVER.BATCH_SIZE than SOLVER.REFERENCE_BATCH_SIZE SGD's learning rate is scaled in proportion.

SIGTERM and Ctrl-C end a run after the step that it is at, with a checkpoint, and exit code 143 or 130; --resume goes on
from there as if nothing had happened. A resumed run obeys the configuration given now, and prints what differs from the
one before; what would not fit the weights it refuses. A damaged checkpoint is set aside, with a warning, and the one
before it used.

The run folder (OUTPUT_DIR) then holds config.yaml, environment.json (command, commit, versions, hardware), git.diff if
there are uncommitted changes, metrics.json (a JSON object a line), metrics.csv, evaluation.csv, tensorboard/,
checkpoints/, model_final.pth, and the last evaluation: table.md, evaluation.json, detections.json, correlation.png,
boxes.png, changes.png, and report.html with all of it. The same run again:

    python tools/train.py --config-file runs/bccd/config.yaml OUTPUT_DIR runs/again
"""

import argparse
import errno
import math
import shlex
import sys
from pathlib import Path
from signal import Signals

import torch
import torch.distributed as dist
import torchvision
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from yacs.config import CfgNode

from iounet.build import (
    build_dataset,
    build_detector,
    build_device,
    build_optimizer,
    build_schedule,
    check_categories,
    load_detector,
    load_initial_weights,
    with_num_classes,
)
from iounet.config import ConfigError, add_override_arguments, get_cfg, load_config, same_epochs, scale_learning_rate
from iounet.data import CocoDataset, DataError, eval_loader, train_loader
from iounet.evaluation import evaluate, write_report
from iounet.modeling import IoUNet
from iounet.processes import Process, join_processes
from iounet.training import NonFiniteLossError, train_steps
from iounet.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_detector_weights,
    load_newest_checkpoint,
    prune_checkpoints,
    resumable_checkpoints,
    save_checkpoint,
)
from iounet.training.resuming import changed_settings, restore_optimizer
from iounet.training.run_folder import RunFolder
from iounet.training.stop_signals import StopSignals, leave_process_group

KEPT_CHECKPOINTS = 2  # one that turns out bad leaves the one before it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="YAML file of differences from the defaults"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATA.VAL_*; no training")
    add_override_arguments(parser)
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config_file, args.overrides)
        process = join_processes(build_device(cfg.MODEL.DEVICE))
        if args.eval_only:
            evaluate_weights(cfg, process)
        else:
            train(cfg, process, resume=args.resume)
    except (ConfigError, DataError, CheckpointError, NonFiniteLossError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        cure = "" if args.eval_only else "; --resume goes on from the newest whole checkpoint in it"
        sys.exit(f"{error}: make room for {cfg.OUTPUT_DIR}{cure}")
    if dist.is_initialized():  # not after an error: the others, which wait for this process, could keep it waiting
        dist.destroy_process_group()


def evaluate_weights(cfg: CfgNode, process: Process) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only evaluates MODEL.WEIGHTS, which is not set; give a checkpoint")
    val_set = build_dataset(cfg, "val")
    detector = load_detector(cfg, cfg.MODEL.WEIGHTS, val_set).to(process.device)
    evaluate_and_report(cfg, detector, val_set, process)


def train(cfg: CfgNode, process: Process, *, resume: bool) -> None:
    check_settings(cfg, process)
    train_set, val_set = build_dataset(cfg, "train"), build_dataset(cfg, "val")
    check_categories(train_set.categories, val_set, str(train_set.annotation_file))
    given, cfg = cfg, scale_learning_rate(with_num_classes(cfg, train_set))
    if process.reports:
        describe(train_set)

    torch.manual_seed(cfg.SEED)  # the same initial weights on every rank
    detector = build_detector(cfg).to(process.device)
    optimizer = build_optimizer(cfg, detector)
    schedule = build_schedule(cfg, optimizer)
    output = Path(cfg.OUTPUT_DIR)
    checkpoints = resumable_checkpoints(output / "checkpoints")
    if checkpoints and not resume:
        raise ConfigError(
            f"{output} holds the checkpoints of another run: give --resume to continue it, or another OUTPUT_DIR"
        )
    if checkpoints:
        done = resume_from(checkpoints, cfg, detector, optimizer, schedule, train_set, process)
    else:
        done = 0
        load_initial_weights(cfg, detector, train_set.category_ids)
        if process.reports:
            if resume:
                print(f"{output} holds no checkpoint to resume from: the run begins at iteration 0")
            describe_scaling(given, cfg, len(train_set))
    if process.maximum(done) != done:
        raise CheckpointError(f"other processes resume from a later iteration than {done}: all must see one OUTPUT_DIR")

    folder = RunFolder(output, cfg.dump(), start_iteration=done) if process.reports else None
    finished = done >= cfg.SOLVER.MAX_ITERATIONS
    if finished and process.reports:
        print(f"{output} has done all {cfg.SOLVER.MAX_ITERATIONS} iterations: evaluating it")
    missing = folder is not None and evaluation_is_due(cfg, done) and done not in folder.evaluated
    if finished or process.maximum(int(missing)):
        evaluate_and_report(cfg, detector, val_set, process, folder, done)

    batches = train_loader(
        train_set,
        batch_size=cfg.SOLVER.BATCH_SIZE // process.world_size,
        num_workers=cfg.DATA.NUM_WORKERS,
        seed=cfg.SEED,
        start_iteration=done,
        num_iterations=cfg.SOLVER.MAX_ITERATIONS,
        rank=process.rank,
        world_size=process.world_size,
    )
    batches.worker_init_fn = leave_process_group
    steps = train_steps(
        DistributedDataParallel(detector, gradient_as_bucket_view=True) if process.world_size > 1 else detector,
        batches,
        optimizer,
        schedule,
        device=process.device,
        seed=cfg.SEED * process.world_size + process.rank,
        start_iteration=done,
        clip_gradient=cfg.SOLVER.CLIP_GRADIENT,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    progress = tqdm(
        steps,
        initial=done,
        total=cfg.SOLVER.MAX_ITERATIONS,
        desc="train",
        unit="it",
        smoothing=0.05,
        disable=not process.reports,
    )
    description = {"categories": train_set.categories, "config": cfg.dump()}
    with StopSignals() as signals:
        for step in progress:
            # All are asked at every step: torchrun signals them one by one, and one that stopped a step before the
            # others would leave them waiting. It takes 0.4 ms with two on a CPU.
            stopped = process.maximum(signals.received)
            done, last = step.iteration, step.iteration == cfg.SOLVER.MAX_ITERATIONS
            if folder and (last or done % cfg.SOLVER.LOG_PERIOD == 0):
                values = {"gradient_norm": step.gradient_norm, "learning_rate": step.learning_rate}
                folder.log(done, step.losses | values)
                shown = {"loss": f"{step.losses['loss']:.3f}", "iou": f"{step.losses['loss_iou']:.4f}"}
                progress.set_postfix(shown, refresh=False)
            if last and folder:
                # Before the last checkpoint: a run that has one is not trained again.
                save_checkpoint(output / "model_final.pth", model=detector.state_dict(), **description)
            evaluates = evaluation_is_due(cfg, done)
            if folder and (stopped or evaluates or done % cfg.SOLVER.CHECKPOINT_PERIOD == 0):
                folder.flush()
                save_checkpoint(
                    checkpoint_path(output / "checkpoints", done),
                    model=detector.state_dict(),
                    optimizer=optimizer.state_dict(),
                    iteration=done,
                    processes=process.world_size,
                    **description,
                )
                prune_checkpoints(output / "checkpoints", keep=KEPT_CHECKPOINTS)
            if stopped:
                if process.reports:
                    tqdm.write(f"{Signals(stopped).name}: stopped after iteration {done}; --resume goes on from there")
                sys.exit(128 + stopped)
            if evaluates:
                with signals.exit_at_once():
                    evaluate_and_report(cfg, detector, val_set, process, folder, done)
    if folder:
        folder.close()


def evaluation_is_due(cfg: CfgNode, done: int) -> bool:
    period = cfg.SOLVER.EVAL_PERIOD
    return done == cfg.SOLVER.MAX_ITERATIONS or bool(done and period and done % period == 0)


def check_settings(cfg: CfgNode, process: Process) -> None:
    for key in ("BATCH_SIZE", "ACCUMULATION_STEPS", "MAX_ITERATIONS", "LOG_PERIOD", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise ConfigError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
    batch_size, parts = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.ACCUMULATION_STEPS
    if batch_size % (process.world_size * parts):
        raise ConfigError(
            f"SOLVER.BATCH_SIZE {batch_size} cannot be shared by {process.world_size} processes"
            + (f" in {parts} parts each (SOLVER.ACCUMULATION_STEPS)" if parts > 1 else "")
        )
    under_torchrun = process.world_size > 1 or dist.is_initialized()
    if cfg.MODEL.BACKBONE.NORM == "SyncBN" and under_torchrun and process.device.type != "cuda":
        raise ConfigError("MODEL.BACKBONE.NORM SyncBN under torchrun needs GPUs; on CPUs choose FrozenBN or BN")


def evaluate_and_report(
    cfg: CfgNode,
    detector: IoUNet,
    val_set: CocoDataset,
    process: Process,
    folder: RunFolder | None = None,
    iteration: int = 0,
) -> None:
    """Evaluates on all processes; the one that reports writes the report, prints the table, and logs it."""
    batches = eval_loader(
        val_set,
        batch_size=cfg.TEST.BATCH_SIZE,
        num_workers=cfg.DATA.NUM_WORKERS,
        rank=process.rank,
        world_size=process.world_size,
    )
    batches.worker_init_fn = leave_process_group
    evaluation = evaluate(
        detector,
        tqdm(batches, desc="evaluate", unit="batch", leave=False, disable=not process.reports),
        val_set.as_coco(),
        val_set.category_ids,
        process=process,
    )
    if evaluation is None:
        return
    output = Path(cfg.OUTPUT_DIR)
    facts = {
        "command": shlex.join(sys.argv),
        "data": f"{val_set.annotation_file}, {len(val_set)} images",
        "classes": ", ".join(val_set.class_names),
        "refinement": f"{cfg.TEST.REFINE.STEPS} steps, lambda {cfg.TEST.REFINE.STEP_SIZE:g}",
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    summary = write_report(evaluation, output, val_set.class_names, f"IoU-Net: {output.name}", facts)
    correlation = summary["correlation"]
    tqdm.write(f"\n{val_set.annotation_file}, {len(val_set)} images:\n\n{(output / 'table.md').read_text()}")
    tqdm.write(
        f"correlation with the true IoU: class score {correlation['score'] or math.nan:.3f}, "
        f"predicted IoU {correlation['predicted_iou'] or math.nan:.3f}; report in {output}/"
    )
    if folder and iteration not in folder.evaluated:
        ious = {"true_iou": evaluation.ious, "predicted_iou": evaluation.predicted_ious}
        folder.log_evaluation(iteration, summary, ious)


def resume_from(
    checkpoints: list[Path], cfg: CfgNode, detector, optimizer, schedule, train_set: CocoDataset, process: Process
) -> int:
    """Restores a run's state from the newest whole checkpoint; the number of iterations done."""
    path, checkpoint, damaged = load_newest_checkpoint(checkpoints)
    check_categories(checkpoint["categories"], train_set, str(path))
    changes = changed_settings(checkpoint["config"], cfg.dump(), get_cfg().dump(), str(path))
    processes = checkpoint.get("processes", process.world_size)  # older checkpoints do not tell
    if processes != process.world_size:
        changes.append(f"processes {processes} → {process.world_size}")
    load_detector_weights(detector, checkpoint["model"], str(path), need_iou_head=True)
    restore_optimizer(optimizer, schedule, checkpoint["optimizer"], checkpoint["iteration"], str(path))
    if process.reports:
        for newer, error in damaged.items():
            # Out of the way of those that are counted as kept; not deleted, as perhaps only the disk was out of order.
            aside = newer.rename(newer.with_name(f"{newer.name}.damaged"))
            print(f"warning: {error}; it is set aside as {aside.name}, and the run goes on from {path}")
        if changes:
            print(f"warning: {path} was trained with other settings; from here on: {', '.join(changes)}")
    return checkpoint["iteration"]


def describe(dataset: CocoDataset) -> None:
    notes = [f"{count} left out: {rule}" for rule, count in dataset.skipped.items()]
    if dataset.clipped:
        notes.append(f"{dataset.clipped} boxes that overhang their image are clipped to it")
    print(f"{dataset.annotation_file}: {len(dataset)} images, {len(dataset.categories)} classes", *notes, sep="; ")


def describe_scaling(given: CfgNode, used: CfgNode, num_images: int) -> None:
    """Says what the linear rule made of the learning rate, and what it leaves to the user: the number of epochs."""
    solver = given.SOLVER
    batch_size, reference = solver.BATCH_SIZE, solver.REFERENCE_BATCH_SIZE
    if reference in (0, batch_size):
        return
    rate = f"learning rate {solver.BASE_LR:g} for {reference} images a step"
    if solver.OPTIMIZER == "SGD":
        print(f"{rate} → {used.SOLVER.BASE_LR:g} for {batch_size}")
    else:
        print(f"{rate}, kept for {batch_size}: the linear rule is SGD's; for {solver.OPTIMIZER} try SOLVER.BASE_LR")
    epochs = solver.MAX_ITERATIONS * batch_size / num_images
    print(
        f"iterations are not scaled: {solver.MAX_ITERATIONS} of {batch_size} images are {epochs:.1f} epochs; "
        f"if they were meant for {reference} images, as many epochs take {shlex.join(same_epochs(given))}"
    )


if __name__ == "__main__":
    main()
