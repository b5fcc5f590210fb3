"""Train and evaluate IoU-Net on a data set in COCO form.

    python tools/train.py --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd
    python tools/train.py --config-file configs/bccd.yaml OUTPUT_DIR runs/bccd --resume
    python tools/train.py --config-file configs/bccd.yaml --eval-only MODEL.WEIGHTS runs/bccd/model_final.pth
    torchrun --standalone --nproc-per-node=8 tools/train.py --config-file configs/coco_r50.yaml

With another SOLVER.BATCH_SIZE than SOLVER.REFERENCE_BATCH_SIZE SGD's learning rate is scaled in proportion.

The run folder (OUTPUT_DIR) then holds config.yaml, environment.json (command, commit, versions, hardware), git.diff if
there are uncommitted changes, metrics.json (a JSON object a line), metrics.csv, evaluation.csv, tensorboard/,
checkpoints/, model_final.pth, and the last evaluation: table.md, evaluation.json, detections.json, correlation.png,
boxes.png, changes.png, and report.html with all of it. The same run again:

    python tools/train.py --config-file runs/bccd/config.yaml OUTPUT_DIR runs/again
"""

import argparse
import math
import shlex
import sys
from pathlib import Path

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
from iounet.config import ConfigError, add_override_arguments, load_config, same_epochs, scale_learning_rate
from iounet.data import CocoDataset, DataError, eval_loader, train_loader
from iounet.evaluation import Evaluation, evaluate, write_report
from iounet.modeling import IoUNet
from iounet.training import NonFiniteLossError, train_steps
from iounet.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_detector_weights,
    resumable_checkpoints,
    save_checkpoint,
)
from iounet.training.processes import Process, join_processes
from iounet.training.run_folder import RunFolder

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
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def evaluate_weights(cfg: CfgNode, process: Process) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only evaluates MODEL.WEIGHTS, which is not set; give a checkpoint")
    val_set = build_dataset(cfg, "val")
    detector = load_detector(cfg, cfg.MODEL.WEIGHTS, val_set).to(process.device)
    evaluate_and_report(cfg, detector, val_set, process)


def train(cfg: CfgNode, process: Process, *, resume: bool) -> None:
    check_solver(cfg, process.world_size)
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
    if not checkpoints:
        load_initial_weights(cfg, detector, train_set.category_ids)
        done = 0
        if process.reports:
            describe_scaling(given, cfg, len(train_set))
    elif resume:
        done = resume_from(checkpoints[-1], detector, optimizer, schedule, train_set)
    else:
        raise ConfigError(
            f"{output} holds the checkpoints of another run: give --resume to continue it, or another OUTPUT_DIR"
        )
    if done >= cfg.SOLVER.MAX_ITERATIONS:
        if process.reports:
            print(f"{checkpoints[-1]} has done all {cfg.SOLVER.MAX_ITERATIONS} iterations: evaluating it")
        evaluate_and_report(cfg, detector, val_set, process)
        return

    folder = RunFolder(output, cfg.dump(), start_iteration=done) if process.reports else None
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
    steps = train_steps(
        DistributedDataParallel(detector) if process.world_size > 1 else detector,
        batches,
        optimizer,
        schedule,
        device=process.device,
        seed=cfg.SEED * process.world_size + process.rank,
        start_iteration=done,
        clip_gradient=cfg.SOLVER.CLIP_GRADIENT,
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
    for step in progress:
        last = step.iteration == cfg.SOLVER.MAX_ITERATIONS
        if folder and (last or step.iteration % cfg.SOLVER.LOG_PERIOD == 0):
            values = {"gradient_norm": step.gradient_norm, "learning_rate": step.learning_rate}
            folder.log(step.iteration, step.losses | values)
            progress.set_postfix(loss=f"{step.losses['loss']:.3f}", iou=f"{step.losses['loss_iou']:.4f}", refresh=False)
        if folder and (last or step.iteration % cfg.SOLVER.CHECKPOINT_PERIOD == 0):
            save_checkpoint(
                checkpoint_path(output / "checkpoints", step.iteration),
                model=detector.state_dict(),
                optimizer=optimizer.state_dict(),
                scheduler=schedule.state_dict(),
                iteration=step.iteration,
                **description,
            )
            for old in resumable_checkpoints(output / "checkpoints")[:-KEPT_CHECKPOINTS]:
                old.unlink()
        if last and folder:
            save_checkpoint(output / "model_final.pth", model=detector.state_dict(), **description)
        if last or (cfg.SOLVER.EVAL_PERIOD and step.iteration % cfg.SOLVER.EVAL_PERIOD == 0):
            reported = evaluate_and_report(cfg, detector, val_set, process)
            if folder:
                evaluation, summary = reported
                ious = {"true_iou": evaluation.ious, "predicted_iou": evaluation.predicted_ious}
                folder.log_evaluation(step.iteration, summary, ious)
    if folder:
        folder.close()


def check_solver(cfg: CfgNode, world_size: int) -> None:
    for key in ("BATCH_SIZE", "MAX_ITERATIONS", "LOG_PERIOD", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise ConfigError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
    if cfg.SOLVER.BATCH_SIZE % world_size:
        raise ConfigError(f"SOLVER.BATCH_SIZE {cfg.SOLVER.BATCH_SIZE} cannot be shared by {world_size} processes")


def evaluate_and_report(
    cfg: CfgNode, detector: IoUNet, val_set: CocoDataset, process: Process
) -> tuple[Evaluation, dict] | None:
    """Evaluates on all processes; the one that reports writes the report, prints the table, and returns both."""
    batches = eval_loader(
        val_set,
        batch_size=cfg.TEST.BATCH_SIZE,
        num_workers=cfg.DATA.NUM_WORKERS,
        rank=process.rank,
        world_size=process.world_size,
    )
    evaluation = evaluate(
        detector,
        tqdm(batches, desc="evaluate", unit="batch", leave=False, disable=not process.reports),
        val_set.as_coco(),
        val_set.category_ids,
        device=process.device,
        gather=process.gather,
    )
    if evaluation is None:
        return None
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
    return evaluation, summary


def resume_from(path: Path, detector, optimizer, schedule, train_set: CocoDataset) -> int:
    """Restores a run's state from a checkpoint; the number of iterations done."""
    checkpoint = load_checkpoint(path)
    check_categories(checkpoint["categories"], train_set, str(path))
    load_detector_weights(detector, checkpoint["model"], str(path), need_iou_head=True)
    saved = checkpoint["optimizer"]
    try:
        if saved["param_groups"][0].keys() != optimizer.param_groups[0].keys():  # torch would load it all the same
            raise ValueError(f"not those of {type(optimizer).__name__}")
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds the optimizer's state of another run ({error}); resume with the configuration it began with"
        ) from None
    schedule.load_state_dict(checkpoint["scheduler"])
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
