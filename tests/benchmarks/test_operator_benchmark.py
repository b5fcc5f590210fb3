"""Tests of benchmarks/operator.py on its smallest workload, and of its tables."""

import json
from pathlib import Path

import pytest

from benchmarks import operator as operator_benchmark

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_all_operators_are_measured_and_the_printed_table_is_written(call, tmp_path, capsys):
    output = tmp_path / "folder" / "figures.json"
    document = tmp_path / "page.md"
    document.write_text("above\n<!-- cpu figures -->\nold\n<!-- cpu figures -->\nbelow\n")
    words = ("--workloads", "tiny", "--seconds", 0, "--output", output, "--document", document)
    assert call(operator_benchmark, *words) is None
    figures = json.loads(output.read_text())
    assert figures["copy_gigabytes_per_second"] > 0
    rows = figures["rows"]
    assert [(row["layout"], row["operation"]) for row in rows] == [
        (layout, operation)
        for layout in ("channels-last", "contiguous")
        for operation in ("forward", "forward + feature gradient", "RoI gradient")
    ]
    for row in rows:
        peers = {"prroi_pool", "reference"} | (
            set() if row["operation"] == "RoI gradient" else {"roi_align(2)", "roi_align(0)"}
        )
        assert set(row["milliseconds"]) == peers
        assert min(row["milliseconds"].values()) > row["floor_milliseconds"] > 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(table) == len(rows)
    page = document.read_text()
    assert page.startswith("above\n<!-- cpu figures -->\n") and page.endswith("\n<!-- cpu figures -->\nbelow\n")
    assert "\n".join(table) in page and "old" not in page


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_shows_the_figures_of_the_json_file(device):
    figures = json.loads((DOCS / "benchmarks" / f"{device}.json").read_text())
    _, shown, _ = (DOCS / "benchmarks.md").read_text().split(f"<!-- {device} figures -->")
    assert shown == f"\n{operator_benchmark.heading(figures)}\n\n{operator_benchmark.table(figures)}\n"


def test_the_table_of_a_gpu_shows_replays():
    row = {"workload": "some", "dtype": "float32", "layout": "contiguous", "floor_milliseconds": 0.01}
    forward = row | {
        "operation": "forward",
        "milliseconds": {"prroi_pool": 0.3, "roi_align(2)": 0.4, "roi_align(0)": 0.5, "reference": 9.0, "original": 3},
        "graph_milliseconds": {"prroi_pool": 0.2, "roi_align(2)": 0.1, "roi_align(0)": 0.4, "original": 2.0},
    }
    gradient = row | {
        "operation": "RoI gradient",
        "milliseconds": {"prroi_pool": 1.5, "reference": 6.0},
        "graph_milliseconds": {"prroi_pool": 1.25},
    }
    assert operator_benchmark.table({"rows": [forward, gradient]}).splitlines() == [
        "| workload | dtype, layout | operation | floor | prroi_pool | roi_align(2) | roi_align(0) | original "
        "| prroi_pool, launched from Python |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| some | float32, contiguous | forward | 0.0100 | 0.2000 | 0.1000 (0.5x) | 0.4000 (2.0x) | 2.00 (10.0x) "
        "| 0.3000 |",
        "| some | float32, contiguous | RoI gradient | 0.0100 | 1.25 |  |  |  | 1.50 |",
    ]


def test_the_original_kernels_need_a_gpu(call):
    assert call(operator_benchmark, "--original", "somewhere") == (
        "--original needs --device cuda: the authors' kernels run only on CUDA"
    )


def test_an_unknown_workload_is_refused(call):
    message = call(operator_benchmark, "--workloads", "huge", "vast")
    assert message.startswith(
        "--workloads: no name contains huge or vast. Available workloads:\n  512 RoIs of 14-28 px "
    )
