"""Numbers in sentences."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``1,200 images``; ``plural`` where it takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
