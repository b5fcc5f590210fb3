"""Lists of faults for a printed report, grouped by rule and shortened."""

from collections.abc import Iterable, Iterator

# Number of faults per rule before "and N more".
_NUM_LISTED = 5


def listed_by_rule(faults: Iterable[tuple[str, str]], *, all_are_in: str = "") -> Iterator[list[str]]:
    """Yield the indented lines of each rule: the number of faults and the first few.

    Args:
        faults: rule and text of each fault.
        all_are_in: appended to "and N more"; says where to find the complete list.
    """
    by_rule: dict[str, list[str]] = {}
    for rule, text in faults:
        by_rule.setdefault(rule, []).append(text)
    for rule, texts in by_rule.items():
        lines = [f"  {rule}: {len(texts):,}", *(f"    {text}" for text in texts[:_NUM_LISTED])]
        if len(texts) > _NUM_LISTED:
            lines.append(f"    and {len(texts) - _NUM_LISTED:,} more{all_are_in}")
        yield lines
