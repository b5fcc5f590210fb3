import pytest

from iounet.training import LossWatch
from iounet.training.loss_watch import WINDOW


def said(*levels):
    """Return (iteration, report) for a loss that stays at each level for WINDOW iterations."""
    watch = LossWatch()
    losses = [level for level in levels for _ in range(WINDOW)]
    answers = [(iteration, watch.add(loss)) for iteration, loss in enumerate(losses, start=1)]
    return [(iteration, answer) for iteration, answer in answers if answer]


def test_a_rising_loss_is_compared_with_the_lowest_mean_before():
    assert said(3.0, 1.8, 2.0, 4.4) == [(4 * WINDOW, (pytest.approx(1.8), pytest.approx(4.4)))]


def test_it_is_reported_once():
    assert len(said(1.0, 2.0, 3.0, 9.0)) == 1


@pytest.mark.parametrize("levels", [[3, 2, 1], [1, 1.4, 1, 1.4], [1.0]])
def test_a_falling_or_fluctuating_loss_is_not_reported(levels):
    assert said(*levels) == []


def test_a_single_peak_is_not_reported():
    watch = LossWatch()
    losses = [1.0] * (2 * WINDOW)
    losses[WINDOW + 3] = 10.0
    assert not any(watch.add(loss) for loss in losses)
