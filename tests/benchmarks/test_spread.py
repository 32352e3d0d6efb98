"""Scores of what LGDiST says beyond one value."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks._spread import _deviation_over_error, _spots
from scipy import sparse

from lgdist_scvi._poisson import moments_given_positive


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
    task = SimpleNamespace(
        estimand="captured",
        library=np.full(shape[0], library),
        measured=np.log1p(counts * per_count),
        scored=counts > 0,
    )
    assert _deviation_over_error(task, mean, np.full(shape, error)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("expected", [0.05, 1.0])
def test_a_true_standard_deviation_of_rates_scores_1(expected):
    rng, shape, error = np.random.default_rng(0), (4000, 100), 0.3
    rate = rng.gamma(10.0, expected / 10.0, shape)
    rest = rng.poisson(9 * rate)  # of ten parts one was given
    per_count = 1e4 / rest.sum(axis=1, keepdims=True)
    mean = 9 * rate * np.exp(error * rng.standard_normal(shape) - error**2 / 2) * per_count
    # from counts to their logarithms by the delta method, as the model does
    deviation = error * 9 * rate * per_count / (1 + mean)
    task = SimpleNamespace(estimand="rate", rest=sparse.csr_matrix(rest), scored=np.ones(shape, bool))
    assert _deviation_over_error(task, np.log1p(mean), deviation) == pytest.approx(1.0, abs=0.1)
    assert _deviation_over_error(task, np.log1p(mean), 2 * deviation) == pytest.approx(2.0, abs=0.2)


def test_intervals_are_scored_on_more_spots_where_few_entries_of_a_spot_are_hidden():
    scored = np.zeros((3000, 100), dtype=bool)
    scored[::2, :40] = True  # 1,500 spots with 40 entries each
    task = SimpleNamespace(scored=scored)
    few, many, all_of_them = (_spots(task, 0, n) for n in (0, 50_000, 10**9))
    assert (len(few), len(many), len(all_of_them)) == (400, 1250, 1500)
    assert np.isin(few, many).all() and (np.diff(many) > 0).all() and scored[all_of_them].any(axis=1).all()
