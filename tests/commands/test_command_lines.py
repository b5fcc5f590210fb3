"""Command-line behaviour shared by all commands and tools."""

import runpy
from importlib import import_module
from pathlib import Path

import pytest

from iounet.commands import demo, refine, tighten, train
from tools import reproduce

ROOT = Path(__file__).parents[2]
INSTALLED = {"train": "iounet-train", "refine_boxes": "iounet-refine", "tighten_labels": "iounet-tighten"}
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


def name_of(command):
    return command.__name__.rpartition(".")[2]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_gives_an_example(tool, call, capsys):
    assert call(import_module(f"tools.{tool}"), "--help") == 0
    command = INSTALLED.get(tool, f"python tools/{tool}.py")
    assert f"\n    {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (train, ["--config-file", "--resume", "--eval-only"]),
        (
            refine,
            [
                "--weights",
                "--images",
                "--output",
                "--json",
                "--detections",
                "--annotations",
                "--class-agnostic",
                "--resume",
            ],
        ),
        (
            tighten,
            ["SOURCE", "--weights", "--output", "--images", "--split", "--min-gain", "--max-move", "--only"]
            + ["--class-agnostic", "--decisions", "--folds", "--iterations", "--review", "--batch-size", "--device"],
        ),
        (demo, ["--weights", "--host", "--port", "--device"]),
    ],
    ids=["train", "refine", "tighten", "demo"],
)
class TestInstalledCommands:
    def test_help_names_the_options(self, command, words, call, capsys):
        assert call(command, "--help") == 0
        shown = capsys.readouterr().out
        assert all(f"  {word} " in shown for word in words)

    def test_a_missing_required_option_is_named(self, command, words, call, capsys):
        assert call(command) == 2
        assert f"arguments are required: {words[0]}" in capsys.readouterr().err

    def test_it_is_installed_as_a_script(self, command, words):
        script = f'iounet-{name_of(command)} = "{command.__name__}:main"'
        assert f"\n{script}\n" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("tool", "command"), [("train", train), ("refine_boxes", refine), ("tighten_labels", tighten)])
def test_a_clone_has_the_same_command(tool, command, monkeypatch):
    called = []
    monkeypatch.setattr(command, "main", lambda: called.append(tool))
    runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert called == [tool]


@pytest.mark.parametrize("value", ["-0.02", "-2e-2"])
def test_reproduce_accepts_a_negative_value(call, arguments, tmp_path, value):
    words = arguments(tmp_path, {"TEST.REFINE.DEGENERATION": value})
    message = call(reproduce, "--weights", tmp_path / "none.pth", "--output", tmp_path, *words)
    assert isinstance(message, str) and "none.pth" in message  # so the value was accepted


@pytest.mark.parametrize("command", [reproduce, train], ids=name_of)
def test_an_unknown_device_is_named_in_one_line(call, arguments, tmp_path, command):
    words = [] if command is train else ["--weights", tmp_path / "none.pth", "--output", tmp_path]
    message = call(command, *words, *arguments(tmp_path / "run", {"MODEL.DEVICE": "foo"}))
    assert message == "ConfigError: unknown device 'foo'; choose cpu, cuda, cuda:1 (the second GPU) or auto"
