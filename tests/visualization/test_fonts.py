"""Characters of any language are drawn by a font that has them."""

import numpy as np
import pytest

from iounet.visualization import fonts
from iounet.visualization.fonts import scalable_font


def ink(font, text):
    return np.asarray(font.getmask(text)).tobytes(), font.getmask(text).size


@pytest.mark.parametrize("text", ["star", "étoile", "звезда", "αστέρι", "כוכב", "نجمة", "0.50 → 0.75"])
def test_the_font_of_all_pictures_has_many_alphabets(text):
    font = scalable_font(20, text)
    assert font.path == scalable_font(20).path and font.size == 20
    unknown = ink(font, "\uffff")
    assert all(ink(font, character) != unknown for character in text if character != " ")


def test_another_font_where_it_lacks_a_character():
    """⌒ is in DejaVu Sans Mono, which comes with matplotlib, too."""
    plain, other = scalable_font(20), scalable_font(20, "a⌒b")
    assert ink(plain, "⌒") == ink(plain, "\uffff")
    assert other.path != plain.path and ink(other, "⌒") != ink(other, "\uffff")


def test_no_font_has_all_of_them():
    assert scalable_font(20, "\U0010fffd").path == scalable_font(20).path


def test_a_font_that_is_gone_is_passed_over(monkeypatch):
    from matplotlib.font_manager import fontManager

    class Gone:
        name, style, weight, fname = "Gone", "normal", 400, "/nowhere/gone.ttf"

    fonts._installed_font_with.cache_clear()
    monkeypatch.setattr(fontManager, "ttflist", [Gone])
    assert scalable_font(20, "⌒").path == scalable_font(20).path
    fonts._installed_font_with.cache_clear()
