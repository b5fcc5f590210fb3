"""Calibrating the IoU head of a trained detector with all processes."""

from ..evaluation import fit_calibration
from ..evaluation.predictions import candidate_matches, joined
from ..jobs import EvaluationJob
from .evaluating import batches_of
from .processes import Process


def calibrate(job: EvaluationJob, process: Process) -> str:
    """Fits the predicted IoU of the job's detector to the true one on all its candidates; all processes have to call.

    Returns:
        What was done, in a line.
    """
    head = job.detector.iou_head
    head.calibration.zero_()
    progress = batches_of(job, process, "calibrate")
    matches = process.all_gather(candidate_matches(job.detector, progress, device=process.device))
    ious, _, predicted_ious = joined(matches)
    fitted = fit_calibration(head.outputs_of(predicted_ious), ious)
    if fitted is None:
        return f"predicted IoUs are not calibrated: {len(ious)} candidates on {job.dataset.annotation_file} are too few"
    head.calibration.copy_(fitted)
    error = (head.calibrated(predicted_ious.to(process.device)).cpu() - ious).mean()
    return (
        f"predicted IoUs are calibrated on the {len(ious)} candidates of {job.dataset.annotation_file}: on average "
        f"{(predicted_ious - ious).mean():+.3f} too high before, {error:+.3f} now"
    )
