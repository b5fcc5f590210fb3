"""The scripts reproduce the figures of the method pages, and every picture of a method page exists."""

import importlib
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
PAGES = sorted((ROOT / "docs" / "method").glob("*.md"))
FIGURES = sorted(path.name for path in PICTURES.glob("method_*.png"))
SCRIPTS = sorted((ROOT / "docs" / "figures").glob("*_figures.py"))
QUICK = ("jitter_figures", "nms_figures", "pooling_figures")


def pictures_of(page):
    return re.findall(r"!\[[^\]]+\]\(\.\./pictures/([^)]+)\)", page.read_text(encoding="utf-8"))


def figures_of(script):
    return re.findall(r'"(method_\w+\.png)"', script.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "script",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in SCRIPTS],
)
def test_a_script_draws_its_figures(script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr("iounet.evaluation.landscape.GRID", 9)  # 61 points on each axis would take too long
    importlib.import_module(script.stem).draw(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(figures_of(script))
    for path in tmp_path.iterdir():
        with Image.open(path) as again, Image.open(PICTURES / path.name) as committed:
            # Versions of Matplotlib differ by a few pixels.
            assert again.size == pytest.approx(committed.size, abs=25)
            assert len(set(again.convert("L").tobytes())) > 20, "nearly empty"


def test_every_figure_has_a_script():
    assert sorted(name for script in SCRIPTS for name in figures_of(script)) == FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_shown_and_small(name):
    assert any(name in pictures_of(page) for page in PAGES), f"no method page shows {name}"
    assert (PICTURES / name).stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pictures_of_a_page_exist(page):
    assert pictures_of(page)
    assert [name for name in pictures_of(page) if not (PICTURES / name).is_file()] == []
