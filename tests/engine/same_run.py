"""Bitwise comparison of two runs."""

import hashlib
import time

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iounet.training.checkpoint import checkpoint_path, load_checkpoint


def assert_same_run(found, expected, last=4):
    """Assert that weights, optimizer state and all logged numbers are bitwise equal, without repeated rows."""
    checkpoint, other = (load_checkpoint(checkpoint_path(run / "checkpoints", last)) for run in (found, expected))
    for key in ("model", "optimizer", "iteration", "categories"):
        assert same(checkpoint[key], other[key]), key
    assert same(*(weights(run / "model_final.pth") for run in (found, expected)))
    for name in ("metrics.json", "metrics.csv", "evaluation.csv"):
        assert (found / name).read_text() == (expected / name).read_text()
    assert logged(found) == logged(expected)
    assert not [path for path in found.rglob("*") if path.name.endswith(".tmp")]


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def weights(path):
    return load_checkpoint(path)["model"]


def logged(folder):
    """Return tag → [(iteration, value)] from all TensorBoard files."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def another_second():
    """Wait before a run resumes: TensorBoard orders its files by name, which begins with the time in seconds."""
    time.sleep(1.1)


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
