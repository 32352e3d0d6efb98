"""Likelihoods of measured values, and the values expected under them."""

from __future__ import annotations

import math

import torch
from torch import nn

from lgdist_scvi._units import COUNTS_PER

_NOISE_FACTORS = (0.01, 10.0)
_LOG_TIME_STEP = 0.7
_LOG_TIMES = [-20.0 + _LOG_TIME_STEP * node for node in range(33)]  # the integrand is negligible outside


class CountLikelihood(nn.Module):
    """Poisson or negative binomial counts with one inverse dispersion per gene.

    Parameters
    ----------
    n_genes
        Number of genes.
    overdispersed
        Negative binomial if True, Poisson if False.
    """

    def __init__(self, n_genes: int, overdispersed: bool):
        super().__init__()
        self.log_theta = nn.Parameter(torch.full((n_genes,), 3.0)) if overdispersed else None

    @property
    def theta(self) -> torch.Tensor | None:
        """Inverse dispersion per gene, (n_genes,); ``None`` for Poisson. Variance = mean + mean^2 / theta."""
        return None if self.log_theta is None else self.log_theta.clamp(-5.0, 12.0).exp()

    def of_genes(self, genes: torch.Tensor) -> CountLikelihood:
        """Likelihood of some genes in their order, (n_genes,), each as often as it is named."""
        part = CountLikelihood(len(genes), self.log_theta is not None).to(genes.device)
        if self.log_theta is not None:
            part.log_theta.data = self.log_theta.detach().to(genes.device)[genes]
        return part

    def training_loss(self, counts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """What training minimises, entrywise, in nats up to a constant; all (batch, n_genes).

        The mean follows the Poisson quasi-likelihood, which is right for the mean whatever the variance (Gourieroux,
        Monfort & Trognon 1984) and lets well-counted genes speak; the dispersion follows the negative binomial at that
        mean.
        """
        loss = self.error(counts, mean)
        if self.log_theta is not None:
            dispersion = self.negative_log_likelihood(counts, mean.detach())
            loss = loss + dispersion - dispersion.detach()
        return loss

    @staticmethod
    def error(counts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """What judges means alone, entrywise: Poisson, in nats, up to a constant of the counts."""
        return mean - torch.xlogy(counts, mean)

    def negative_log_likelihood(self, counts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Entrywise, in nats, up to a constant of the counts; all (batch, n_genes)."""
        if self.log_theta is None:
            return self.error(counts, mean)
        theta = self.theta
        log_total = torch.log(theta + mean)
        return (
            torch.lgamma(theta)
            - torch.lgamma(counts + theta)
            - theta * (self.log_theta.clamp(-5.0, 12.0) - log_total)
            - counts * (torch.log(mean) - log_total)
        )

    @torch.no_grad()
    def scale_noise(self, square: torch.Tensor, sampling: torch.Tensor, expected: torch.Tensor) -> None:
        """Bring the overdispersion to the size that was seen; as :meth:`NormalLikelihood.scale_noise`."""
        if self.log_theta is not None:
            self.log_theta -= torch.log(((square - sampling) / expected).clamp(*_NOISE_FACTORS))

    def noise_variance(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Variance of a count beyond that of its mean and the Poisson distribution, (batch, n_genes)."""
        if self.log_theta is None:
            return torch.zeros_like(mean)
        return (mean**2 + variance) / self.theta

    def sample(self, mean: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw counts, same shape as `mean`."""
        if self.log_theta is not None:
            theta = self.theta.expand_as(mean).contiguous()
            # torch's gamma sampler with a generator of its own keeps results independent of the global state
            mean = mean / theta * torch._standard_gamma(theta, generator=generator)
        return torch.poisson(mean, generator=generator)

    def expected_captured(self, mean: torch.Tensor, library: torch.Tensor) -> torch.Tensor:
        """Expected log1p(CP10K) of an entry given that its count is positive.

        log1p(0) = 0, so E[f(x) | x > 0] = E[f(x)] / P(x > 0). With Frullani's integral log1p(a) = int (1 - exp(-a t))
        exp(-t) / t dt, E[f(x)] needs no more than the probability that anything is left of the count after thinning. In
        log t the integrand is smooth, and the trapezoid rule is exact to about 1e-4 for any mean and dispersion.

        Parameters
        ----------
        mean
            Expected counts, (batch, n_genes).
        library
            Library size in counts, (batch, 1).

        Returns
        -------
        log1p(CP10K), (batch, n_genes).
        """
        mean = mean.clamp(min=1e-12)
        scale = COUNTS_PER / library
        total = torch.zeros_like(mean)
        for log_t in _LOG_TIMES:
            t = math.exp(log_t)
            total = total + math.exp(-t) * self._any_left(mean * -torch.expm1(-scale * t))
        return _LOG_TIME_STEP * total / self._any_left(mean)

    def expected_value(self, mean: torch.Tensor, library: torch.Tensor) -> torch.Tensor:
        """Expected log1p(CP10K) of an entry, zeros included; arguments as in :meth:`expected_captured`."""
        return self.expected_captured(mean, library) * self._any_left(mean)

    def _any_left(self, mean: torch.Tensor) -> torch.Tensor:
        """Probability of a positive count."""
        if self.log_theta is None:
            return -torch.expm1(-mean)
        return -torch.expm1(-self.theta * torch.log1p(mean / self.theta))


class NormalLikelihood(nn.Module):
    """Gaussian log1p(CP10K) values with one standard deviation per gene.

    Parameters
    ----------
    scale
        Standard deviation of the observed values of each gene in log1p(CP10K), (n_genes,).
    """

    def __init__(self, scale: torch.Tensor):
        super().__init__()
        # one for all genes: completed values are judged on log1p(CP10K), whatever the gene
        self.register_buffer("scale", scale.square().mean().sqrt())
        self.log_sigma = nn.Parameter(torch.zeros_like(scale))
        # share of the noise's variance that another measurement of the same spots would show again
        self.register_buffer("lasting_share", torch.zeros_like(scale))

    @torch.no_grad()
    def scale_noise(self, square: torch.Tensor, sampling: torch.Tensor, expected: torch.Tensor) -> None:
        """Bring the noise to the size that was seen, and tell what lasts from sampling noise.

        Parameters
        ----------
        square
            Sum over entries of the squared error that the spread of samples leaves to the noise, of a stratum for each of
            its genes, (n_genes,).
        sampling, expected
            The sums of the variance of sampling noise, and of :meth:`noise_variance`, over the same entries, (n_genes,).
        """
        self.log_sigma += 0.5 * torch.log((square / expected).clamp(*_NOISE_FACTORS))
        self.lasting_share.copy_((1.0 - sampling / square.clamp(min=1e-12)).clamp(min=0.0))

    def noise_variance(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Variance of a measured value that the latent does not explain, (batch, n_genes)."""
        return (self.sigma**2).expand_as(mean)

    @property
    def lasting_variance(self) -> torch.Tensor:
        """Variance of what is peculiar to a gene in a spot, and not sampling noise, (n_genes,)."""
        return self.lasting_share * self.sigma**2

    @property
    def sigma(self) -> torch.Tensor:
        """Standard deviation per gene in log1p(CP10K), (n_genes,)."""
        return self.log_sigma.clamp(-5.0, 3.0).exp()

    def training_loss(self, values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """What training minimises, the negative log-likelihood, and what validation judges, the squared error.

        Validation looks at the mean alone: the likelihood goes on falling while the noise is learnt, long after the mean
        has begun to overfit.
        """
        return self.negative_log_likelihood(values, mean) if self.training else self.error(values, mean)

    def error(self, values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """What judges means alone, entrywise: squared, in units of the variance of the values, one for all genes."""
        return 0.5 * ((values - mean) / self.scale) ** 2

    def negative_log_likelihood(self, values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Entrywise, in nats, up to a constant; all (batch, n_genes)."""
        return 0.5 * ((values - mean) / self.sigma) ** 2 + self.log_sigma.clamp(-5.0, 3.0)

    def sample(self, mean: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw log1p(CP10K) values, same shape as `mean`."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.sigma * noise
