"""Choose a font that has the characters of a text, for class names in any language."""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

# Has Latin, Greek, Cyrillic, Hebrew, Arabic and arrows. Pillow's default font has little beyond ASCII.
_DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def scalable_font(size: float, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels for `text`: DejaVu Sans, or an installed font if that lacks characters."""
    lacking = frozenset(character for character in text if character.isprintable()) - _characters_of(_DEJAVU)
    return ImageFont.truetype(_installed_font_with(lacking) if lacking else _DEJAVU, size)


@cache
def _characters_of(file: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(file).get_charmap()))


@cache
def _installed_font_with(characters: frozenset[str]) -> str:
    """Return the file of an upright, regular font with the characters, else of any with them, else of DejaVu Sans."""
    from matplotlib.font_manager import fontManager  # imported late: the first listing of fonts may take seconds

    fonts = [font for font in fontManager.ttflist if "LastResort" not in font.name]  # it has only placeholder glyphs
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.weight not in (400, "normal", "regular"))):
        try:
            if characters <= _characters_of(font.fname):
                return font.fname
        except (OSError, RuntimeError):  # uninstalled after it was listed, or not readable by FreeType
            continue
    return _DEJAVU
