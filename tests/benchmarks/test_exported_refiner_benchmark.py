"""Tests of benchmarks/onnx_refiner.py and refiner_footprint.py."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import onnx_refiner as benchmark
from benchmarks import refiner_footprint

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights" / "cards.pth"


def figures_of(pytorch, onnx):
    """Return figures of two runtimes with the given seconds of each round."""
    both = {"PyTorch": pytorch, "ONNX Runtime": onnx}
    return {
        "speed": [{"boxes": 10, "runtime": name, "seconds": seconds} for name, seconds in both.items()],
        "files": [
            {"runtime": name, "megabytes": 5.93, "seconds_to_load": 2.04, "mib_loaded": 400.2, "mib_peak": peak}
            for name, peak in (("PyTorch", 612.7), ("ONNX Runtime", None))
        ],
    }


def test_ratios_are_computed_within_a_round():
    # ONNX Runtime is twice as slow in every round, although the machine is ten times slower in the last one.
    shown = benchmark.table(figures_of([0.1, 0.1, 1.0], [0.2, 0.2, 2.0])).splitlines()
    assert shown[2] == "| PyTorch | 10 | 100.0 (100.0-550.0) | 1.00 (1.00-1.00) |"
    assert shown[3] == "| ONNX Runtime | 10 | 200.0 (200.0-1100.0) | 2.00 (2.00-2.00) |"
    assert shown[-2:] == ["| PyTorch | 5.9 | 2.0 | 400 | 613 |", "| ONNX Runtime | 5.9 | 2.0 | 400 |  |"]


def test_the_boxes_are_close_to_the_objects():
    work = benchmark.photographs(100)
    content = json.loads((benchmark.PHOTOS / "annotations.json").read_text())
    assert len(work) == len(content["images"]) == 6
    for image, (pixels, boxes) in zip(content["images"], work, strict=True):
        assert pixels.shape == (image["height"], image["width"], 3) and pixels.dtype == np.uint8
        assert boxes.shape == (100, 4) and boxes.dtype == np.float32
        objects = [entry["bbox"] for entry in content["annotations"] if entry["image_id"] == image["id"]]
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            x, y, width, height = objects[number % len(objects)]
            assert max(abs(x1 - x), abs(x2 - x - width)) <= 0.1 * width + 1e-3
            assert max(abs(y1 - y), abs(y2 - y - height)) <= 0.1 * height + 1e-3
        assert len(np.unique(boxes, axis=0)) == 100
    for (_, boxes), (_, again) in zip(work, benchmark.photographs(100), strict=True):
        assert np.array_equal(boxes, again)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_peak_is_not_inherited_from_the_parent_process():
    """This process holds torch and more. A new process that only imports NumPy must not inherit its peak."""
    code = "from benchmarks.refiner_footprint import peak_mib\nx = bytearray(b'1') * (64 * 2**20)\nprint(peak_mib())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 64 < float(done.stdout) < 128 < refiner_footprint.peak_mib()


def test_the_process_of_onnx_runtime_does_not_import_torch():
    code = "import sys, iounet.onnx, benchmarks.refiner_footprint\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_all_runtimes_are_measured_and_the_printed_table_is_written(call, tmp_path, monkeypatch, capsys):
    # Skip AOTInductor, whose compiler takes a minute.
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
    output, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("above\n<!-- exported refiner -->\nold\n<!-- exported refiner -->\nbelow\n")
    words = ("--weights", WEIGHTS, "--seconds", 0, "--output", output, "--document", page)
    assert call(benchmark, *words) is None
    figures = json.loads(output.read_text())
    runtimes = ["PyTorch", "ONNX Runtime"]
    assert [row["runtime"] for row in figures["files"]] == runtimes
    assert [(row["boxes"], row["runtime"]) for row in figures["speed"]] == [
        (count, name) for count in (10, 100) for name in runtimes
    ]
    assert all(len(row["seconds"]) == 3 and min(row["seconds"]) > 0 for row in figures["speed"])
    assert all(row["megabytes"] > 1 and row["seconds_to_load"] > 0 for row in figures["files"])
    assert f"{benchmark.heading(figures)}\n\n{benchmark.table(figures)}" in page.read_text()
    assert "old" not in page.read_text() and benchmark.table(figures) in capsys.readouterr().out
