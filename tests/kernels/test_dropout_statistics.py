"""Frequencies and correlations of the dropout mask over ten million draws: all within five standard deviations."""

import math

import pytest
import torch

from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.dropout_mask import SITES_PER_LAYER, Plane, drop_threshold, keep_planes

SAMPLES, HEADS, ROWS, COLUMNS = 20, 8, 256, 256  # 10.5 million draws
DEVIATIONS = 5


def draws(threshold, seed=1234, site=0):
    """fp32 [samples, heads, rows, columns]: 1 dropped, 0 kept, for consecutive samples and sites."""
    return 1.0 + keep_planes(torch.arange(SAMPLES), Plane(seed, site, threshold), HEADS, ROWS, COLUMNS).float()


@pytest.fixture(scope="module", params=[1, 26, 128])
def case(request):
    drop = draws(request.param)
    assert drop.numel() >= 10**7
    return request.param / 256, drop


def test_means(case):
    p, drop = case
    for kept_dimension in (None, 0, 1, 2, 3):  # overall, and for each sample, site, row and column
        others = [d for d in range(4) if d != kept_dimension]
        means = drop.double().mean(others)
        draws_each = drop.numel() / means.numel()
        assert (means - p).abs().max() <= DEVIATIONS * math.sqrt(p * (1 - p) / draws_each), kept_dimension


def assert_uncorrelated(p, left, right):
    products = (left - p) * (right - p)
    correlation = products.mean(dtype=torch.float64) / (p * (1 - p))
    assert abs(correlation) <= DEVIATIONS / math.sqrt(products.numel())


@pytest.mark.parametrize(
    ("dimension", "lag"),
    [
        pytest.param(3, 1, id="next-column"),
        pytest.param(3, 2, id="next-counter-in-a-row"),
        pytest.param(3, 8, id="next-bits-of-a-word"),
        pytest.param(3, 64, id="next-tile-in-a-row"),
        pytest.param(2, 1, id="next-row"),
        pytest.param(2, 8, id="other-half-of-a-word"),
        pytest.param(2, 16, id="next-tile-in-a-column"),
        pytest.param(1, 1, id="next-head"),
        pytest.param(0, 1, id="next-sample"),
    ],
)
def test_no_correlation_within_the_draws(case, dimension, lag):
    p, drop = case
    length = drop.shape[dimension] - lag
    assert_uncorrelated(p, drop.narrow(dimension, 0, length), drop.narrow(dimension, lag, length))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"site": SITES_PER_LAYER}, id="next-layer"),
        pytest.param({"site": HEADS}, id="further-heads"),
        pytest.param({"seed": 1235}, id="next-seed"),
        pytest.param({"seed": 1234 + 2**32}, id="next-seed-in-the-high-half"),
    ],
)
def test_no_correlation_across_seeds_and_sites(case, other):
    p, drop = case
    assert_uncorrelated(p, drop, draws(round(256 * p), **other))


@pytest.mark.parametrize("dropout_p", [0.1, 0.25])
def test_the_scaled_output_is_unbiased_over_1000_seeds(dropout_p):
    seeds, rows, columns = 1000, 32, 64
    threshold = drop_threshold(dropout_p)
    x = torch.ones(rows, 1, columns, dtype=torch.float64)
    total = torch.zeros_like(x)
    for seed in range(seeds):
        plane = Plane(seed, 3, threshold)
        total += bias_dropout_residual(x, None, None, torch.tensor([5]), plane, save_mask=False, backend="torch")
    deviation = math.sqrt(threshold / (256 - threshold))  # of one output, whose expectation is 1
    assert (total / seeds - 1).abs().max() <= DEVIATIONS * deviation / math.sqrt(seeds)
    assert abs(total.mean() / seeds - 1) <= DEVIATIONS * deviation / math.sqrt(seeds * x.numel())
