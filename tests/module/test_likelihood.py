from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lgdist_scvi.module.likelihood import (
    LIKELIHOODS,
    CapturedLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    expected_captured,
)

MEANS = np.array([1e-9, 1e-5, 1e-3, 0.1, 1.0, 3.0, 10.0, 20.0, 60.0, 300.0])
THETAS = [0.05, 0.5, 3.0, 100.0]


def poisson(n_genes: int) -> PoissonLikelihood:
    return PoissonLikelihood(n_genes, n_latent=2, compositional=False)


def negative_binomial(theta: float, n_genes: int = 1) -> NegativeBinomialLikelihood:
    likelihood = NegativeBinomialLikelihood(n_genes, n_latent=2, compositional=False)
    likelihood.log_theta.data.fill_(np.log(theta))
    return likelihood


def normal(n_genes: int) -> CapturedLikelihood:
    return CapturedLikelihood(n_genes, n_latent=2, compositional=False)


def negative_log_likelihood(likelihood: PoissonLikelihood, counts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Of counts, entry by entry, up to a constant of the counts."""
    if isinstance(likelihood, NegativeBinomialLikelihood):
        return likelihood.dispersion_loss(counts, mean)
    return likelihood.training_loss(mean, counts, torch.ones_like(mean))


def negative_log_likelihood_of_values(
    likelihood: CapturedLikelihood, values: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Of log1p(CP10K) values, up to a constant: in a library of 10,000 they are log1p of counts."""
    return likelihood.train().training_loss(mean, torch.expm1(values), torch.full_like(mean[:, :1], 1e4))


def scipy_counts(theta: float | None, mean: np.ndarray):
    return stats.poisson(mean) if theta is None else stats.nbinom(theta, theta / (theta + mean))


@pytest.mark.parametrize("theta", [None, *THETAS])
def test_count_log_likelihood_up_to_a_constant_of_the_counts(theta):
    counts = torch.arange(0, 60.0)
    likelihood = poisson(60) if theta is None else negative_binomial(theta, 60)
    constants = []
    for mean in (0.01, 0.7, 12.0, 300.0):
        ours = negative_log_likelihood(likelihood, counts[None], torch.full((1, 60), mean))[0].detach().numpy()
        constants.append(ours + scipy_counts(theta, mean).logpmf(counts.numpy()))
    for constant in constants[1:]:  # the same constant for every mean
        np.testing.assert_allclose(constant, constants[0], atol=2e-3)


def test_negative_binomial_variance():
    theta, mean = 2.5, 4.0
    likelihood = negative_binomial(theta, 1)
    assert likelihood.theta.item() == pytest.approx(theta)
    counts = torch.arange(0, 2000.0)[:, None]
    log_pmf = -negative_log_likelihood(likelihood, counts, torch.full_like(counts, mean))
    pmf = torch.softmax(log_pmf[:, 0].double(), 0)
    variance = (pmf * (counts[:, 0] - mean) ** 2).sum()
    assert variance.item() == pytest.approx(mean + mean**2 / theta, rel=1e-4)


def test_normal_log_likelihood_up_to_a_constant():
    likelihood = normal(3)
    likelihood.log_sigma.data = torch.tensor([-1.0, 0.0, 0.7])
    values, mean = torch.randn(50, 3), torch.randn(50, 3)
    ours = negative_log_likelihood_of_values(likelihood, values, mean).detach().numpy()
    theirs = -stats.norm.logpdf(values.numpy(), mean.numpy(), likelihood.sigma.detach().numpy())
    difference = ours - theirs
    np.testing.assert_allclose(difference, difference[0, 0], atol=1e-4)


@pytest.mark.parametrize("theta", [None, *THETAS])
@pytest.mark.parametrize("library", [50.0, 3000.0, 1e5])
def test_expected_captured_value_against_the_sum_over_counts(theta, library):
    n_genes = len(MEANS)
    likelihood = poisson(n_genes) if theta is None else negative_binomial(theta, n_genes)
    with torch.no_grad():
        means = torch.tensor(MEANS, dtype=torch.float32)[None]
        ours = expected_captured(likelihood.any_left, means, torch.tensor([[library]]))
    counts = np.arange(1, 100_000)[:, None]
    probability = scipy_counts(theta, MEANS).pmf(counts)
    value = np.log1p(counts / library * 1e4)
    expected = (probability * value).sum(0) / probability.sum(0)
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("overdispersed", [True, False])
def test_expected_captured_value_grows_with_the_mean_and_starts_at_one_count(overdispersed):
    likelihood = negative_binomial(np.exp(3.0)) if overdispersed else poisson(1)
    mean = torch.logspace(-12, 4, 200)[:, None]
    with torch.no_grad():
        value = expected_captured(likelihood.any_left, mean, torch.full_like(mean, 2000.0))[:, 0]
    assert torch.isfinite(value).all()
    assert (value.diff() > -1e-5).all()
    assert value[0].item() == pytest.approx(np.log1p(1e4 / 2000), abs=1e-4)


@pytest.mark.parametrize("theta", [None, 0.5, 20.0])
@pytest.mark.parametrize("mean", [0.3, 15.0])
def test_moments_of_sampled_counts(theta, mean):
    n = 200_000
    likelihood = poisson(1) if theta is None else negative_binomial(theta)
    with torch.no_grad():
        sample = likelihood.draw(torch.full((n, 1), mean), torch.Generator().manual_seed(0)).double()
    variance = mean if theta is None else mean + mean**2 / theta
    assert sample.mean().item() == pytest.approx(mean, abs=5 * np.sqrt(variance / n))
    assert sample.var().item() == pytest.approx(variance, rel=0.05)
    assert (sample == sample.round()).all()
    assert (sample >= 0).all()


def test_moments_of_sampled_values():
    """A library so large that whole counts are next to no rounding."""
    likelihood, library = normal(1), torch.full((100_000, 1), 1e8)
    likelihood.log_sigma.data.fill_(np.log(0.4))
    with torch.no_grad():
        counts = likelihood.sample_counts(torch.full((100_000, 1), 2.0), library, torch.Generator().manual_seed(0))
    assert (counts == counts.round()).all()
    sample = torch.log1p(counts / library * 1e4)
    assert sample.mean().item() == pytest.approx(2.0, abs=0.01)
    assert sample.std().item() == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize("kind", ["nb", "poisson", "normal"])
def test_sampling_depends_on_its_generator_alone(kind):
    likelihood = LIKELIHOODS[kind](4, n_latent=2, compositional=False)
    # CP10K of counts, log1p(CP10K) of captured values; 3 counts on average
    mean, library = torch.full((20, 4), 3.0), torch.full((20, 1), 1e4)
    draws = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        draws.append(likelihood.sample_counts(mean, library, torch.Generator().manual_seed(7)))
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], likelihood.sample_counts(mean, library, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("log_theta", [-50.0, 3.0, 50.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 1e5])
@pytest.mark.parametrize("mean", [1e-8, 1.0, 1e6])
def test_negative_binomial_loss_and_gradient_are_finite_at_extremes(log_theta, count, mean):
    likelihood = negative_binomial(1.0)
    likelihood.log_theta.data.fill_(log_theta)
    mean = torch.tensor([[mean]], requires_grad=True)
    loss = negative_log_likelihood(likelihood, torch.tensor([[count]]), mean)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(likelihood.log_theta.grad).all()


@pytest.mark.parametrize("count", [0.0, 1e5])
@pytest.mark.parametrize("mean", [1e-8, 1e6])
def test_poisson_loss_and_gradient_are_finite_at_extremes(count, mean):
    mean = torch.tensor([[mean]], requires_grad=True)
    loss = negative_log_likelihood(poisson(1), torch.tensor([[count]]), mean)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(mean.grad).all()


@pytest.mark.parametrize("log_sigma", [-50.0, 50.0])
def test_normal_loss_and_gradient_are_finite_at_extremes(log_sigma):
    likelihood = normal(1)
    likelihood.log_sigma.data.fill_(log_sigma)
    mean = torch.tensor([[-30.0]], requires_grad=True)
    loss = negative_log_likelihood_of_values(likelihood, torch.tensor([[9.2]]), mean)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(mean.grad).all()
