"""Greedy NMS within groups of boxes as one operator, which becomes one node in ONNX.

torchvision separates groups with a loop, which torch.export cannot trace, or by shifting their boxes apart. ONNX has
NMS only in float32, in which the shift would round IoUs across the threshold.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.onnx_opset import opset18
from torch import Tensor
from torchvision.ops import nms

# The annotations of opset18 do not allow lists as constants.
op: Any = opset18


@torch.library.custom_op("iounet::grouped_nms", mutates_args=())
def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, max_in_group: int
) -> Tensor:
    """Greedy NMS within groups: remove each box that overlaps a kept box of its group with a higher score.

    Args:
        boxes (Tensor[N, 4]): xyxy.
        scores (Tensor[N]): scores; boxes with a score of minus infinity are dropped.
        groups (Tensor[N]): int64, group of each box in 0..num_groups - 1.
        num_groups: number of groups.
        iou_threshold: two boxes overlap if their IoU exceeds this value.
        max_in_group: maximum number of kept boxes per group, those with the highest scores.

    Returns:
        keep (Tensor[M]): int64, indices of the kept boxes in the input, group after group; within a group, sorted by
            descending score.
    """
    kept = []
    for group in range(num_groups):
        index = torch.where((groups == group) & (scores > -torch.inf))[0]
        kept.append(index[nms(boxes[index], scores[index], iou_threshold)[:max_in_group]])
    return torch.cat(kept)


@grouped_nms.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, max_in_group: int
) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` of torch.onnx.export for `grouped_nms` and stable sorts."""
    return {torch.ops.iounet.grouped_nms.default: _grouped_nms, torch.ops.aten.sort.stable: _stable_sort}


def _grouped_nms(boxes: Any, scores: Any, groups: Any, num_groups: int, iou_threshold: float, max_in_group: int) -> Any:
    # One row of scores per group, with minus infinity for boxes of other groups.
    of_group = op.Equal(op.Constant(value_ints=list(range(num_groups))), op.Unsqueeze(groups, [1]))
    by_group = op.Where(op.Transpose(of_group), scores, op.Constant(value_float=float("-inf")))
    kept = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]),
        op.Unsqueeze(by_group, [0]),
        op.Constant(value_ints=[max_in_group]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[float(torch.finfo(torch.float32).min)]),
    )
    # Each row of `kept` is (image, group, box).
    return op.Squeeze(op.Slice(kept, [2], [3], [1]), [1])


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    # TopK returns equal values in their original order.
    return op.TopK(values, length, axis=dim, largest=int(descending))
