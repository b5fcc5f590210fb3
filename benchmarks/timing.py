"""Shared code of the benchmarks: interleaved timing, device names, command-line arguments and result files."""

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
Figures = dict[str, Any]  # the content of a JSON file

LEAST_ROUNDS = 3


def take_turns(
    calls: Mapping[str, Callable[[], Result]], seconds: float, *, alternating: bool = False
) -> dict[str, list[Result]]:
    """Run all calls in rounds, and return the results of each call in round order.

    Every round runs all calls, so that other load on the machine affects all of them equally. A first round, which
    allocates memory and selects algorithms, is discarded.

    Args:
        calls: name → call; at least one.
        seconds: approximate duration of all rounds together. There are at least three rounds.
        alternating: reverse the order of the calls in every second round, in case the first call has an advantage.
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
    """Return a function that measures the mean duration in seconds of `in_a_row` calls without waiting in between."""

    def run() -> float:
        start = clock(device)
        for _ in range(in_a_row):
            call()
        return (clock(device) - start) / in_a_row

    return run


def spread(values: Sequence[float], form: str) -> str:
    """Format the median and, in brackets, the quartiles, with a format such as ".1f"."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def readable(milliseconds: float) -> str:
    """Format milliseconds with two decimals, or with four below 1."""
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.4f}"


def processor_name(device: torch.device) -> str:
    """Return the name of the GPU and its driver version, or the name of the CPU."""
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
    """Add --device, which `device_named` evaluates."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure (default: cpu)")


def device_named(name: str) -> torch.device:
    """Return the device that --device names. Exit with a message if it is "cuda" and PyTorch sees no GPU."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no GPU. Omit --device to measure on the CPU.")
    return device


def add_output_arguments(parser: argparse.ArgumentParser, marker: str) -> None:
    """Add --output and --document, which `write_results` evaluates. The help shows `marker`."""
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures to this file")
    parser.add_argument(
        "--document", type=Path, metavar="MD", help=f"also insert the table between the two lines {marker} of this file"
    )


def write_results(args: argparse.Namespace, figures: Figures, heading: str, table: str, marker: str) -> None:
    """Print the table. Write the figures to --output, and heading and table between the markers of --document."""
    print(table)
    if args.output:
        write_text(args.output, json.dumps(figures, indent=1) + "\n")
    if args.document:
        fill_document(args.document, marker, f"{heading}\n\n{table}")


def fill_document(document: Path, marker: str, text: str) -> None:
    """Replace the text between the two marker lines of a document. Exit with a message unless there are exactly two."""
    parts = document.read_text(encoding="utf-8").split(marker)
    if len(parts) != 3:
        sys.exit(f"{document} contains {marker} {len(parts) - 1} time(s); put it before and after the table")
    write_text(document, f"{parts[0]}{marker}\n{text}\n{marker}{parts[2]}")
