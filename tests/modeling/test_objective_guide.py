"""The Python blocks of docs/guides/add_objective.md run in order, and move boxes as the page says."""

import re
from pathlib import Path

import pytest
import torch

from iounet.boxes import elementwise_iou

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks():
    return CODE.findall((ROOT / "docs" / "guides" / "add_objective.md").read_text())


def test_boxes_climb_a_function(blocks):
    variables = {}
    exec(blocks[0], variables)
    assert (elementwise_iou(variables["start"], variables["target"]) < 0.7).all()
    assert (variables["values"] > 0.95).all()
    torch.testing.assert_close(variables["values"], elementwise_iou(variables["boxes"], variables["target"]))


@pytest.mark.slow
def test_a_new_head_is_trained_and_climbed(blocks, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    variables = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(block, variables)
    before, after = (elementwise_iou(variables[name], variables["objects"]) for name in ("loose", "tight"))
    assert len(variables["objects"]) == 4
    assert before.mean() < 0.75
    assert after.mean() > before.mean() + 0.05
    assert "→" in capsys.readouterr().out
