"""Format numbers and lists for sentences."""

from collections.abc import Iterable


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: `1 image`, `1,200 images`; `plural` is for irregular nouns."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(words: Iterable[str], most: int = 10) -> str:
    """Join the first `most` words and the number of the others: `a, b, ... 3 more`."""
    shown = list(words)
    more = f", ... {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
