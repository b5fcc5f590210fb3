"""Values of several seeds as text."""

import statistics
from collections.abc import Sequence


def spread(found: Sequence[float | None], digits: int, sign: str = "") -> str:
    """``mean ± standard deviation``; the mean alone of a single value; a dash where a value is undefined (None).

    Args:
        digits: behind the point.
        sign: "+": write the sign of the mean in any case.
    """
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"
