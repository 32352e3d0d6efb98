from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import poisson
from sklearn.metrics import d2_tweedie_score

from lgdist_scvi import metrics


def test_floor_matches_monte_carlo():
    rng = np.random.default_rng(0)
    expected = np.array([0.3, 0.7, 3.0, 20.0, 90.0, 150.0])
    library = np.array([1500.0])
    floors = []
    for m in expected:
        draws = rng.poisson(m, 1_000_000)
        floors.append(np.log1p(draws[draws > 0] / library[0] * 1e4).var())
        got = metrics.poisson_floor(
            np.array([[1]]), library, np.array([[True]]), rate=np.array([[m]]) / library[:, None]
        )
        assert got == pytest.approx(floors[-1], rel=0.015)
    # entries are averaged
    got = metrics.poisson_floor(np.ones((1, 6)), library, np.ones((1, 6), bool), rate=expected[None] / library[:, None])
    assert got == pytest.approx(np.mean(floors), rel=0.01)


def test_floor_of_known_rates_is_the_error_of_the_best_prediction():
    rng = np.random.default_rng(1)
    library = rng.uniform(800, 4000, size=300)
    rate = rng.gamma(0.8, size=(1, 40)) * rng.gamma(3.0, size=(300, 40))
    rate /= rate.sum(axis=1, keepdims=True) * 2
    counts = rng.poisson(library[:, None] * rate)
    hidden = (counts > 0) & (rng.random(counts.shape) < 0.5)
    floor = metrics.poisson_floor(counts, library, hidden, rate=rate)
    # the mean given x > 0, by brute force
    x = np.arange(1, 400)[:, None, None]
    weights = poisson.pmf(x, library[:, None] * rate)
    best = (weights * np.log1p(x / library[:, None] * 1e4)).sum(axis=0) / weights.sum(axis=0)
    truth = np.log1p(counts / library[:, None] * 1e4)
    assert floor == pytest.approx(metrics.completion_scores(truth, best, hidden)["mse"], rel=0.04)
    # the count in place of its expectation is close enough to judge by
    assert metrics.poisson_floor(sparse.csr_matrix(counts), library, hidden) == pytest.approx(floor, rel=0.06)


def test_floor_ignores_zeros_and_names_bad_input():
    counts = np.array([[0, 2], [0, 0]])
    mask = np.ones((2, 2), dtype=bool)
    library = np.array([100.0, 0.0])
    only = metrics.poisson_floor(counts[:1], library[:1], mask[:1])
    assert metrics.poisson_floor(counts, library, mask) == only > 0
    with pytest.raises(ValueError, match="count 0"):
        metrics.poisson_floor(np.zeros((2, 2)), library, mask)
    with pytest.raises(ValueError, match="library is 0 in 1 spots"):
        metrics.poisson_floor(counts + 1, library, mask)
    with pytest.raises(ValueError, match="one value for each of 2"):
        metrics.poisson_floor(counts, library[:1], mask)
    with pytest.raises(ValueError, match="not whole numbers"):
        metrics.poisson_floor(counts + 0.5, library, mask)


def test_deviance_explained():
    rng = np.random.default_rng(2)
    library = rng.uniform(500, 2000, size=200)
    rate = rng.gamma(2.0, size=(200, 30))
    rate /= rate.sum(axis=1, keepdims=True)
    train, test = rng.poisson(library[:, None] * rate), rng.poisson(library[:, None] * rate)
    gene_mean = train.sum(axis=0) / library.sum()
    score = metrics.poisson_deviance_explained(test, rate, library, gene_mean)
    assert 0.5 < score < 1
    assert metrics.poisson_deviance_explained(
        test, np.broadcast_to(gene_mean, rate.shape), library, gene_mean
    ) == pytest.approx(0)
    assert metrics.poisson_deviance_explained(sparse.csr_matrix(test), rate, library, gene_mean) == pytest.approx(score)
    # the model that knows the rates beats the one that memorised a half
    assert metrics.poisson_deviance_explained(test, train / library[:, None] + 1e-6, library, gene_mean) < score
    # one gene, equal libraries: scikit-learn's D2 against the mean of the scored counts
    same = np.full(200, 1000.0)
    assert metrics.poisson_deviance_explained(test[:, :1], rate[:, :1], same) == pytest.approx(
        d2_tweedie_score(test[:, 0], 1000 * rate[:, 0], power=1)
    )
    half = rng.random(test.shape) < 0.5
    assert metrics.poisson_deviance_explained(test, rate, library, gene_mean, mask=half) != score


