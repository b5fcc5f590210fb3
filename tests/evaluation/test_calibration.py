import math

import numpy as np
import pytest
import torch

from iounet.evaluation import fit_calibration, measure_calibration


def test_by_hand():
    predicted = torch.tensor([0.12, 0.18, 0.95, 1.05, -0.2])
    true = torch.tensor([0.25, 0.35, 0.80, 0.90, 0.0])
    result = measure_calibration(predicted, true)
    # Groups: two boxes at 0.1 to 0.2 (0.15 against 0.30), two above 0.9 (1.00 against 0.85), and one below 0.
    assert result.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert result.error == pytest.approx((2 * 0.15 + 2 * 0.15 + 0.2) / 5)
    assert result.bias == pytest.approx((-0.13 - 0.17 + 0.15 + 0.15 - 0.2) / 5)
    assert result.predicted[[0, 1, 9]].tolist() == pytest.approx([-0.2, 0.15, 1.0])


def test_perfect_predictions_have_no_error():
    ious = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    result = measure_calibration(ious, ious)
    assert result.error == pytest.approx(0, abs=1e-7) and result.bias == 0


def test_no_boxes():
    assert math.isnan(measure_calibration(torch.zeros(0), torch.zeros(0)).error)


class TestFit:
    def test_finds_slope_and_offset(self):
        generator = np.random.default_rng(0)
        outputs = torch.from_numpy(2 * generator.standard_normal(20_000))
        expected = torch.sigmoid(0.6 * outputs - 0.8).numpy()
        ious = torch.from_numpy(generator.beta(8 * expected, 8 * (1 - expected)))  # with mean `expected`
        slope, offset = fit_calibration(outputs, ious).tolist()
        assert slope == pytest.approx(0.6, abs=0.02) and offset == pytest.approx(-0.8, abs=0.02)

    def test_removes_the_bias_of_predictions_that_are_too_high(self):
        generator = torch.Generator().manual_seed(1)
        ious = torch.rand(5000, generator=generator)
        outputs = 2 * (0.6 + 0.4 * ious + 0.05 * torch.randn(5000, generator=generator)) - 1
        assert measure_calibration((outputs + 1) / 2, ious).error > 0.25
        slope, offset = fit_calibration(outputs, ious)
        assert measure_calibration(torch.sigmoid(slope * outputs + offset), ious).error < 0.03

    def test_uninformative_outputs_keep_a_positive_slope(self):
        generator = torch.Generator().manual_seed(2)
        outputs, ious = torch.randn(1000, generator=generator), torch.rand(1000, generator=generator)
        slope, offset = fit_calibration(outputs - 0.1 * ious, ious)
        assert 0 < slope < 0.1
        assert torch.sigmoid(offset).item() == pytest.approx(ious.mean().item(), abs=0.02)

    def test_too_few_boxes_are_not_fitted(self):
        assert fit_calibration(torch.zeros(99), torch.zeros(99)) is None
        assert fit_calibration(torch.zeros(100), torch.full((100,), 0.5)) is not None
