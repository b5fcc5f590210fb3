"""The figures of the method pages can be drawn again, and every picture of a method page exists."""

import importlib
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "method").glob("*.md"))
DRAWN = sorted(path.name for path in (ROOT / "docs" / "pictures").glob("method_*.png"))
DRAWERS = sorted(path.stem for path in (ROOT / "docs" / "figures").glob("*_figures.py"))


def pictures_of(page):
    return re.findall(r"!\[[^\]]+\]\(\.\./pictures/([^)]+)\)", page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def drawn_again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "figures"))
        patch.setattr("iounet.evaluation.landscape.GRID", 9)  # the figure has 61 points an axis, which takes longer
        for name in DRAWERS:
            importlib.import_module(name).draw(folder)
    return folder


def test_the_scripts_draw_every_figure(drawn_again):
    assert sorted(path.name for path in drawn_again.iterdir()) == DRAWN


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_the_size_of_the_committed_one(drawn_again, name):
    with Image.open(drawn_again / name) as again, Image.open(ROOT / "docs" / "pictures" / name) as committed:
        # Fonts and contour lines may differ by a few pixels between versions of Matplotlib.
        assert again.size == pytest.approx(committed.size, abs=25)
        assert len(set(again.convert("L").resize((64, 64)).tobytes())) > 20, "nearly empty"


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_shown_and_small(name):
    assert any(name in pictures_of(page) for page in PAGES), f"no method page shows {name}"
    assert (ROOT / "docs" / "pictures" / name).stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pictures_of_a_page_exist(page):
    names = pictures_of(page)
    assert names
    assert [name for name in names if not (ROOT / "docs" / "pictures" / name).is_file()] == []
