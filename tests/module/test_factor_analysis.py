"""The linear expert against closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lgdist_scvi.module import Inputs, Spots
from lgdist_scvi.module.experts import FactorAnalysis, TrainingSpots, fit_factors
from lgdist_scvi.module.likelihood import PoissonLikelihood

N_GENES, N_FACTORS = 30, 3
TYPICAL = float(N_GENES)  # library in which every gene is expected once
NOBODY = torch.zeros(1, 2, dtype=torch.long)  # rows of two neighbours that are not there


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(N_GENES, N_FACTORS, generator=generator)
    return expert_of(loadings)


def expert_of(loadings):
    n_genes, n_factors = loadings.shape
    expert = FactorAnalysis(n_genes, SimpleNamespace(n_factors=n_factors, n_profiles=1, n_mixtures=1))
    expert.loadings.copy_(loadings)
    expert.typical_library.fill_(TYPICAL)
    return expert


def spots_of(residuals, visible):
    """Spots of the typical library with these Pearson residuals, and that library."""
    library = torch.full((len(residuals), 1), TYPICAL)
    return Spots(residuals + 1.0, visible, library), library


def data(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.rand(n, N_GENES, generator=generator) > 0.4).float()
    return torch.randn(n, N_GENES, generator=generator) * weights, weights


def test_posterior_is_that_of_the_joint_gaussian(factors):
    """E[w | seen entries] = A' (A A' + noise)^-1 r over the seen entries of each row, with A = q loadings."""
    residuals, weights = data(4)
    # spots with nothing missing and signals of different strength
    weights[2:] = torch.tensor([[0.5], [2.0]])
    mean, variance = factors.posterior(residuals, weights)
    for row in range(4):
        seen = weights[row] > 0
        a = weights[row, seen, None] * factors.loadings[seen]
        covariance = a @ a.T + torch.eye(int(seen.sum()))
        gain = a.T @ torch.linalg.inv(covariance)
        torch.testing.assert_close(mean[row], gain @ residuals[row, seen], atol=1e-4, rtol=1e-4)
        left = torch.eye(N_FACTORS) - gain @ a
        torch.testing.assert_close(variance[row], left.diagonal(), atol=1e-4, rtol=1e-4)


def test_factors_that_fitting_pruned():
    """Loadings of 1e-30, which float32 solvers stumble over, are none."""
    torch.manual_seed(0)
    loadings = torch.randn(200, 32)
    loadings[:, :16] *= 1e-30
    residuals, weights = torch.randn(3, 200), torch.ones(3, 200)
    mean, variance = expert_of(loadings).posterior(residuals, weights)
    torch.testing.assert_close(mean[:, :16], torch.zeros(3, 16))
    torch.testing.assert_close(variance[:, :16], torch.ones(3, 16))
    supported, _ = expert_of(loadings[:, 16:]).posterior(residuals, weights)
    torch.testing.assert_close(mean[:, 16:], supported)


def test_reliability_is_the_share_of_the_variance_that_is_known(factors):
    residuals, weights = data(4)
    neighborhood = factors.neighborhood(*spots_of(residuals, weights), NOBODY.expand(4, -1), NOBODY.expand(4, -1))
    *_, reliability = factors.parts(residuals, weights, neighborhood)
    _, variance = factors.posterior(residuals, weights)
    strength = (factors.loadings**2).sum(0)
    torch.testing.assert_close(reliability[:, 0], 1 - variance @ strength / strength.sum(), atol=1e-5, rtol=1e-5)
    assert (reliability > 0).all() and (reliability < 1).all()


def test_nothing_visible_is_the_prior(factors):
    zeros = torch.zeros(2, N_GENES)
    mean, variance = factors.posterior(zeros, zeros)
    assert not mean.any()
    torch.testing.assert_close(variance, torch.ones(2, N_FACTORS))


def test_no_neighbour_changes_nothing(factors):
    residuals, weights = data(3)
    factors.pull.fill_(0.5)
    factors.gain.fill_(0.5)
    neighborhood = factors.neighborhood(*spots_of(*data(2, seed=2)), NOBODY.expand(3, -1), NOBODY.expand(3, -1))
    score, _ = factors.posterior(residuals, weights)
    _, pull, carried, _ = factors.parts(residuals, weights, neighborhood)
    assert not carried.any()
    torch.testing.assert_close(pull, -score @ factors.loadings.T)


def test_neighbours_are_averaged(factors):
    residuals, weights = data(5, seed=2)
    index, valid = torch.tensor([[4, 1], [2, 0], [0, 0]]), torch.tensor([[1, 1], [1, 0], [0, 0]])
    score, carried = factors.neighborhood(*spots_of(residuals, weights), index, valid)
    alone, _ = factors.posterior(residuals, weights)
    torch.testing.assert_close(score, torch.stack([(alone[4] + alone[1]) / 2, alone[2], torch.zeros(N_FACTORS)]))
    left = weights * (residuals - weights * (alone @ factors.loadings.T))
    torch.testing.assert_close(carried[0], (left[4] + left[1]) / (weights[4] ** 2 + weights[1] ** 2 + 1))
    torch.testing.assert_close(carried[1], left[2] / (weights[2] ** 2 + 1))
    assert not carried[2].any()


def test_residuals_are_those_of_pearson(factors):
    """Their variance is 1 under Poisson noise whatever the depth, and their weight grows with its square root."""
    generator = torch.Generator().manual_seed(0)
    library = torch.tensor([[10.0], [1000.0]]).repeat_interleave(20_000, 0)
    counts = torch.poisson((library / N_GENES).expand(-1, N_GENES), generator=generator)
    visible = (torch.rand(counts.shape, generator=generator) > 0.5).float()
    residuals, weights = factors.residuals(Spots(counts, visible, library), library)
    for part in (slice(20_000), slice(20_000, None)):
        assert residuals[part][visible[part] > 0].std().item() == pytest.approx(1.0, abs=0.01)
    assert not residuals[visible == 0].any()
    torch.testing.assert_close(weights, visible * (library / TYPICAL).sqrt())


def test_pull_and_gain_are_those_that_made_the_data(factors):
    """Entries that fitting hides in turn follow the neighbours by known shares."""
    n, generator = 2000, torch.Generator().manual_seed(3)
    likelihood = PoissonLikelihood(N_GENES, n_latent=2, compositional=False)
    ones = torch.ones(N_GENES)
    likelihood.set_statistics(factors.gene_rate, ones, ones, TYPICAL)
    neighbors, library = spots_of(*data(n))
    index, valid = torch.arange(n)[:, None], torch.ones(n, 1, dtype=torch.bool)
    residuals = torch.randn(n, N_GENES, generator=generator)
    visible = (torch.rand(n, N_GENES, generator=generator) > 0.5).float()
    hidden = (torch.rand(n, N_GENES, generator=torch.Generator().manual_seed(7)) < 0.1).float()  # as `fit` will draw
    shown = visible * (1.0 - hidden)
    neighborhood = factors.neighborhood(neighbors, library, index, valid)
    own, pull, carried, _ = factors.parts(residuals * shown, shown, neighborhood)
    made = own + 0.3 * pull + 0.6 * carried + 0.1 * torch.randn(n, N_GENES, generator=generator)
    centre, _ = spots_of(torch.where(hidden > 0, made, residuals), visible)
    inputs = Inputs(
        centre, neighbors, index, index.float(), valid, centre.counts, visible, centre.counts, 1.0, torch.zeros(n, 1)
    )
    factors.fit(TrainingSpots(centre, index, valid, [inputs]), likelihood, torch.Generator().manual_seed(7))
    assert factors.pull.item() == pytest.approx(0.3, abs=0.01)
    assert factors.gain.item() == pytest.approx(0.6, abs=0.01)


# ---- fitting the loadings


N_OBS, N_MANY, RANK = 400, 60, 3


@pytest.fixture
def simulated():
    """Residuals of known loadings with a third of the entries missing, and the complete signal."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(N_MANY, RANK)) * np.array([2.0, 1.0, 0.5])
    signal = rng.normal(size=(N_OBS, RANK)) @ loadings.T
    weights = (rng.random((N_OBS, N_MANY)) > 0.3) * rng.uniform(0.5, 2.0, (N_OBS, 1))
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
    assert loadings.shape == (N_MANY, 32)
    assert np.isfinite(loadings).all()
    assert not loadings[:, 4:].any()


def test_nothing_known():
    loadings = fit_factors(np.zeros((10, 5), np.float32), np.zeros((10, 5), np.float32), 2)
    assert not loadings.any()
