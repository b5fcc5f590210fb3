"""Measure how well refinement recovers from loose boxes: refine jittered ground-truth boxes step by step."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..boxes import elementwise_iou
from ..detections import Detections
from ..modeling import IoUNet
from .predictions import Batch

STEPS = (0, 1, 2, 5, 10, 20)
# Ranges of the initial IoU: [0.5, 0.6), [0.6, 0.7), ..., and one around 0.75.
STARTS = {
    "0.5": (0.5, 0.6),
    "0.6": (0.6, 0.7),
    "0.7": (0.7, 0.8),
    "0.75": (0.725, 0.775),
    "0.8": (0.8, 0.9),
    "0.9": (0.9, 1.0),
}
Jitter = Callable[[Tensor, tuple[int, int]], Tensor]


def measure_basins(
    detector: IoUNet, batches: Iterable[Batch], jitter: Jitter, *, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the IoU of refined boxes for each range of initial IoUs and each number of steps.

    Args:
        detector: As in `jittered_paths`.
        batches: As in `jittered_paths`.
        jitter: As in `jittered_paths`; its boxes should have IoUs uniform over [0.5, 1].
        device: Device to run on.

    Returns:
        Range in `STARTS` → number of steps → {"true", "predicted", "improved", "boxes"}: the mean true IoU, the mean
            predicted IoU, the share of boxes whose true IoU rose, and the number of boxes.
    """
    true, predicted = jittered_paths(detector, batches, jitter, num_steps=max(STEPS), device=device)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, (low, high) in STARTS.items():
        chosen = (true[0] >= low) & (true[0] < high)
        result[name] = {
            str(step): {
                "true": true[step, chosen].mean().item(),
                "predicted": predicted[step, chosen].mean().item(),
                "improved": (true[step, chosen] > true[0, chosen]).double().mean().item(),
                "boxes": int(chosen.sum()),
            }
            for step in STEPS
        }
    return result


@torch.no_grad()
def jittered_paths(
    detector: IoUNet, batches: Iterable[Batch], jitter: Jitter, *, num_steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Refine jittered ground-truth boxes and return their IoUs with the object after 0, 1, ..., T steps.

    Args:
        detector: Its refinement options are used, except for the number of steps.
        batches: (images, targets) as yielded by `iounet.data.eval_loader`.
        jitter: Function from boxes [N, 4] and the (height, width) of their image to jittered boxes [N, K, 4], such as
            `iounet.training.jitter_boxes`.
        num_steps: T.
        device: Device to run on.

    Returns:
        True IoUs and predicted IoUs, float [T + 1, M] each, of all boxes of all images.
    """
    detector.eval()
    options = replace(detector.postprocessing.refinement, num_steps=num_steps)
    true = [torch.empty(num_steps + 1, 0)]
    predicted = [torch.empty(num_steps + 1, 0)]
    for images, targets in batches:
        features = detector.extract([image.to(device) for image in images])
        starts, objects = [], []
        for target, original, resized in zip(targets, features.original_sizes, features.sizes, strict=True):
            boxes = target["boxes"]
            jittered = jitter(boxes, original)
            per_object = jittered.shape[1]
            ones = torch.ones(len(boxes) * per_object)
            labels = target["labels"].repeat_interleave(per_object)
            initial = Detections(jittered.flatten(0, 1), labels, ones, ones)
            starts.append(initial.rescaled(original, resized).to(device))
            objects.append(boxes.repeat_interleave(per_object, 0))
        true_by_step, predicted_by_step = [], []
        for detections in detector.refinement_path(features, starts, options):
            refined = torch.cat([of_image.boxes.cpu() for of_image in features.to_original(detections)])
            true_by_step.append(elementwise_iou(refined, torch.cat(objects)))
            predicted_by_step.append(torch.cat([of_image.ious.cpu() for of_image in detections]))
        true.append(torch.stack(true_by_step))
        predicted.append(torch.stack(predicted_by_step))
    return torch.cat(true, 1), torch.cat(predicted, 1)
