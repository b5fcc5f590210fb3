"""Compare the categories of two data sets, or of a data set and a checkpoint, and find classes by name."""

from collections.abc import Iterable, Sequence
from typing import Any

_NUM_LISTED = 5


def category_differences(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> str:
    """Describe how two lists of `{"id", "name"}` differ: `id 3: 'cat' and 'dog'; id 7: 'kite' and none`."""
    names = [{category["id"]: repr(category["name"]) for category in categories} for categories in (one, other)]
    ids = sorted(id_ for id_ in names[0].keys() | names[1].keys() if names[0].get(id_) != names[1].get(id_))
    listed = [f"id {id_}: {names[0].get(id_, 'none')} and {names[1].get(id_, 'none')}" for id_ in ids[:_NUM_LISTED]]
    return "; ".join([*listed, *([f"and {len(ids) - _NUM_LISTED} more"] if len(ids) > _NUM_LISTED else [])])


def match_names(names: Iterable[str], categories: list[dict[str, Any]]) -> list[int]:
    """Return the label 1..C of each class name, or 0 if it is unknown; case, spaces, "-" and "_" are ignored."""

    def plain(name: str) -> str:
        return "".join(character for character in name.casefold() if character not in " -_")

    label_of = {plain(category["name"]): label for label, category in enumerate(categories, start=1)}
    return [label_of.get(plain(name), 0) for name in names]
