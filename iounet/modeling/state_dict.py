"""Whether a state dict fits a module."""

from collections.abc import Mapping

from torch import Tensor

# Counters of batch norms, which frozen norms lack and inference does not need.
_COUNTER = "num_batches_tracked"


def state_dict_faults(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], optional: tuple[str, ...] = ()
) -> list[str]:
    """What keeps ``weights`` from being the parameters of a module, a phrase for each kind of fault; [] if they fit.

    Args:
        expected: state dict of the module.
        optional: parameters whose names begin with one of these may be missing.
    """
    needed = [key for key in expected if not key.startswith(optional) and not key.endswith(_COUNTER)]
    faults = {
        "missing": [key for key in needed if key not in weights],
        "left over": [key for key in weights if key not in expected and not key.endswith(_COUNTER)],
        "of another shape": [
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
