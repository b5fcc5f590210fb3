"""What the benchmarks have in common: calls that take turns, tables of figures, and the files that figures go to."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from iounet.evaluation.stopwatch import clock
from iounet.files import write_text

Result = TypeVar("Result")
Figures = dict[str, Any]  # what goes into a JSON file

LEAST_ROUNDS = 3


def take_turns(
    calls: Mapping[str, Callable[[], Result]], seconds: float, *, alternating: bool = False
) -> dict[str, list[Result]]:
    """What each call returned, round by round.

    All calls run in every round, so that whatever else the machine does falls on all of them. The first round, in which
    memory is taken and algorithms are chosen, does not count.

    Args:
        calls: name → call; at least one.
        seconds: the rounds take about so long in all, but there are at least three.
        alternating: every second round runs from the last call to the first, for calls that gain by being the first.
    """
    for call in calls.values():
        call()
    results: dict[str, list[Result]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while len(results[order[0]]) < LEAST_ROUNDS or time.perf_counter() < end:
        for name in order:
            results[name].append(calls[name]())
        if alternating:
            order.reverse()
    return results


def timed(call: Callable[[], object], device: torch.device, in_a_row: int = 1) -> Callable[[], float]:
    """The call as one that returns the seconds it took: the mean of ``in_a_row`` calls without a wait between them."""

    def run() -> float:
        start = clock(device)
        for _ in range(in_a_row):
            call()
        return (clock(device) - start) / in_a_row

    return run


def spread(values: Sequence[float], form: str) -> str:
    """The median and, in brackets, the quartiles, in a form such as ".1f"."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def readable(milliseconds: float) -> str:
    """Milliseconds with two digits, or less than one with four."""
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.4f}"


def processor_name(device: torch.device) -> str:
    """The GPU with its driver, or the CPU."""
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        return f"{torch.cuda.get_device_name(device)}, driver {driver}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """--device, for :func:`device_named`."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure (default: cpu)")


def device_named(name: str) -> torch.device:
    """The device of --device; exits with a message if there is no GPU."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: leave --device cuda away")
    return device


def add_output_arguments(parser: argparse.ArgumentParser, marker: str) -> None:
    """--output and --document, for :func:`write_results`; the marker is for the help, so it may hold a placeholder."""
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures to this file")
    parser.add_argument(
        "--document", type=Path, metavar="MD", help=f"also put the table between this file's lines {marker}"
    )


def write_results(args: argparse.Namespace, figures: Figures, heading: str, table: str, marker: str) -> None:
    """Prints the table; --output gets the figures, --document both texts between its two lines of the marker."""
    print(table)
    if args.output:
        write_text(args.output, json.dumps(figures, indent=1) + "\n")
    if args.document:
        fill_document(args.document, marker, f"{heading}\n\n{table}")


def fill_document(document: Path, marker: str, text: str) -> None:
    """Replaces what stands between a document's two lines of the marker; exits with a message without these two."""
    parts = document.read_text(encoding="utf-8").split(marker)
    if len(parts) != 3:
        sys.exit(f"{document} has {len(parts) - 1} lines {marker}: write two, which the table will stand between")
    write_text(document, f"{parts[0]}{marker}\n{text}\n{marker}{parts[2]}")
