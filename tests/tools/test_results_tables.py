"""The generated tables of README.md and docs/ against the files that they come from."""

import re
import sys
from pathlib import Path

import pytest

from iounet.evaluation.results_tables import fill_blocks, gains_table, nms_rows, shared_table
from tools import evidence, results_tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_a_page_match_their_files(page):
    text = page.read_text(encoding="utf-8")
    # If this fails: python tools/results_tables.py
    assert fill_blocks(text, results_tables.TABLES) == text


def test_every_table_is_on_one_page_and_every_marker_names_a_table():
    of_benchmarks = {name for page in PAGES if page.name == "benchmarks.md" for name in markers(page)}
    found = [name for page in PAGES for name in markers(page)]
    assert {name: found.count(name) for name in found} == dict.fromkeys(found, 2)
    assert set(found) - of_benchmarks <= set(results_tables.TABLES)
    assert set(results_tables.TABLES) <= set(found)


def markers(page):
    return re.findall(r"^<!-- (.+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("stem", results_tables.SETS.values())
def test_the_summary_is_that_of_the_seeds(stem):
    files = [results_tables.RESULTS / f"{stem}_energy_seed{seed}.json" for seed in (0, 1, 2)]
    assert evidence.of_seeds(files) == results_tables.read("summary")[stem]


@pytest.mark.parametrize("table", sorted(results_tables.TABLES))
def test_every_row_of_a_table_has_the_same_number_of_cells(table):
    lines = results_tables.TABLES[table]().splitlines()
    assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1


def test_blocks_are_filled_in_place():
    page = "a\n<!-- x -->\nold\n<!-- x -->\nb\n<!-- other -->\nc\n<!-- other -->\n<!-- y -->\n<!-- y -->\n"
    filled = fill_blocks(page, {"x": lambda: "| 1 |", "y": lambda: "| 2 |", "unused": lambda: "| 3 |"})
    assert filled == (
        "a\n<!-- x -->\n\n| 1 |\n\n<!-- x -->\nb\n<!-- other -->\nc\n<!-- other -->\n"
        "<!-- y -->\n\n| 2 |\n\n<!-- y -->\n"
    )
    assert fill_blocks(filled, {"x": lambda: "| 1 |", "y": lambda: "| 2 |"}) == filled


@pytest.mark.parametrize("check", [True, False])
def test_the_command_writes_unless_it_checks(check, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- gain -->\n<!-- gain -->\n")
    (tmp_path / "docs" / "page.md").write_text("no table\n")
    monkeypatch.setattr(results_tables, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["results_tables.py", *(["--check"] if check else [])])
    with pytest.raises(SystemExit) as exit_:
        results_tables.main()
    assert exit_.value.code == (1 if check else 0)
    assert ("| Synthetic set | " in (tmp_path / "README.md").read_text()) != check
    assert capsys.readouterr().out == f"README.md: {'out of date' if check else 'rewritten'}\n"


def test_gains_are_paired_by_seed():
    def run(before, after):
        rows = {"plain detector, greedy NMS": before, "this configuration": after}
        table = {row: dict.fromkeys(("AP", "AP75", "AP90"), value) for row, value in rows.items()}
        return {
            "table": table,
            "calibration": {"all candidates": {"error": 0.5}},
            "correlation": {"predicted IoU, all candidates": 0.5},
        }

    *_, plain, ours, gain = gains_table({"set": [run(40.0, 50.0), run(60.0, 70.0)]}).splitlines()
    assert plain == "| set: plain | 50.0 ± 14.1 | 50.0 ± 14.1 | 50.0 ± 14.1 |  |  |"
    assert ours.startswith("| **set: this configuration** | **60.0 ± 14.1** |") and ours.endswith("| 0.50 ± 0.00 |")
    assert gain == "| set: gain | +10.0 ± 0.0 | +10.0 ± 0.0 | +10.0 ± 0.0 |  |  |"


def test_columns_that_only_some_rows_have_are_left_out():
    table = {"a": {"AP": 1.0, "extra": 2.0}, "b": {"AP": 3.0}}
    assert shared_table([table]).splitlines()[0] == "| | AP | ΔAP |"
    assert shared_table([{"a": {"0.5": 1.0}}]).splitlines()[-1] == "| a | 1.0 |"


def test_evaluations_and_reproductions_have_the_same_table():
    assert nms_rows({"table": {"a": {}}}) == nms_rows({"nms": {"a": {}}}) == {"a": {}}
