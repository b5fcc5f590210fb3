"""What all tools have in common on the command line."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS)
def test_help_gives_an_example(tool, call_tool, capsys):
    assert call_tool(tool, "--help") == 0
    assert f"\n    python tools/{tool} " in capsys.readouterr().out


@pytest.mark.parametrize("value", ["-0.02", "-2e-2"])
def test_a_negative_value_is_no_option_of_reproduce(call_tool, arguments, tmp_path, value):
    words = arguments(tmp_path, {"TEST.REFINE.DEGENERATION": value})
    message = call_tool("reproduce.py", "--weights", tmp_path / "none.pth", "--output", tmp_path, *words)
    assert isinstance(message, str) and "none.pth" in message  # so the value was taken


@pytest.mark.parametrize("tool", ["reproduce.py", "train.py"])
def test_an_unknown_device_is_named_in_one_line(call_tool, arguments, tmp_path, tool):
    words = [] if tool == "train.py" else ["--weights", tmp_path / "none.pth", "--output", tmp_path]
    message = call_tool(tool, *words, *arguments(tmp_path / "run", {"MODEL.DEVICE": "foo"}))
    assert message == "ConfigError: unknown device 'foo'; choose cpu, cuda, cuda:1 (the second GPU) or auto"
