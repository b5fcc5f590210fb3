"""Tests of benchmarks/coco_size.py on a five-hundredth of COCO."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coco_size

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS = Path(__file__).parents[2] / "docs"
STEPS = [
    "read the training annotations",
    "load training images",
    "score detections, 100 an image",
    "the same, the first of 8 processes",
    "refine detections, 100 an image",
]


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Run the steps in this process, because starting ten processes takes most of a minute."""
    folders = (tmp_path / str(number) for number in range(100))

    def here(step, size):
        folder = next(folders)
        folder.mkdir()
        return step(folder, size)

    monkeypatch.setattr(coco_size, "in_new_process", here)


def test_all_steps_are_measured_and_the_printed_table_is_written(in_this_process, call, tmp_path, capsys):
    page, figures = tmp_path / "page.md", tmp_path / "folder" / "figures.json"
    page.write_text("above\n<!-- coco size -->\nold\n<!-- coco size -->\nbelow\n")
    assert call(coco_size, "--part", "0.002", "--output", figures, "--document", page) is None
    rows = json.loads(figures.read_text())["rows"]
    assert [row["step"] for row in rows] == [step for step in STEPS for _ in range(2)]
    assert [row["pieces"] for row in rows] == [118, 236, 10, 10, 10, 10, 10, 10, 10, 20]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[3]["kB a file"] == pytest.approx(160, rel=0.1)  # as stated in the docstring
    assert all(40 < row["AP"] < 80 for row in rows[4:8])  # all objects are found, but not all boxes fit well
    assert [row["boxes"] for row in rows[8:]] == [1000, 2000] and rows[-1]["open files"] == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(rows)
    assert "\n".join(table) in page.read_text() and "old" not in page.read_text()


@pytest.mark.slow
def test_a_step_runs_in_a_new_process():
    measured = coco_size.in_new_process(coco_size.read_annotations, 10)
    assert measured["pieces"] == 10 and measured["seconds"] > 0


def test_the_page_shows_the_figures_of_the_json_file():
    figures = json.loads((DOCS / "benchmarks" / "coco_size.json").read_text())
    _, shown, _ = (DOCS / "benchmarks.md").read_text().split("<!-- coco size -->")
    assert shown == f"\n{coco_size.heading(figures)}\n\n{coco_size.table(figures)}\n"


def test_simulated_objects_have_an_area_inside_their_image():
    content = coco_size.simulate(20, 500, np.random.default_rng(1))
    for x, y, width, height in (entry["bbox"] for entry in content["annotations"]):
        assert min(x, y) >= 0 and min(width, height) > 1
        assert x + width <= coco_size.IMAGE_SIZE[1] and y + height <= coco_size.IMAGE_SIZE[0]
