"""Distributions of measured counts, and their central intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lgdist_scvi.module.likelihood import CountPredictive, NormalPredictive
from lgdist_scvi.module.likelihood._count_quantiles import nbinom_quantile


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.4), (4.0, 4.0), (30.0, 300.0)])
@pytest.mark.parametrize("captured", [False, True])
def test_count_predictive_probabilities(mean, variance, captured):
    counts = np.arange(0, 2000)
    theta = mean**2 / max(variance - mean, 1e-12)
    pmf = (
        stats.poisson.pmf(counts, mean) if variance == mean else stats.nbinom.pmf(counts, theta, theta / (theta + mean))
    )
    if captured:
        pmf[0] = 0
    pmf /= pmf.sum()
    shape = (1, len(counts))
    predictive = CountPredictive(np.full(shape, mean), np.full(shape, variance), np.array([[5000.0]]), captured)
    asked = counts[None, int(captured) :]
    np.testing.assert_allclose(predictive.at_most(counts[None])[:, int(captured) :], np.cumsum(pmf)[asked], atol=1e-7)
    expected = np.cumsum(pmf[::-1])[::-1]
    np.testing.assert_allclose(predictive.at_least(counts[None])[:, int(captured) :], expected[asked], atol=1e-7)
    # the smallest range with no more than the tail on either side
    for tail in (0.4, 0.1, 0.01):
        deviation = -stats.norm.ppf(tail)
        lower, upper = (np.expm1(end[0, 0]) * 5000 / 1e4 for end in predictive.interval(np.array([deviation])))
        inside = counts[(np.cumsum(pmf) >= tail) & (expected > tail)]
        assert (round(lower), round(upper)) == (inside[0], inside[-1])


def _predictives():
    rng = np.random.default_rng(0)
    mean, library = np.exp(rng.normal(0, 2, (400, 20))), rng.uniform(100, 9000, (400, 1))
    for captured in (False, True):
        yield CountPredictive(mean, mean + 0.3 * mean**2, library, captured)
    yield NormalPredictive(np.log1p(mean / library * 1e4), np.full(mean.shape, 0.4), library)


@pytest.mark.parametrize("predictive", list(_predictives()), ids=["counts", "captured counts", "captured values"])
def test_a_count_lies_in_the_interval_of_its_score_and_in_no_narrower_one(predictive):
    least = 0 if isinstance(predictive, CountPredictive) and not predictive.captured else 1
    counts = np.maximum(np.random.default_rng(1).poisson(3, predictive.mean.shape), least)
    score = predictive.score(counts)
    values = np.log1p(counts / predictive.library * 1e4)
    lower, upper = predictive.interval(score)
    assert ((lower <= values) & (values <= upper)).all()
    lower, upper = predictive.interval(np.maximum(score - 1e-3, 0.0))
    assert not ((lower <= values) & (values <= upper))[score > 1e-3].any()
    # the narrowest is a single count, and all ends are values of counts
    lower, upper = (np.expm1(end.astype(float)) * predictive.library / 1e4 for end in predictive.interval(np.zeros(20)))
    np.testing.assert_allclose(lower, upper, rtol=1e-3, atol=1e-3)
    for end in predictive.interval(np.full(20, 1.3)):
        count = np.expm1(end.astype(float)) * predictive.library / 1e4
        np.testing.assert_allclose(count, np.round(count), rtol=1e-3, atol=1e-3)
        assert (np.round(count) >= least).all()


@pytest.mark.parametrize("predictive", list(_predictives()), ids=["counts", "captured counts", "captured values"])
def test_single_entries_are_scored_as_among_all(predictive):
    counts = np.random.default_rng(1).poisson(3, predictive.mean.shape) + 1
    rows, genes = np.nonzero(np.random.default_rng(2).random(counts.shape) < 0.1)
    score = predictive.of_entries(rows, genes).score(counts[rows, genes])
    np.testing.assert_array_equal(score, predictive.score(counts)[rows, genes])


def test_the_widest_interval_is_finite():
    for predictive in _predictives():
        lower, upper = predictive.interval(np.array([1e9]))
        assert np.isfinite(lower).all()
        assert np.isfinite(upper).all()
        assert (upper > lower).all()


@pytest.mark.parametrize("probability", ["between 0 and 1", "next to 1", 0.0, 0.95])
def test_quantiles_of_counts_are_those_of_scipy(probability):
    rng = np.random.default_rng(0)
    shape = (200, 50)
    mean, theta = np.exp(rng.normal(-1, 2.5, shape)), np.exp(rng.uniform(np.log(1e-3), np.log(1e8), shape))
    drawn = {"between 0 and 1": rng.random(shape), "next to 1": 1 - 10 ** -rng.uniform(1, 8, shape)}
    asked = drawn.get(probability, np.full(shape, probability))
    expected = np.maximum(stats.nbinom.ppf(asked, theta, theta / (theta + mean)), 0.0)  # scipy's of 0 is -1
    assert len(np.unique(expected)) > 20 or probability == 0.0
    np.testing.assert_array_equal(nbinom_quantile(asked, mean, theta), expected)
