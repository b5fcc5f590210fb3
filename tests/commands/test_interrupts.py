"""Ctrl-C ends every command with exit code 130 and no traceback; tests/engine covers Ctrl-C during training."""

import sys

import pytest

from iounet.commands import train
from iounet.data import check, synthetic
from tools import reproduce


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("module", "function", "mode"),
    [(train, "build_training", []), (train, "evaluate_and_report", ["--eval-only"])],
    ids=["train", "eval-only"],
)
def test_train(trained, call, arguments, tmp_path, monkeypatch, module, function, mode):
    monkeypatch.setattr(module, function, interrupt)
    settings = {"MODEL.WEIGHTS": trained / "model_final.pth"}
    assert call(train, *arguments(tmp_path / "run", settings), *mode) == 130


def test_reproduce(trained, call, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "reproduce", interrupt)
    words = ["--weights", trained / "model_final.pth", "--output", tmp_path / "out"]
    assert call(reproduce, *words, *arguments(tmp_path / "run")) == 130


def test_check(dataset, monkeypatch):
    monkeypatch.setattr(check, "check_image_size", interrupt)
    assert check.main([str(dataset / "annotations" / "train.json"), str(dataset / "train")]) == 130


def test_synthetic(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "make_synthetic", interrupt)
    monkeypatch.setattr(sys, "argv", ["synthetic", "--output", str(tmp_path / "set")])
    with pytest.raises(SystemExit) as stopped:
        synthetic.main()
    assert stopped.value.code == 130
