"""Every command refuses files that contain code, and does not execute the code."""

import pickle
import shutil
from contextlib import suppress
from functools import partial

import pytest
import torch

from iounet.commands import refine, train
from iounet.training.checkpoint import load_checkpoint
from tools import reproduce


def dump(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


WAYS = {
    "zip format": torch.save,
    "legacy format": partial(torch.save, _use_new_zipfile_serialization=False),
    "plain pickle": dump,
}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def write(request, trained, marker, touches_a_file):
    """Write a complete checkpoint that also contains code."""

    def write(path):
        content = load_checkpoint(trained / "model_final.pth") | {"extra": touches_a_file(marker)}
        request.param(content, path)
        return path

    return write


@pytest.fixture
def refused(call, marker):
    def check(path, command, *arguments):
        message = call(command, *arguments)
        assert message.startswith("CheckpointError: ") and str(path) in message and "\n" not in message
        assert not marker.exists()
        with suppress(RuntimeError):  # torch rejects a plain pickle only after running its code
            torch.load(path, weights_only=False)
        assert marker.exists(), "the file must run its code if it is loaded without protection"

    return check


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS"])
def test_initial_weights(write, refused, arguments, tmp_path, key):
    path = write(tmp_path / "weights.pth")
    refused(path, train, *arguments(tmp_path / "run", {key: path}))


def test_weights_to_evaluate(write, refused, arguments, tmp_path):
    path = write(tmp_path / "weights.pth")
    refused(path, train, *arguments(tmp_path / "run", {"MODEL.WEIGHTS": path}), "--eval-only")


def test_a_checkpoint_to_resume_from(write, refused, arguments, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for path in (run / "checkpoints").iterdir():
        write(path)
    refused(path, train, *arguments(run), "--resume")


def test_a_checkpoint_to_refine_with(write, refused, dataset, tmp_path):
    path = write(tmp_path / "weights.pth")
    words = ("--images", dataset / "val", "--output", tmp_path / "refined", "--device", "cpu")
    refused(path, refine, "--weights", path, *words)


@pytest.mark.parametrize("option", ["--weights", "--baseline"])
def test_a_checkpoint_to_reproduce_tables_with(write, refused, arguments, trained, tmp_path, option):
    path = write(tmp_path / "weights.pth")
    files = {"--weights": trained / "model_final.pth"} | {option: path}
    words = [word for pair in files.items() for word in pair]
    refused(path, reproduce, *words, "--output", tmp_path / "tables", *arguments(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "SEED: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{}]]\n"),
        ("config.yaml", "!!python/object/apply:os.system ['touch {}']\n"),
        ("config.py", "import pathlib\n\npathlib.Path({!r}).touch()\nSEED = 1\n"),
    ],
)
@pytest.mark.parametrize("command", [train, reproduce], ids=lambda command: command.__name__)
def test_a_configuration(call, marker, tmp_path, command, name, text):
    config = tmp_path / name
    config.write_text(text.format(str(marker)))
    words = ("--weights", tmp_path / "none.pth", "--output", tmp_path / "out") if command is reproduce else ()
    message = call(command, "--config-file", config, *words)
    assert message.startswith("ConfigError: ") and str(config) in message
    assert not marker.exists()
