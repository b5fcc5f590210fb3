"""Runs that fail with a one-line message and can be resumed."""

import re
from pathlib import Path

import pytest
import torch
from same_run import another_second, assert_same_run, hashes

from iounet.commands import train
from iounet.engine import training
from iounet.modeling import IoUNet


def after_two_steps(patch, fault):
    """Call ``fault`` after the second step, before it is logged."""
    steps = training.train_steps

    def stepping(*args, **kwargs):
        for step in steps(*args, **kwargs):
            if step.iteration == 2:
                fault()
            yield step

    patch.setattr(training, "train_steps", stepping)


def test_a_gradient_that_is_nan(call, arguments, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def fault():
            forward = IoUNet.forward

            def broken(detector, *args):
                losses = forward(detector, *args)
                losses["loss_iou"].register_hook(lambda gradient: gradient * float("nan"))
                return losses

            patch.setattr(IoUNet, "forward", broken)

        after_two_steps(patch, fault)
        message = call(train, *arguments(tmp_path / "run"))
    assert re.match(r"NonFiniteLossError: iteration 2: .*gradient nan.* on images \[\d+, \d+\]", message)
    assert message.endswith("(SOLVER.BASE_LR, SOLVER.WARMUP_ITERATIONS, SOLVER.CLIP_GRADIENT)")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration_0000002.pth"]
    another_second()
    assert call(train, *arguments(tmp_path / "run"), "--resume") is None
    assert_same_run(tmp_path / "run", trained)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
@pytest.mark.parametrize("name", ["metrics.json", pytest.param(".table.md.tmp", marks=pytest.mark.slow)])
def test_a_full_disk(call, arguments, trained, tmp_path, monkeypatch, name):
    run, file = tmp_path / "run", tmp_path / "run" / name

    def fault():
        if file.exists():
            file.rename(f"{file}.before")
        file.symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        after_two_steps(patch, fault)
        message = call(train, *arguments(run))
    assert "No space left on device" in message and f"free disk space for {run}; then add --resume" in message
    assert "\n" not in message
    file.unlink(missing_ok=True)
    if (run / f"{name}.before").exists():
        (run / f"{name}.before").rename(file)
    another_second()
    assert call(train, *arguments(run), "--resume") is None
    assert_same_run(run, trained)


def test_a_failed_save_leaves_the_last_checkpoint(interrupted, call, arguments, monkeypatch):
    before = hashes(interrupted / "checkpoints")
    save = torch.save

    def disk_full(content, file):
        save(content, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    message = call(train, *arguments(interrupted), "--resume")
    assert "could not be written" in message and "No space left" in message and "--resume" in message
    assert hashes(interrupted / "checkpoints") == before
