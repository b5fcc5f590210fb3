import math

import numpy as np
import pytest
import torch
from PIL import Image

from iounet.evaluation.correlation import correlation_figure, pearson


def test_pearson_matches_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    y = 0.3 * x + rng.normal(size=100)
    assert pearson(x.tolist(), y.tolist()) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert pearson(torch.tensor(x), torch.tensor(-2 * x + 1)) == pytest.approx(-1)


def test_pearson_of_a_tight_cluster_keeps_its_precision():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert pearson(1e6 + x, 1e6 + x**2) == pytest.approx(pearson(x, x**2), abs=1e-9)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([0.1] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0], [5.0, 5.0])])
def test_undefined_pearson_is_nan(x, y):
    assert math.isnan(pearson(x, y))


def test_pearson_of_different_lengths_is_an_error():
    with pytest.raises(ValueError, match=r"got \[2\], \[3\]"):
        pearson([1.0, 2.0], [1.0, 2.0, 3.0])


def test_figure_counts_boxes_of_at_least_min_iou(tmp_path):
    ious = torch.tensor([0.1, 0.5, 0.6, 0.8, 0.9])
    scores = torch.tensor([1.0, 0.7, 0.2, 0.6, 0.3])
    predicted_ious = torch.tensor([1.0, 0.45, 0.5, 0.7, 0.95])
    numbers = correlation_figure(ious, scores, predicted_ious, tmp_path / "figure.png")
    assert numbers == {
        "score": pytest.approx(np.corrcoef(ious[1:], scores[1:])[0, 1]),
        "predicted_iou": pytest.approx(np.corrcoef(ious[1:], predicted_ious[1:])[0, 1]),
        "num_boxes": 4,
    }
    with Image.open(tmp_path / "figure.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1200, 600))


def test_figure_draws_a_fixed_sample_but_counts_all_boxes(tmp_path):
    ious, scores, predicted_ious = torch.rand(3, 12_000, generator=torch.Generator().manual_seed(0))
    numbers = correlation_figure(ious, scores, predicted_ious, tmp_path / "a.png", min_iou=0.0)
    correlation_figure(ious, scores, predicted_ious, tmp_path / "b.png", min_iou=0.0)
    assert numbers["num_boxes"] == 12_000
    assert numbers["score"] == pytest.approx(pearson(ious, scores))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_figure_without_boxes(tmp_path):
    numbers = correlation_figure(*torch.zeros(3, 4), tmp_path / "figure.png")
    assert math.isnan(numbers["score"]) and math.isnan(numbers["predicted_iou"]) and numbers["num_boxes"] == 0
    assert (tmp_path / "figure.png").stat().st_size > 0
