from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torchmetrics.functional.regression import continuous_ranked_probability_score

from lgdist_scvi import metrics


def test_coverage_of_known_quantiles():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, size=(1, 60))
    truth = rng.normal(scale=np.broadcast_to(scale, (500, 60)))
    mask = rng.random(truth.shape) < 0.8
    for level in (0.5, 0.9):
        half = np.broadcast_to(norm.ppf(0.5 + level / 2) * scale, truth.shape)
        table = metrics.interval_coverage(truth, -half, half, mask)
        assert table.loc["all", "coverage"] == pytest.approx(level, abs=0.01)
        assert table.loc["all", "width"] == pytest.approx((2 * half)[mask].mean())
        assert table.loc["all", "n"] == mask.sum()


def test_coverage_by_stratum():
    truth = np.array([[0.0, 5.0, 1.0], [0.0, 0.0, 9.0]])
    lower, upper = np.full((2, 3), -1.0), np.full((2, 3), 1.0)
    upper[:, 1] = 2
    mask = np.array([[True, True, True], [True, False, True]])
    by_gene = metrics.interval_coverage(truth, lower, upper, mask, by=np.array(["a", "b", "a"]))
    assert by_gene.index.tolist() == ["all", "a", "b"]
    assert by_gene["coverage"].tolist() == [3 / 5, 3 / 4, 0]  # bounds belong to the interval
    assert by_gene["width"].tolist() == [2.2, 2, 3]
    assert by_gene["n"].tolist() == [5, 4, 1]
    by_spot = metrics.interval_coverage(truth, lower, upper, mask, by=np.array([1, 0]))
    assert by_spot["coverage"].tolist() == [3 / 5, 1 / 2, 2 / 3]
    by_entry = metrics.interval_coverage(truth, lower, upper, mask, by=truth > 4)
    assert by_entry.loc[True, "coverage"] == 0
    with pytest.raises(ValueError, match=r"by has shape \(4,\)"):
        metrics.interval_coverage(truth, lower, upper, mask, by=np.arange(4))
    with pytest.raises(ValueError, match="lower exceeds upper in 5 of 5"):
        metrics.interval_coverage(truth, upper, lower, mask)


def test_crps_closed_form():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(50, 40))
    mask = np.ones_like(truth, dtype=bool)
    # E CRPS of N(0, 1) forecasting itself is 1 / sqrt(pi), for any number of samples
    for n_samples in (2, 20):
        samples = rng.normal(size=(n_samples, 50, 40))
        assert metrics.crps(samples, truth, mask) == pytest.approx(1 / np.sqrt(np.pi), abs=0.03)
    wide, shifted = 2 * samples, samples + 1
    assert metrics.crps(samples, truth, mask) < min(metrics.crps(wide, truth, mask), metrics.crps(shifted, truth, mask))
    # of agreeing samples, the absolute error
    assert metrics.crps(np.zeros((3, 50, 40)), truth, mask) == pytest.approx(np.abs(truth).mean())
    # torchmetrics divides the pairs by n^2 instead of n (n - 1)
    drawn, true = torch.tensor(samples.reshape(20, -1).T), torch.tensor(truth.ravel())
    absolute = (drawn - true[:, None]).abs().mean()
    reference = absolute - (absolute - continuous_ranked_probability_score(drawn, true)) * 20 / 19
    assert metrics.crps(samples, truth, mask) == pytest.approx(float(reference))


def test_energy_score():
    rng = np.random.default_rng(2)
    chol = np.linalg.cholesky(np.array([[1, 0.9], [0.9, 1]]))
    truth = rng.normal(size=(2000, 2)) @ chol.T
    mask = np.ones_like(truth, dtype=bool)
    exact = rng.normal(size=(10, 2000, 2)) @ chol.T
    independent = rng.normal(size=(10, 2000, 2))
    # only the joint score sees the missing correlation
    assert metrics.energy_score(exact, truth, mask) < metrics.energy_score(independent, truth, mask) - 0.01
    assert metrics.crps(exact, truth, mask) == pytest.approx(metrics.crps(independent, truth, mask), abs=0.02)
    # with one scored gene per spot it is the CRPS
    one = np.zeros_like(mask)
    one[:, 0] = True
    assert metrics.energy_score(exact, truth, one) == pytest.approx(metrics.crps(exact, truth, one))
    # exact samples: the mean distance of two independent draws, halved
    other = rng.normal(size=(2000, 2)) @ chol.T
    expected = np.linalg.norm(truth - other, axis=1).mean() / 2
    assert metrics.energy_score(exact, truth, mask) == pytest.approx(expected, rel=0.05)


def test_bad_samples_are_named():
    truth, mask = np.zeros((3, 2)), np.ones((3, 2), dtype=bool)
    for score in (metrics.crps, metrics.energy_score):
        with pytest.raises(
            ValueError, match=r"needs at least 2; draw more with model.posterior_predictive_sample\(n_samples=...\)"
        ):
            score(np.zeros((1, 3, 2)), truth, mask)
        with pytest.raises(ValueError, match=r"expected \(n_samples, 3, 2\)"):
            score(np.zeros((5, 2, 3)), truth, mask)
        with pytest.raises(ValueError, match="of samples are NaN"):
            score(np.full((5, 3, 2), np.nan), truth, mask)
