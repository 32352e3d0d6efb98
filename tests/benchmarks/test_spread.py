"""Scores of what LGDiST says beyond one value."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks._spread import _deviation_over_error

from lgdist_scvi.metrics._poisson import moments_given_positive


@pytest.mark.parametrize("expected", [1.0, 3.0, 30.0])
def test_a_true_standard_deviation_scores_1_even_where_most_counts_are_1(expected):
    rng, shape, library = np.random.default_rng(0), (500, 200), 2_000.0
    per_count = np.full(shape, 1e4 / library)
    rate = rng.gamma(10.0, expected / 10.0, shape)
    counts = rng.poisson(rate).astype(np.float64)
    truth, mean = (
        moments_given_positive(m.ravel(), per_count.ravel())[0].reshape(shape)
        for m in (rate, rate * np.exp(0.5 * rng.standard_normal(shape)))
    )
    error = np.sqrt(np.mean((mean - truth)[counts > 0] ** 2))
    ratio = _deviation_over_error(
        SimpleNamespace(estimand="captured"),
        np.log1p(counts * per_count),
        counts > 0,
        mean,
        np.full(shape, error),
        np.full(shape[0], library),
    )
    assert ratio == pytest.approx(1.0, abs=0.1)


def test_a_true_standard_deviation_of_rates_scores_1():
    rng, shape, library, error = np.random.default_rng(0), (400, 100), 2_000.0, 0.3
    rate = rng.gamma(10.0, 0.1, shape)
    per_count = 1e4 / library
    mean = rate * np.exp(error * rng.standard_normal(shape) - error**2 / 2)
    # from counts to their logarithms by the delta method, as the model does
    deviation = error * rate * per_count / (1 + mean * per_count)
    arguments = (np.log1p(rng.poisson(rate) * per_count), np.ones(shape, bool), np.log1p(mean * per_count))
    task, libraries = SimpleNamespace(estimand="rate"), np.full(shape[0], library)
    assert _deviation_over_error(task, *arguments, deviation, libraries) == pytest.approx(1.0, abs=0.1)
    assert _deviation_over_error(task, *arguments, 2 * deviation, libraries) == pytest.approx(2.0, abs=0.2)
