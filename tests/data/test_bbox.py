import numpy as np
import pytest

from iounet.data.bbox import bbox_fault, is_finite_number


@pytest.mark.parametrize("value", [0, -1.5, 10**300, np.float32(2), np.int64(3)])
def test_finite_numbers(value):
    assert is_finite_number(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, True, None, "1", [1], 1j])
def test_everything_else(value):
    assert not is_finite_number(value)


def test_a_limit():
    assert is_finite_number(1e38, 3.4e38) and not is_finite_number(1e39, 3.4e38) and not is_finite_number(-1e39, 3.4e38)


@pytest.mark.parametrize(
    ("bbox", "fault"),
    [
        ([0, 1, 2.5, -3], None),  # the caller checks for negative sides
        ([0, 1, 2, float("nan")], "is not finite"),
        ([0, 1, 2, 10**400], "is not finite"),
        ([0, 1, 2], "is not four numbers"),
        ([0, 1, 2, 3, 4], "is not four numbers"),
        ([0, 1, 2, "3"], "is not four numbers"),
        ([0, 1, 2, True], "is not four numbers"),
        ((0, 1, 2, 3), "is not four numbers"),
        (None, "is not four numbers"),
        ("0123", "is not four numbers"),
    ],
)
def test_faults(bbox, fault):
    assert bbox_fault(bbox) == fault


def test_a_limit_of_magnitude():
    assert bbox_fault([0, 0, 1e39, 1]) is None and bbox_fault([0, 0, 1e39, 1], 3.4e38) == "is not finite"
