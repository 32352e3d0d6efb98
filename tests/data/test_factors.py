from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi.data._factors import fit_factors

N_OBS, N_GENES, RANK = 400, 60, 3


@pytest.fixture
def simulated():
    """Residuals of known loadings with a third of the entries missing, and the complete signal."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(N_GENES, RANK)) * np.array([2.0, 1.0, 0.5])
    signal = rng.normal(size=(N_OBS, RANK)) @ loadings.T
    weights = (rng.random((N_OBS, N_GENES)) > 0.3) * rng.uniform(0.5, 2.0, (N_OBS, 1))
    residuals = np.where(weights > 0, weights * signal + rng.normal(size=signal.shape), 0.0)
    return residuals.astype(np.float32), weights.astype(np.float32), loadings


def test_loadings_are_recovered_in_spite_of_missing_entries(simulated):
    residuals, weights, truth = simulated
    loadings = fit_factors(residuals, weights, 6)
    covariance = loadings @ loadings.T
    expected = truth @ truth.T
    assert np.linalg.norm(covariance - expected) < 0.12 * np.linalg.norm(expected)
    # factors that are not there are pruned
    strength = np.sort((loadings**2).sum(axis=0))
    assert strength[:3].sum() < 0.05 * strength.sum()


def test_values_of_missing_entries_do_not_matter(simulated):
    residuals, weights, _ = simulated
    loadings = fit_factors(residuals, weights, 4)
    assert loadings.any()
    again = fit_factors(residuals.copy(), weights, 4)
    np.testing.assert_array_equal(loadings, again)


def test_more_factors_than_the_data_can_have(simulated):
    residuals, weights, _ = simulated
    loadings = fit_factors(residuals[:5], weights[:5], 32)
    assert loadings.shape == (N_GENES, 32)
    assert np.isfinite(loadings).all()
    assert not loadings[:, 4:].any()


def test_nothing_known():
    loadings = fit_factors(np.zeros((10, 5), np.float32), np.zeros((10, 5), np.float32), 2)
    assert not loadings.any()
