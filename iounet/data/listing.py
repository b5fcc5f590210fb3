"""Faults as a report shows them: rule by rule, long lists cut short."""

from collections.abc import Iterable, Iterator

# How many faults of a rule are shown before "and N more".
_NUM_LISTED = 5


def listed_by_rule(faults: Iterable[tuple[str, str]], *, all_are_in: str = "") -> Iterator[list[str]]:
    """The lines on each rule, indented: how many faults break it, and the first of them.

    Args:
        faults: the rule and the text of each.
        all_are_in: where the others can be seen, for the end of a list that was cut.
    """
    by_rule: dict[str, list[str]] = {}
    for rule, text in faults:
        by_rule.setdefault(rule, []).append(text)
    for rule, texts in by_rule.items():
        lines = [f"  {rule}: {len(texts):,}", *(f"    {text}" for text in texts[:_NUM_LISTED])]
        if len(texts) > _NUM_LISTED:
            lines.append(f"    and {len(texts) - _NUM_LISTED:,} more{all_are_in}")
        yield lines
