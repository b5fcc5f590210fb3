"""Calibration of a trained detector's IoU head, distributed over all processes."""

import torch
from torch import Tensor

from ..evaluation import fit_calibration
from ..evaluation.basins import jittered_paths
from ..evaluation.predictions import candidate_matches, joined
from ..jobs import EvaluationJob
from ..training import jitter_boxes
from .evaluating import batches_of
from .processes import Process

# Calibration for tightening labels uses this many jittered boxes per object, with IoUs uniform over [0.6, 1]. At lower
# IoUs, refinement fails for more boxes, and the predicted IoU of all other boxes would become too low.
_BOXES_PER_OBJECT = 8
_MIN_IOU = 0.6


def calibrate(job: EvaluationJob, process: Process) -> str:
    """Fit the predicted IoU of the job's detector to the true IoU; all processes must call this function.

    Returns:
        One line that reports the calibration.
    """
    head = job.detector.iou_head
    head.calibration.zero_()
    measure = _labels if job.calibrated_for == "labels" else _candidates
    ious, predicted_ious = measure(job, process)
    fitted = fit_calibration(head.outputs_of(predicted_ious), ious)
    boxes = f"the {len(ious)} {'jittered and refined labels' if measure is _labels else 'candidates'}"
    where = f"of {job.dataset.annotation_file}"
    if fitted is None:
        return f"predicted IoU not calibrated: {boxes} {where} are too few"
    head.calibration.copy_(fitted)
    error = (head.calibrated(predicted_ious.to(process.device)).cpu() - ious).mean()
    return (
        f"predicted IoU calibrated on {boxes} {where}: mean error "
        f"{(predicted_ious - ious).mean():+.3f} before, {error:+.3f} after"
    )


def _candidates(job: EvaluationJob, process: Process) -> tuple[Tensor, Tensor]:
    """Return the true and predicted IoUs of the detector's boxes before NMS."""
    progress = batches_of(job, process, "calibrate")
    matches = process.all_gather(candidate_matches(job.detector, progress, device=process.device))
    ious, _, predicted_ious = joined(matches)
    return ious, predicted_ious


def _labels(job: EvaluationJob, process: Process) -> tuple[Tensor, Tensor]:
    """Return the true and predicted IoUs of jittered boxes around every object, before and after refinement."""
    generator = torch.Generator().manual_seed(process.rank)

    def jitter(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        return jitter_boxes(boxes, _BOXES_PER_OBJECT, min_iou=_MIN_IOU, image_size=image_size, generator=generator)[0]

    num_steps = job.detector.postprocessing.refinement.num_steps
    progress = batches_of(job, process, "calibrate")
    paths = jittered_paths(job.detector, progress, jitter, num_steps=num_steps, device=process.device)
    ends = torch.stack([of_steps[[0, -1]].flatten() for of_steps in paths])
    ious, predicted_ious = torch.cat(process.all_gather([ends]), 1)
    return ious, predicted_ious
