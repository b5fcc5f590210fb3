"""Numbers and lists in sentences."""

from collections.abc import Iterable


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``1,200 images``; ``plural`` where it takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(words: Iterable[str], most: int = 10) -> str:
    """The first of the words, and how many more there are: ``a, b, ... 3 more``."""
    shown = list(words)
    more = f", ... {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
