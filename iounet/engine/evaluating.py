"""Evaluation of a detector, distributed over all processes, and its report."""

import math
import shlex
import sys
from dataclasses import asdict

import torch
import torchvision
from tqdm import tqdm

from ..data import CocoDataset, eval_loader
from ..evaluation import CocoEvaluator, Evaluation, markdown_table, write_report
from ..evaluation.predictions import Found, as_results, joined, predict
from ..evaluation.tables import gain_in_words
from ..files import make_folder
from ..jobs import EvaluationJob
from ..progress import progress
from ..visualization import most_changed
from ..wording import counted
from .processes import Process
from .run_folder import RunFolder


def batches_of(job: EvaluationJob, process: Process, description: str) -> tqdm:
    """Return batches of the process's share of a job's images, with a progress bar in the main process."""
    batches = eval_loader(
        job.dataset,
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        rank=process.rank,
        world_size=process.world_size,
    )
    return progress(batches, desc=description, unit="batch", leave=False, disable=not process.is_main)


def evaluate(job: EvaluationJob, process: Process) -> Evaluation | None:
    """Evaluate the detector; all processes must call this function.

    Each process predicts for its share of the images and scores its share of the categories.

    Returns:
        The evaluation in the main process, None in the others.
    """
    dataset = job.dataset
    batches = batches_of(job, process, "evaluate")
    predictions = predict(job.detector, batches, dataset.class_names, device=process.device)
    matches = process.gather(predictions.matches)
    changes = most_changed(process.gather(predictions.changes))
    evaluator = CocoEvaluator(dataset.as_coco())
    found = {row: process.all_gather(of_row) for row, of_row in predictions.found.items()}
    table = {row: _score(of_row, dataset, evaluator, process) for row, of_row in found.items()}
    if not process.is_main:
        return None
    *_, last_row = found
    results = as_results(found[last_row], dataset.category_ids)
    return Evaluation(table, results, *joined(matches), predictions.examples, changes)


def _score(found: Found, dataset: CocoDataset, evaluator: CocoEvaluator, process: Process) -> dict[str, float]:
    """Return a row of the table in the main process, {} in the others."""
    share = process.share(evaluator.category_ids)
    of_share = torch.tensor([category_id in share for category_id in dataset.category_ids])
    kept = [(image_id, of_image[of_share[of_image.labels - 1]]) for image_id, of_image in found]
    scores = process.gather(evaluator.by_category(as_results(kept, dataset.category_ids), share))
    return evaluator.summary(scores) if process.is_main else {}


def evaluate_and_report(
    job: EvaluationJob, process: Process, folder: RunFolder | None = None, iteration: int = 0
) -> None:
    """Evaluate with all processes; the main process writes the report, prints the table and logs it.

    Args:
        folder: the run folder to log to; None logs nothing.
        iteration: number of completed iterations of the training run.

    Raises:
        ConfigError: if no files can be written in the job's folder.
    """
    if process.is_main:
        make_folder(job.output_dir)
    evaluation = evaluate(job, process)
    if evaluation is None:
        return
    dataset, output = job.dataset, job.output_dir
    refinement = job.detector.postprocessing.refinement
    facts = {
        "command": shlex.join(sys.argv),
        "data": f"{dataset.annotation_file}, {counted(len(dataset), 'image')}",
        "classes": ", ".join(dataset.class_names),
        "refinement": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(refinement).items()),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    summary = write_report(evaluation, output, dataset.class_names, f"IoU-Net: {output.name}", facts)
    correlation = summary["correlation"]
    tqdm.write(f"\n{dataset.describe()}\n\n{markdown_table(evaluation.table)}\n")
    tqdm.write(
        f"correlation with the true IoU: class score {correlation['score'] or math.nan:.3f}, "
        f"predicted IoU {correlation['predicted_iou'] or math.nan:.3f}; "
        f"calibration error of the predicted IoU {summary['calibration']['all candidates']['error'] or math.nan:.3f}; "
        f"report: {output / 'report.html'}"
    )
    tqdm.write(gain_in_words(evaluation.table))
    if folder and iteration not in folder.evaluated:
        ious = {"true_iou": evaluation.ious, "predicted_iou": evaluation.predicted_ious}
        folder.log_evaluation(iteration, summary, ious)
