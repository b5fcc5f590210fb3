import math

import pytest
import torch

from iounet.evaluation import calibrate


def test_by_hand():
    predicted = torch.tensor([0.12, 0.18, 0.95, 1.05, -0.2])
    true = torch.tensor([0.25, 0.35, 0.80, 0.90, 0.0])
    result = calibrate(predicted, true)
    # Groups: the two at 0.1 to 0.2 (0.15 against 0.30), those above 0.9 (1.00 against 0.85), and the one below 0.
    assert result.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert result.error == pytest.approx((2 * 0.15 + 2 * 0.15 + 0.2) / 5)
    assert result.bias == pytest.approx((-0.13 - 0.17 + 0.15 + 0.15 - 0.2) / 5)
    assert result.predicted[[0, 1, 9]].tolist() == pytest.approx([-0.2, 0.15, 1.0])


def test_perfect_predictions_have_no_error():
    ious = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    result = calibrate(ious, ious)
    assert result.error == pytest.approx(0, abs=1e-7) and result.bias == 0


def test_no_boxes():
    assert math.isnan(calibrate(torch.zeros(0), torch.zeros(0)).error)
