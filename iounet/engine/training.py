"""A training run, from the first iteration or the newest checkpoint to the final evaluation."""

import sys
from signal import Signals

from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..data import train_loader
from ..errors import CheckpointError, ConfigError, NonFiniteLossError
from ..jobs import TrainingJob
from ..progress import progress
from ..training import LossWatch, train_steps
from ..training.checkpoint import (
    checkpoint_path,
    load_initial_weights,
    prune_checkpoints,
    resumable_checkpoints,
    save_checkpoint,
)
from .calibrating import calibrate
from .evaluating import evaluate_and_report
from .processes import Process
from .resuming import resume_from
from .run_folder import RunFolder
from .signals import StopSignals

SHOWN = ("loss", "loss_iou", "loss_energy")  # in the progress bar
KEPT_CHECKPOINTS = 2  # if the newest is damaged, the one before it remains


def train(job: TrainingJob, process: Process, *, resume: bool) -> None:
    """Train, evaluate and save; all processes must call this function.

    On SIGTERM or Ctrl-C, the run saves a checkpoint and exits with 143 or 130.

    Args:
        resume: continue from the newest checkpoint in the job's folder, if there is one.

    Raises:
        CheckpointError: if a checkpoint cannot be read, written or resumed from.
        ConfigError: if the folder has checkpoints of another run and ``resume`` is False.
        DataError: if an image cannot be read.
        NonFiniteLossError: if training diverges.
    """
    done = _start(job, process, resume=resume)
    folder = RunFolder(job.output_dir, job.config, start_iteration=done) if process.is_main else None
    finished = done >= job.max_iterations
    if finished and process.is_main:
        print(f"all {job.max_iterations} iterations of {job.output_dir} are done; evaluating only")
    missing = folder is not None and _evaluation_is_due(job, done) and done not in folder.evaluated
    if finished or process.maximum(int(missing)):
        evaluate_and_report(job.evaluation, process, folder, done)
    try:
        _train_from(done, job, process, folder)
    except NonFiniteLossError as error:
        keys = "SOLVER.BASE_LR, SOLVER.WARMUP_ITERATIONS, SOLVER.CLIP_GRADIENT"
        raise NonFiniteLossError(f"{error} ({keys})") from error
    if folder:
        folder.close()


def _start(job: TrainingJob, process: Process, *, resume: bool) -> int:
    """Load the detector's weights; return the number of iterations done."""
    if process.is_main:
        for dataset in (job.dataset, job.evaluation.dataset):
            print(dataset.describe())
            if not dataset.num_objects:
                print(f"warning: {dataset.annotation_file} has no objects: no annotations, or only crowds")
    checkpoints = resumable_checkpoints(job.output_dir / "checkpoints")
    if checkpoints and not resume:
        raise ConfigError(
            f"{job.output_dir} already has the checkpoints of a run; pass --resume to continue it, or set another "
            "OUTPUT_DIR"
        )
    if checkpoints:
        done = resume_from(checkpoints, job, process)
        if process.is_main:
            print(f"resumed from iteration {done} of {job.max_iterations}")
    else:
        done = 0
        load_initial_weights(job.detector, job.initial_weights, job.dataset.categories)
        if process.is_main:
            if resume:
                print(f"no checkpoint in {job.output_dir}; starting at iteration 0")
            print(*job.notes, sep="\n", end="\n" if job.notes else "")
    if process.maximum(done) != done:
        raise CheckpointError(
            f"another process found a newer checkpoint than that of iteration {done}; all processes must see the same "
            "OUTPUT_DIR"
        )
    return done


def _train_from(done: int, job: TrainingJob, process: Process, folder: RunFolder | None) -> None:
    batches = train_loader(
        job.dataset,
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        seed=job.seed,
        start_iteration=done,
        num_iterations=job.max_iterations,
        rank=process.rank,
        world_size=process.world_size,
    )
    detector = job.detector
    steps = train_steps(
        DistributedDataParallel(detector, gradient_as_bucket_view=True) if process.world_size > 1 else detector,
        batches,
        job.optimizer,
        job.schedule,
        device=process.device,
        seed=job.seed * process.world_size + process.rank,
        start_iteration=done,
        clip_gradient=job.clip_gradient,
        accumulation_steps=job.accumulation_steps,
    )
    shown_steps = progress(
        steps,
        initial=done,
        total=job.max_iterations,
        desc="train",
        unit="it",
        smoothing=0.05,
        disable=not process.is_main,
    )
    watch = LossWatch()
    with StopSignals() as signals:
        for step in shown_steps:
            # Synchronised at every step: torchrun signals the processes one by one, and a process that stopped one step
            # early would leave the others waiting. Synchronising costs 0.4 ms with two processes on a CPU.
            stopped = process.maximum(signals.received)
            done, last = step.iteration, step.iteration == job.max_iterations
            if folder and (last or done % job.log_period == 0):
                values = {"gradient_norm": step.gradient_norm, "learning_rate": step.learning_rate}
                folder.log(done, step.losses | values)
                shown = {name: f"{step.losses[name]:.3f}" for name in step.losses if name in SHOWN}
                shown_steps.set_postfix(shown, refresh=False)
            if folder and (rise := watch.add(step.losses["loss"])):
                tqdm.write(
                    f"warning: the loss has risen from {rise[0]:.2f} to {rise[1]:.2f} by iteration {done}; if it stays "
                    "high, the learning rate may be too high for this data set: restart with a lower SOLVER.BASE_LR"
                )
            evaluates = _evaluation_is_due(job, done)
            if last:
                note = calibrate(job.evaluation, process)
                if folder:
                    tqdm.write(note)
            if folder and last:
                # Saved before the last checkpoint, because a run that has its last checkpoint is not trained further.
                _save_model(job)
            if folder and (stopped or evaluates or done % job.checkpoint_period == 0):
                folder.flush()
                _save_checkpoint(job, process, done)
            if stopped:
                if process.is_main:
                    tqdm.write(f"{Signals(stopped).name}: stopped after iteration {done}; pass --resume to continue")
                sys.exit(128 + stopped)
            if evaluates:
                with signals.exit_at_once():
                    evaluate_and_report(job.evaluation, process, folder, done)


def _evaluation_is_due(job: TrainingJob, done: int) -> bool:
    return done == job.max_iterations or bool(done and job.eval_period and done % job.eval_period == 0)


def _save_model(job: TrainingJob) -> None:
    save_checkpoint(
        job.output_dir / "model_final.pth",
        model=job.detector.state_dict(),
        categories=job.dataset.categories,
        config=job.config,
    )


def _save_checkpoint(job: TrainingJob, process: Process, done: int) -> None:
    folder = job.output_dir / "checkpoints"
    save_checkpoint(
        checkpoint_path(folder, done),
        model=job.detector.state_dict(),
        optimizer=job.optimizer.state_dict(),
        iteration=done,
        processes=process.world_size,
        categories=job.dataset.categories,
        config=job.config,
    )
    prune_checkpoints(folder, keep=KEPT_CHECKPOINTS)
