"""`python -m iounet` runs all commands; every command sets the OpenMP wait policy before torch is imported."""

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

import iounet
from iounet import __main__ as all_commands

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_lists_the_commands(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iounet", *arguments])
    assert all_commands.main() == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in all_commands.COMMANDS)


def test_an_unknown_command_prints_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iounet", "trian"])
    assert all_commands.main() == 2
    shown = capsys.readouterr()
    assert "\n  train " in shown.out
    assert shown.err == "unknown command 'trian'\n"


@pytest.mark.parametrize("command", all_commands.COMMANDS)
def test_runs_each_command_with_the_remaining_arguments(command, monkeypatch):
    module = import_module(f"iounet.{all_commands.COMMANDS[command][0]}")
    called = []
    monkeypatch.setattr(module, "main", lambda: called.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["iounet", command, "--flag", "value"])
    all_commands.main()
    assert called == [[f"python -m iounet {command}", "--flag", "value"]]


def test_every_installed_script_is_listed():
    scripts = re.findall(r'^iounet-(\w+) = "iounet\.(.+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert scripts
    assert {name: module for name, (module, _) in all_commands.COMMANDS.items()}.items() >= set(scripts)


WATCH_FOR_TORCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            os._exit(sys.stdout.flush() or 0)

sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize(
    "module",
    ["iounet.commands.train", "iounet.commands.refine", "tools.reproduce", "tools.compare", "tools.calibrate"],
)
@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_sets_another_policy(module, given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH_FOR_TORCH.format(module=module)],
        env=environment | given,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (expected, "")


class TestPackage:
    def test_the_version_is_the_version_of_the_installed_package(self):
        try:
            expected = metadata("iounet")["Version"]
        except PackageNotFoundError:
            expected = "0+checkout"
        assert iounet.__version__ == expected

    def test_public_names_are_imported_on_first_use(self):
        assert iounet.get_cfg is import_module("iounet.config").get_cfg
        for name in iounet.__all__:
            assert getattr(iounet, name).__name__ == name
        with pytest.raises(AttributeError, match="module 'iounet' has no attribute 'nothing'"):
            iounet.nothing  # noqa: B018
