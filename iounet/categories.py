"""Comparing the categories of two data sets, or of a data set and a checkpoint."""

from collections.abc import Sequence
from typing import Any

_NUM_LISTED = 5


def category_differences(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> str:
    """Where two lists of ``{"id", "name"}`` differ, such as ``id 3: 'cat' and 'dog'; id 7: 'kite' and none``."""
    names = [{category["id"]: repr(category["name"]) for category in categories} for categories in (one, other)]
    ids = sorted(id_ for id_ in names[0].keys() | names[1].keys() if names[0].get(id_) != names[1].get(id_))
    listed = [f"id {id_}: {names[0].get(id_, 'none')} and {names[1].get(id_, 'none')}" for id_ in ids[:_NUM_LISTED]]
    return "; ".join([*listed, *([f"and {len(ids) - _NUM_LISTED} more"] if len(ids) > _NUM_LISTED else [])])
