"""Tests of the benchmarks' shared code and of their command lines."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import coco_size, detector, timing
from benchmarks import operator as operator_benchmark

CPU = torch.device("cpu")


@pytest.fixture
def called():
    """Names of the calls, in the order in which they are made."""
    return []


@pytest.fixture
def calls(called):
    """Three calls that return the number of earlier calls."""
    return {name: lambda name=name: called.append(name) or len(called) - 1 for name in "abc"}


def test_three_rounds_follow_one_that_is_discarded(calls, called):
    results = timing.take_turns(calls, 0)
    assert "".join(called) == "abc" + "abc" * 3
    assert results == {"a": [3, 6, 9], "b": [4, 7, 10], "c": [5, 8, 11]}


def test_every_second_round_runs_in_reverse(calls, called):
    results = timing.take_turns(calls, 0, alternating=True)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert results == {"a": [3, 8, 9], "b": [4, 7, 10], "c": [5, 6, 11]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (12.0, 3), (13.0, 4), (29.5, 8)])
def test_rounds_continue_until_the_time_is_up(monkeypatch, seconds, rounds):
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait():
        now[0] += 2
        return now[0]

    results = timing.take_turns({"first": wait, "second": wait}, seconds)  # four seconds per round
    assert results["first"] == [4.0 + 4 * number + 2 for number in range(rounds)]
    assert len(results["second"]) == rounds


def test_calls_in_a_row_are_timed_together(monkeypatch):
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(timing, "clock", lambda device: next(ticks))
    made = []
    assert timing.timed(lambda: made.append(0), CPU, in_a_row=4)() == 0.75
    assert len(made) == 4


def test_the_median_is_shown_with_the_quartiles():
    assert timing.spread([5.0, 1.0, 2.0, 4.0, 3.0], ".1f") == "3.0 (2.0-4.0)"
    assert timing.spread([1.0, 2.0, 3.0, 5.0], ".2f") == "2.50 (1.75-3.50)"


def test_milliseconds_are_shown_with_two_or_four_decimals():
    assert [timing.readable(value) for value in (1234.567, 1.0, 0.99999, 0.01234)] == [
        "1234.57",
        "1.00",
        "1.0000",
        "0.0123",
    ]


@pytest.fixture
def page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- x -->\nold\n<!-- x -->\nbelow, → λ\n", encoding="utf-8")
    return page


def test_text_outside_the_markers_is_kept(page):
    for text in ("new\n\ntable", "newer"):
        timing.fill_document(page, "<!-- x -->", text)
        assert page.read_text(encoding="utf-8") == f"above\n<!-- x -->\n{text}\n<!-- x -->\nbelow, → λ\n"


@pytest.mark.parametrize(("marker", "count"), [("<!-- y -->", 0), ("old", 1), ("o", 3)])
def test_a_document_needs_two_markers(page, marker, count):
    before = page.read_bytes()
    with pytest.raises(SystemExit, match=rf"page.md contains {marker} {count} time\(s\); put it before and after"):
        timing.fill_document(page, marker, "text")
    assert page.read_bytes() == before


def test_results_are_written_to_the_given_files(page, tmp_path, capsys):
    figures = {"device": "some", "rows": [1.5]}
    output = tmp_path / "folder" / "figures.json"
    timing.write_results(Namespace(output=output, document=page), figures, "heading", "table", "<!-- x -->")
    assert json.loads(output.read_text()) == figures and output.read_text().endswith("}\n")
    assert "<!-- x -->\nheading\n\ntable\n<!-- x -->" in page.read_text(encoding="utf-8")
    assert capsys.readouterr().out == "table\n"
    timing.write_results(Namespace(output=None, document=None), figures, "heading", "table", "<!-- x -->")


@pytest.mark.parametrize("command", [coco_size, detector, operator_benchmark], ids=lambda command: command.__name__)
def test_help_gives_an_example(command, call, capsys):
    assert call(command, "--help") == 0
    assert f"\n    python -m {command.__name__} " in capsys.readouterr().out


@pytest.mark.parametrize("command", [detector, operator_benchmark], ids=lambda command: command.__name__)
def test_a_missing_gpu_is_reported(command, call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (
        call(command, "--device", "cuda") == "--device cuda: PyTorch sees no GPU. Omit --device to measure on the CPU."
    )
