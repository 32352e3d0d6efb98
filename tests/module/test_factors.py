"""The linear expert against closed forms."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module._factors import SpatialFactors

N_GENES, N_FACTORS = 30, 3
NOBODY = torch.zeros(1, 2, dtype=torch.long)  # rows of two neighbours that are not there


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(N_GENES, N_FACTORS, generator=generator)
    return SpatialFactors(loadings)


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
    mean, variance = SpatialFactors(loadings).posterior(residuals, weights)
    torch.testing.assert_close(mean[:, :16], torch.zeros(3, 16))
    torch.testing.assert_close(variance[:, :16], torch.ones(3, 16))
    supported, _ = SpatialFactors(loadings[:, 16:]).posterior(residuals, weights)
    torch.testing.assert_close(mean[:, 16:], supported)


def test_reliability_is_the_share_of_the_variance_that_is_known(factors):
    residuals, weights = data(4)
    around = factors.around(residuals, weights, NOBODY.expand(4, -1), NOBODY.expand(4, -1))
    *_, reliability = factors.parts(residuals, weights, around)
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
    around = factors.around(*data(2, seed=2), NOBODY.expand(3, -1), NOBODY.expand(3, -1))
    score, _ = factors.posterior(residuals, weights)
    _, pull, carried, _ = factors.parts(residuals, weights, around)
    assert not carried.any()
    torch.testing.assert_close(pull, -score @ factors.loadings.T)


def test_neighbours_are_averaged(factors):
    residuals, weights = data(5, seed=2)
    index, valid = torch.tensor([[4, 1], [2, 0], [0, 0]]), torch.tensor([[1, 1], [1, 0], [0, 0]])
    score, carried = factors.around(residuals, weights, index, valid)
    alone, _ = factors.posterior(residuals, weights)
    torch.testing.assert_close(score, torch.stack([(alone[4] + alone[1]) / 2, alone[2], torch.zeros(N_FACTORS)]))
    left = weights * (residuals - weights * (alone @ factors.loadings.T))
    torch.testing.assert_close(carried[0], (left[4] + left[1]) / (weights[4] ** 2 + weights[1] ** 2 + 1))
    torch.testing.assert_close(carried[1], left[2] / (weights[2] ** 2 + 1))
    assert not carried[2].any()


def test_gain_is_that_which_made_the_data(factors):
    generator = torch.Generator().manual_seed(3)
    n = 2000
    own, pull, carried = torch.randn(3, n, N_GENES, generator=generator)
    weight = (torch.rand(n, N_GENES, generator=generator) > 0.5).float()
    target = weight * (own + 0.3 * pull + 0.6 * carried + 0.1 * torch.randn(n, N_GENES, generator=generator))
    factors.fit_neighbors([(target, weight, own, pull, carried)])
    assert factors.pull.item() == pytest.approx(0.3, abs=0.01)
    assert factors.gain.item() == pytest.approx(0.6, abs=0.01)
