"""A font that has the characters of a text, whatever language class names are in."""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

# Latin, Greek, Cyrillic, Hebrew, Arabic and arrows; Pillow's own font has little beyond ASCII.
_DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def scalable_font(size: float, text: str = "") -> ImageFont.FreeTypeFont:
    """A font of ``size`` pixels for ``text``: DejaVu Sans, or, where that lacks characters, an installed font."""
    lacking = frozenset(character for character in text if character.isprintable()) - _characters_of(_DEJAVU)
    return ImageFont.truetype(_installed_font_with(lacking) if lacking else _DEJAVU, size)


@cache
def _characters_of(file: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(file).get_charmap()))


@cache
def _installed_font_with(characters: frozenset[str]) -> str:
    """The file of a font, upright and of normal weight if there is one; that of DejaVu Sans if none has all of them."""
    from matplotlib.font_manager import fontManager  # here: it may take seconds to list the fonts for the first time

    fonts = [font for font in fontManager.ttflist if "LastResort" not in font.name]  # which draws boxes for all
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.weight not in (400, "normal", "regular"))):
        try:
            if characters <= _characters_of(font.fname):
                return font.fname
        except (OSError, RuntimeError):  # uninstalled since it was listed, or no font that FreeType can read
            continue
    return _DEJAVU
