"""Greedy NMS within groups, as an operator and in ONNX Runtime."""

import pytest
import torch
from torchvision.ops import nms

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from iounet.export.grouped_nms import grouped_nms, translations  # noqa: E402

THRESHOLD, NUM_GROUPS, MOST = 0.4, 4, 6


class Suppressed(torch.nn.Module):
    def forward(self, boxes, scores, groups):
        keep = grouped_nms(boxes, scores, groups, NUM_GROUPS, THRESHOLD, MOST)
        return keep, scores[keep].argsort(descending=True, stable=True)


def inputs(num_boxes):
    random = torch.Generator().manual_seed(num_boxes)
    corner, size = 60 * torch.rand(num_boxes, 2, generator=random), 1 + 40 * torch.rand(num_boxes, 2, generator=random)
    # Many equal scores; group 3 is empty.
    scores = torch.randint(-3, 10, (num_boxes,), generator=random) / 10
    return torch.cat([corner, corner + size], 1), scores, torch.randint(0, 3, (num_boxes,), generator=random)


def test_agrees_with_nms_of_each_group():
    boxes, scores, groups = inputs(80)
    expected = []
    for group in range(NUM_GROUPS):
        rows = [row for row in range(80) if groups[row] == group]
        expected += [rows[kept] for kept in nms(boxes[rows], scores[rows], THRESHOLD)[:MOST].tolist()]
    assert len(expected) == 3 * MOST
    assert grouped_nms(boxes, scores, groups, NUM_GROUPS, THRESHOLD, MOST).tolist() == expected


def test_dropped_boxes_suppress_nothing():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 8.0]])
    scores = torch.tensor([-torch.inf, -0.5, -0.6])
    assert grouped_nms(boxes, scores, torch.zeros(3, dtype=torch.int64), 1, 0.5, 3).tolist() == [1]


def test_in_onnx(tmp_path):
    rows = torch.export.Dim("rows")
    program = torch.export.export(Suppressed(), inputs(20), dynamic_shapes=({0: rows},) * 3)
    torch.onnx.export(
        program, f=tmp_path / "nms.onnx", dynamo=True, custom_translation_table=translations(), input_names=list("bsg")
    )
    session = onnxruntime.InferenceSession(tmp_path / "nms.onnx")
    for num_boxes in (0, 1, 7, 80):
        boxes, scores, groups = inputs(num_boxes)
        scores[::5] = -torch.inf
        expected = Suppressed()(boxes, scores, groups)
        found = session.run(None, {"b": boxes.numpy(), "s": scores.numpy(), "g": groups.numpy()})
        assert [values.tolist() for values in found] == [values.tolist() for values in expected]
