"""Check whether a state dict fits a module."""

from collections.abc import Mapping

from torch import Tensor

# Counter of a batch norm. Frozen norms have none, and inference does not need it.
_COUNTER = "num_batches_tracked"


def state_dict_faults(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], optional: tuple[str, ...] = ()
) -> list[str]:
    """List why ``weights`` cannot be loaded into a module.

    Args:
        expected: state dict of the module.
        weights: state dict to check.
        optional: parameters whose names start with one of these prefixes may be missing.

    Returns:
        One phrase per kind of fault; an empty list if the weights fit.
    """
    needed = [key for key in expected if not key.startswith(optional) and not key.endswith(_COUNTER)]
    faults = {
        "missing": [key for key in needed if key not in weights],
        "unexpected": [key for key in weights if key not in expected and not key.endswith(_COUNTER)],
        "of the wrong shape": [
            f"{key} is {list(weights[key].shape)}, expected {list(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    return [
        f"{len(items)} {fault} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for fault, items in faults.items()
        if items
    ]
