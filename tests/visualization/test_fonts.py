"""Fonts for characters of any language."""

import numpy as np
import pytest

from iounet.visualization import fonts
from iounet.visualization.fonts import scalable_font


def ink(font, text):
    return np.asarray(font.getmask(text)).tobytes(), font.getmask(text).size


@pytest.mark.parametrize("text", ["star", "étoile", "звезда", "αστέρι", "כוכב", "نجمة", "0.50 → 0.75"])
def test_the_default_font_has_many_alphabets(text):
    font = scalable_font(20, text)
    assert font.path == scalable_font(20).path and font.size == 20
    unknown = ink(font, "\uffff")
    assert all(ink(font, character) != unknown for character in text if character != " ")


def test_another_font_for_a_missing_character():
    """DejaVu Sans lacks ⌒, which DejaVu Sans Mono has. Both come with matplotlib."""
    plain, other = scalable_font(20), scalable_font(20, "a⌒b")
    assert ink(plain, "⌒") == ink(plain, "\uffff")
    assert other.path != plain.path and ink(other, "⌒") != ink(other, "\uffff")


def test_the_default_font_if_no_font_has_the_character():
    assert scalable_font(20, "\U0010fffd").path == scalable_font(20).path


def test_a_font_whose_file_is_missing_is_skipped(monkeypatch):
    from matplotlib.font_manager import fontManager

    class Gone:
        name, style, weight, fname = "Gone", "normal", 400, "/nowhere/gone.ttf"

    fonts._installed_font_with.cache_clear()
    monkeypatch.setattr(fontManager, "ttflist", [Gone])
    assert scalable_font(20, "⌒").path == scalable_font(20).path
    fonts._installed_font_with.cache_clear()