def test_deviance_of_zero_rates_masks_and_empty_spots():
    counts = np.array([[3, 0, 1], [0, 0, 0], [2, 5, 0]])
    rate = np.array([[0.5, 0.0, 0.0], [0.4, 0.3, 0.3], [0.2, 0.8, np.nan]])  # what is not scored may be anything
    scored = np.array([[True, True, True], [True, True, True], [True, True, False]])
    library, gene_mean = np.array([10.0, 0.0, 20.0]), np.array([0.2, 0.3, 0.1])

    def deviance(expected: np.ndarray) -> float:
        x, m = counts[scored], expected[scored]
        logs = np.log(np.divide(x, m, out=np.ones_like(m), where=x > 0))
        return 2 * np.sum(x * logs - x + m)

    ours, means = (library[:, None] * np.maximum(model, 1e-12) for model in (rate, gene_mean[None]))
    score = metrics.poisson_deviance_explained(counts, rate, library, gene_mean, mask=scored)
    assert score == pytest.approx(1 - deviance(ours) / deviance(means), rel=1e-12)


def test_variance_explained_takes_sampling_noise_off():
    rng = np.random.default_rng(3)
    library = rng.uniform(300, 900, size=1500)
    rate = rng.gamma(3.0, size=(1500, 40)) * rng.gamma(0.5, size=(1, 40))
    rate /= rate.sum(axis=1, keepdims=True)
    train, test = rng.poisson(library[:, None] * rate), rng.poisson(library[:, None] * rate)
    gene_mean = train.sum(axis=0) / library.sum()

    def without_noise(prediction: np.ndarray) -> float:
        """What the estimate is an estimate of, from the true rates."""
        weight = 1 / (library[:, None] * gene_mean).sum(axis=0)
        error, variance = (
            (weight * (library[:, None] * (rate - model)) ** 2).sum() for model in (prediction, gene_mean[None])
        )
        return 1 - error / variance

    for prediction in (rate, (rate + gene_mean) / 2, train / library[:, None], np.tile(gene_mean, (1500, 1))):
        score = metrics.poisson_variance_explained(test, prediction, library, gene_mean)
        assert score == pytest.approx(without_noise(prediction), abs=0.02)
    assert metrics.poisson_deviance_explained(test, rate, library, gene_mean) < 0.95
    part = rng.random(test.shape) < 0.7
    got = metrics.poisson_variance_explained(sparse.csr_matrix(test), rate, library, gene_mean, mask=part)
    assert got == pytest.approx(1, abs=0.03)


def test_variance_explained_of_less_than_noise_is_not_a_number():
    assert np.isnan(metrics.poisson_variance_explained(np.ones((4, 3), int), np.full((4, 3), 1 / 3)))
    nothing = np.zeros((4, 3), bool)
    with pytest.raises(ValueError, match="no entry to score"):
        metrics.poisson_variance_explained(np.ones((4, 3), int), np.full((4, 3), 1 / 3), mask=nothing)


def test_unseen_genes_do_not_flatter():
    counts = np.array([[10, 0, 3], [9, 1, 4]])
    unseen = np.array([0.7, 0.0, 0.3])
    rate = np.array([[0.7, 0.05, 0.25]] * 2)
    assert metrics.poisson_deviance_explained(counts, rate, gene_mean=unseen) < 1
    assert metrics.poisson_deviance_explained(counts, np.tile(unseen, (2, 1)), gene_mean=unseen) < 0
    with pytest.raises(ValueError, match="expected one share for each of 3 genes"):
        metrics.poisson_deviance_explained(counts, rate, gene_mean=unseen[:2])
    with pytest.raises(ValueError, match="2 scored entries of rate are NaN"):
        metrics.poisson_deviance_explained(
            counts, np.where(counts == 0, np.nan, rate) - (counts == 1), gene_mean=unseen
        )


def test_log_likelihood():
    rng = np.random.default_rng(3)
    rate = rng.dirichlet(np.ones(8), size=20)
    counts = rng.poisson(100 * rate)
    library = np.full(20, 100.0)
    expected = poisson.logpmf(counts, 100 * rate)
    assert metrics.poisson_log_likelihood(counts, rate, library) == pytest.approx(expected.mean())
    mask = rng.random(counts.shape) < 0.3
    assert metrics.poisson_log_likelihood(counts, rate, library, mask) == pytest.approx(expected[mask].mean())
    assert np.isfinite(metrics.poisson_log_likelihood(counts, np.zeros_like(rate), library))
