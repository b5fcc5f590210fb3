"""Find the numbers in the prose of a page that look measured and that no file covers."""

import re
import string
from collections.abc import Iterator, Sequence

NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?"
UNIT = (
    r"(?:%|ms\b|s\b|µs\b|AP\d*\b|times\b|MB\b|MiB\b|GB\b|MB/s|GB/s|h\b|hours\b|minutes\b|seconds\b|GFLOP\b|×(?! ?\d))"
)
# Decimal numbers, and any numbers in front of a unit: "12 ± 4 AP", "2 to 7 times".
MEASURED = re.compile(
    rf"(?<![\w.,/-]){NUMBER}(?:(?: to | and |, | ± | → | / ){NUMBER})*(?= ?{UNIT})|(?<![\w.,/-])\d+\.\d+"
)
# Numbers in these contexts are never measurements.
HARMLESS = [
    r"(?:PyTorch|Python|torch|torchvision|ONNX Runtime|Runtime Web|NVRTC|CUDA|jpeg-js|version) \d+(?:\.\d+)*",
    r"(?:≥|at least|at most|above|below|starts? at an IoU of|by an IoU of) 0\.\d+",
    r"\d\.\d+(?:, \d+\.\d+)* and newer",
    r"`[^`]*`",  # code
    r"\]\([^)]*\)",  # the target of a link
    r"<[^>]*>",
]
# A sentence with one of these words says that no file holds its numbers.
ADMITTED = re.compile(r"\bby hand\b|\bestimated?\b|\bassum\w+\b|\bas published\b")
BREAK = " ¶ "


def prose(text: str) -> str:
    """The text of a page without code blocks and generated tables, each paragraph, item and table on one line."""
    text = re.sub(r"^(```|~~~).*?^\1 *$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^<!-- (.+) -->$.*?^<!-- \1 -->$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\n\s*\n|\n(?= *(?:[-*#]|\d+\.) )", BREAK, text)
    return re.sub(r"\s+", " ", text)


def covered_by(template: str, values: Sequence[object]) -> tuple[str, list[tuple[int, int]]]:
    """A template filled with its values, and the (start, end) of each value in it."""
    filled, spans, left = "", [], iter(values)
    for literal, field, form, _ in string.Formatter().parse(template):
        filled += literal
        if field is not None:
            value = format(next(left), form or "")
            spans.append((len(filled), len(filled) + len(value)))
            filled += value
    assert next(left, None) is None, f"{template!r} has fewer places than values"
    return filled, spans


def occurrences(text: str, fragment: str) -> Iterator[int]:
    """Yield the positions of a fragment, except inside a longer number."""
    for match in re.finditer(rf"(?<![\d.]){re.escape(fragment)}(?!\d|\.\d)", text):
        yield match.start()


def unexplained(text: str, covered: Sequence[tuple[int, int]]) -> list[str]:
    """Measured numbers of a page's prose that nothing covers, with the text around them."""
    covered = [*covered, *(match.span() for pattern in HARMLESS for match in re.finditer(pattern, text))]
    found = []
    for group in MEASURED.finditer(text):
        for number in re.finditer(NUMBER, group[0]):
            start, end = group.start() + number.start(), group.start() + number.end()
            if any(low <= start and end <= high for low, high in covered) or ADMITTED.search(sentence(text, start)):
                continue
            found.append(f"{number[0]} in “{text[max(0, start - 60) : end + 40]}”")
    return found


def sentence(text: str, place: int) -> str:
    ends = [match.end() for match in re.finditer(rf"[.!?]\)? (?=[A-Z*\[`(])|{BREAK}", text)]
    start = max((end for end in ends if end <= place), default=0)
    return text[start : min((end for end in ends if end > place), default=len(text))]
