"""Markdown tables, with values averaged over seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def spread(found: Sequence[float | None], digits: int, sign: str = "") -> str:
    """Format values as `mean ± standard deviation`, a single value without deviation, undefined values as a dash.

    Args:
        found: The values. None is undefined.
        digits: Decimal places.
        sign: "+" writes the sign of a positive mean.
    """
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Format a table. The first `text_columns` columns hold text, the others numbers, which are aligned right."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    # An empty top left cell is one space wide, other empty cells two.
    lines = [f"| {' | '.join(head).lstrip()} |", *(f"| {' | '.join(cells)} |" for cells in (rule, *rows))]
    return "\n".join(lines)


def seeds_table(tables: Sequence[Mapping[str, Mapping[str, Any]]], columns: Sequence[str]) -> str:
    """Merge the tables of several seeds. ΔAP and ΔAP90 are the differences from the first row of the same seed.

    Args:
        tables: For each seed, row → column → value.
        columns: Columns to show. If AP or AP90 is among them, a column of its differences is appended.
    """
    first, *_ = tables[0]
    compared = [column for column in ("AP", "AP90") if column in columns]
    rows = []
    for row in tables[0]:
        cells = [spread([table[row][column] for table in tables], 1) for column in columns]
        gains = [
            "" if row == first else spread([table[row][column] - table[first][column] for table in tables], 1, "+")
            for column in compared
        ]
        rows.append([row, *cells, *gains])
    return markdown(["", *columns, *(f"Δ{column}" for column in compared)], rows)


def gain_in_words(table: Mapping[str, Mapping[str, float]]) -> str:
    """Compare the last row of a table with the first: `refined: 38.4 AP, 4.0 more than greedy NMS (34.4)`.

    Args:
        table: Row → column → value. AP is in percent, or NaN without objects.
    """
    (first, before), *_, (last, after) = table.items()
    gain = round(after["AP"], 1) - round(before["AP"], 1)
    if math.isnan(gain):
        return "AP is undefined: the ground truth has no objects"
    compared = f"{abs(gain):.1f} {'more' if gain > 0 else 'less'} than" if gain else "the same as"
    return f"{last}: {after['AP']:.1f} AP, {compared} {first} ({before['AP']:.1f})"
