"""Progress in a log file consists of few, complete lines."""

import io
import sys

import pytest

import iounet.progress
from iounet.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on(file, monkeypatch, count, **options):
    monkeypatch.setattr(sys, "stderr", file)
    assert list(progress(range(count), desc="train", **options)) == list(range(count))
    return file.getvalue()


def test_a_short_task_writes_no_line_to_a_file(monkeypatch):
    assert shown_on(io.StringIO(), monkeypatch, 1000) == ""


@pytest.mark.parametrize("leave", [True, False])
def test_each_state_is_a_line_in_a_file(monkeypatch, leave):
    monkeypatch.setattr(iounet.progress, "SECONDS_BETWEEN_LINES", 0)
    text = shown_on(io.StringIO(), monkeypatch, 3, leave=leave)
    assert "\r" not in text and text.endswith("\n")
    states = [line.partition("|")[0] for line in text.splitlines()]
    assert states[:4] == ["train:   0%", "train:  33%", "train:  67%", "train: 100%"]
    assert states[4:] == (["train: 100%"] if leave else [])  # repeated when the bar is closed


def test_a_bar_on_a_terminal(monkeypatch):
    assert shown_on(Terminal(), monkeypatch, 3).startswith("\rtrain:   0%|")
