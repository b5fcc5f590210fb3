"""Greedy NMS within groups of boxes as one operator, which is one node in ONNX.

torchvision separates groups by a loop, which torch.export cannot trace, or by moving them apart, which in float32 (ONNX
has no other NMS) would round IoUs to the other side of the threshold.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.onnx_opset import opset18
from torch import Tensor
from torchvision.ops import nms

# Its types don't know that it takes lists for constants.
op: Any = opset18


@torch.library.custom_op("iounet::grouped_nms", mutates_args=())
def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, max_in_group: int
) -> Tensor:
    """Removes a box if one of its group with a higher score overlaps it by more than the threshold.

    Args:
        boxes (Tensor[N, 4]): xyxy.
        scores (Tensor[N]): minus infinity for a box that is to be left out.
        groups (Tensor[N]): int64, of each box, in 0..num_groups - 1.
        max_in_group: boxes of a group that are kept, those of highest score.

    Returns:
        keep (Tensor[M]): int64, indices into the input: group after group, each by falling score.
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
    """The ``custom_translation_table`` of torch.onnx.export for :func:`grouped_nms`."""
    return {torch.ops.iounet.grouped_nms.default: _grouped_nms, torch.ops.aten.sort.stable: _stable_sort}


def _grouped_nms(boxes: Any, scores: Any, groups: Any, num_groups: int, iou_threshold: float, max_in_group: int) -> Any:
    # A row of scores for each group, in which boxes of other groups are left out.
    of_group = op.Equal(op.Constant(value_ints=list(range(num_groups))), op.Unsqueeze(groups, [1]))
    by_group = op.Where(op.Transpose(of_group), scores, op.Constant(value_float=float("-inf")))
    kept = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]),
        op.Unsqueeze(by_group, [0]),
        op.Constant(value_ints=[max_in_group]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[float(torch.finfo(torch.float32).min)]),
    )
    # (image, group, box) of each
    return op.Squeeze(op.Slice(kept, [2], [3], [1]), [1])


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    # Of equal values TopK takes the first first.
    return op.TopK(values, length, axis=dim, largest=int(descending))
