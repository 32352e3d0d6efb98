"""Counts: Poisson and negative binomial, zeros being data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scvi.distributions import NegativeBinomial
from torch import Tensor, nn

from lgdist_scvi._units import counts_per_cp10k, cp10k_per_count, to_cp10k
from lgdist_scvi.module._spots import Spots, sum_of_neighbors
from lgdist_scvi.module.likelihood._base import Estimand, Likelihood, Own, Thinned
from lgdist_scvi.module.likelihood._captured_mean import any_poisson, expected_captured
from lgdist_scvi.module.likelihood._effects import Factor
from lgdist_scvi.module.likelihood._gene_effects import GeneEffects
from lgdist_scvi.module.likelihood._predictive import CountPredictive

NOISE_FACTORS = (0.01, 10.0)
_LARGEST_RATIO = 20.0  # of an expert's prediction to the network's
_LARGEST_SCORE = 10.0  # logarithm of a rate to the gene's mean rate
_SMALLEST_SHARE = 0.05  # of a library that missing entries leave
_LOG_THETA_RANGE = (-5.0, 12.0)


class PoissonLikelihood(Likelihood):
    """Poisson counts; expected values are rates, shares of the library. Other count laws are made from it.

    Another law overrides `any_left`, `noise_variance` and `draw`, and `dispersion_loss` if it has parameters.
    """

    estimands = ("rate", "captured")
    hold_outs = ("set_aside", "split")
    region_effect = Factor()

    def __init__(self, n_genes: int, n_latent: int, compositional: bool):
        super().__init__(n_genes, n_latent, compositional)
        self.gene_effects = GeneEffects(n_genes)

    # ---- the law

    def any_left(self, mean: Tensor, genes: Tensor | None = None) -> Tensor:
        """Probability of a positive count of this mean, (..., n_genes), or of the genes named, (n_entries,)."""
        return any_poisson(mean)

    def dispersion_loss(self, counts: Tensor, mean: Tensor) -> Tensor | None:
        """Loss that fits the dispersion at a given mean, entry by entry; ``None`` without one."""
        return None

    def noise_variance(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Variance of a count beyond that of its mean and the Poisson distribution, (batch, n_genes)."""
        return torch.zeros_like(mean)

    def draw(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts, same shape as `mean`."""
        return torch.poisson(mean, generator=generator)

    # ---- choice and statistics

    @classmethod
    def refusal(cls, shows_zeros: bool, hides_every_zero: bool) -> str | None:
        if hides_every_zero:
            return (
                'needs zeros, but the mask calls every zero missing; use "normal" or "auto", or register without a mask'
            )
        return None

    @staticmethod
    def counted_among(known: np.ndarray) -> np.ndarray:
        return known

    @property
    def expression(self) -> Tensor:
        return self.gene_rate

    # ---- what networks see

    def visible_library(self, spots: Spots) -> Tensor:
        """Library size, in counts (n, 1), from visible entries alone.

        If the genes make up the library, it is estimated from the visible counts and the share of the library that their genes
        usually make up; one pseudo-count's worth of the typical library keeps it finite where nothing is visible. If other
        genes are in the library, that share differs between spots, and the registered library is used.
        """
        if not self.compositional:
            return self.usable(spots.library)
        seen = (spots.counts * spots.visible).sum(-1, keepdim=True)
        share = (spots.visible @ self.gene_rate)[:, None]
        return (seen + 1.0) / (share + 1.0 / self.typical_library)

    def whole_library(self, library: Tensor, observed: Tensor) -> Tensor:
        """Library size as it would be without missing entries, (n, 1).

        The registered library leaves missing entries out. It is scaled up by the share that the missing genes usually make
        up, so that rates mean the same in every spot.
        """
        left = 1.0 - ((1.0 - observed) @ self.gene_rate)[:, None]
        # the library of a spot without observed entries is the depth to predict for
        left = torch.where(observed.bool().any(dim=1, keepdim=True), left, 1.0)
        return library / left.clamp(min=_SMALLEST_SHARE)

    def log_ratio(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        counted = sum_of_neighbors(neighbors.counts * neighbors.visible, index, valid)  # (batch, n_genes)
        expected = sum_of_neighbors(library * neighbors.visible, index, valid) * self.gene_rate
        return torch.log((counted + 1.0) / (expected + 1.0))

    def thin(self, counts: Tensor, visible: Tensor, keep_at_least: float, visible_weight: float) -> Thinned:
        """Split visible counts: a share, uniform between `keep_at_least` and 1, is visible, and the rest is fitted."""
        kept = torch.rand(len(counts), 1, device=counts.device)
        looked_at = keep_at_least + (1.0 - keep_at_least) * kept
        return Thinned(*split_counts(counts, looked_at, visible), looked_at, 1.0)

    # ---- from scores to rates

    def initial_slope(self) -> Tensor:
        # from log1p(CP10K) to the logarithm of the rate, damped where counts are few
        return self.value_scale / (1.0 - torch.exp(-self.value_mean)).clamp(min=0.3)

    def expected(self, score: Tensor) -> Tensor:
        if self.compositional:
            return torch.softmax(score + torch.log(self.gene_rate), dim=-1)
        return self.gene_rate * torch.exp(score.clamp(max=_LARGEST_SCORE))

    def normalised(self, decoded: Tensor) -> Tensor:
        return decoded / decoded.sum(-1, keepdim=True) if self.compositional else decoded

    def relative(self, experts: Tensor, network: Tensor) -> Tensor:
        return (experts / network.clamp(min=1e-12)).clamp(max=_LARGEST_RATIO) - 1.0

    def corrected(self, decoded: Tensor, correction: Tensor) -> Tensor:
        return decoded * (1.0 + correction)

    # ---- gene effects

    def with_own_count(self, decoded: Tensor, own: Own) -> Tensor:
        return self.normalised(self.gene_effects(decoded, *own))

    def own_variance(self, decoded: Tensor, own: Own | None) -> Tensor:
        if own is None:
            return torch.zeros_like(decoded)
        return decoded**2 * self.gene_effects.relative_variance(own[0])

    def reset_gene_effects(self) -> None:
        self.gene_effects.variance.zero_()

    def fit_gene_effects(self, halves: Iterable[tuple[Tensor, Own, Own]]) -> None:
        evidence = 0.0
        for rate, first, second in halves:
            evidence = evidence + self.gene_effects.evidence(rate, *first, *second)
        self.gene_effects.fit(evidence)

    # ---- losses and noise

    def training_loss(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """What training minimises, entry by entry, in nats up to a constant, (batch, n_genes).

        The mean follows the Poisson quasi-likelihood, which is right for the mean whatever the variance (Gourieroux,
        Monfort & Trognon 1984) and uses well-counted genes; the dispersion follows the law at that mean.
        """
        mean = decoded * exposure + 1e-8
        loss = self._poisson_loss(counts, mean)
        dispersion = self.dispersion_loss(counts, mean.detach())
        return loss if dispersion is None else loss + dispersion - dispersion.detach()

    def error(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        return self._poisson_loss(counts, decoded * exposure + 1e-8)

    @staticmethod
    def _poisson_loss(counts: Tensor, mean: Tensor) -> Tensor:
        return mean - torch.xlogy(counts, mean)

    def squared_error(self, counts: Tensor, per_count: Tensor, mean: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of a mean about hidden counts, and the part of it that is sampling noise, in counts squared.

        The variance of a Poisson count is estimated by the count itself: right on average, and far less chance is left in the
        difference where counts are 0 or 1 than with the predicted mean.
        """
        return (counts * per_count - mean) ** 2, counts * per_count**2

    def error_weight(self, hidden: Tensor) -> Tensor:
        """Counts are weighted by the inverse of their gene's mean, as in the deviance."""
        return hidden / self.gene_rate.clamp(min=1e-9)

    # ---- answers

    def in_log1p(self, decoded: Tensor) -> Tensor:
        return torch.log1p(to_cp10k(decoded))

    def answer(self, decoded: Tensor, exposure: Tensor, library: Tensor, estimand: Estimand) -> Tensor:
        if estimand == "rate":
            return to_cp10k(decoded * (exposure / library))
        return expected_captured(self.any_left, decoded * exposure, library)

    def in_measured_unit(self, mean: Tensor, variance: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        per_cp10k = counts_per_cp10k(library)
        return mean * per_cp10k, variance * per_cp10k**2

    def predictive(self, mean: Tensor, variance: Tensor, library: Tensor, estimand: Estimand) -> CountPredictive:
        mean, variance = self.in_measured_unit(mean, variance, library)
        variance = variance + self.noise_variance(mean, variance)
        variance = variance + mean  # of the Poisson distribution
        parts = (part.cpu().numpy() for part in (mean, variance, library))
        return CountPredictive(*parts, captured=estimand == "captured")

    def sample_counts(self, mean: Tensor, library: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.draw(mean / cp10k_per_count(library), generator)

    def region_evidence(
        self, decoded: Tensor, centre: Spots, own: Own, exposure: Tensor, library: Tensor
    ) -> tuple[Tensor, Tensor]:
        counts, visible_library = own
        return counts, visible_library * decoded

    # ---- skill

    def for_skill(self, decoded: Tensor, exposure: Tensor, library: Tensor) -> Tensor:
        return decoded * exposure

    def expected_log1p(self, predicted: Tensor, library: Tensor, genes: Tensor, estimand: Estimand) -> Tensor:
        def any_left(mean: Tensor) -> Tensor:
            return self.any_left(mean, genes)

        captured = expected_captured(any_left, predicted, library)
        # E[f(x)] = E[f(x) | x > 0] P(x > 0), for f(0) = 0
        return captured if estimand == "captured" else captured * any_left(predicted)

    def count_baselines(self, *expected: Tensor) -> tuple[Tensor, ...]:
        return expected


class NegativeBinomialLikelihood(PoissonLikelihood):
    """Negative binomial counts with one inverse dispersion theta per gene: variance = mean + mean^2 / theta."""

    def __init__(self, n_genes: int, n_latent: int, compositional: bool):
        super().__init__(n_genes, n_latent, compositional)
        self.log_theta = nn.Parameter(torch.full((n_genes,), 3.0))

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion per gene, (n_genes,)."""
        return self.log_theta.clamp(*_LOG_THETA_RANGE).exp()

    def any_left(self, mean: Tensor, genes: Tensor | None = None) -> Tensor:
        theta = self.theta if genes is None else self.theta.detach()[genes]
        return -torch.expm1(-theta * torch.log1p(mean / theta))

    def dispersion_loss(self, counts: Tensor, mean: Tensor) -> Tensor:
        return -NegativeBinomial(mu=mean, theta=self.theta, validate_args=False).log_prob(counts)

    @torch.no_grad()
    def scale_noise(self, square: Tensor, sampling: Tensor, expected: Tensor) -> Tensor:
        factor = ((square - sampling) / expected).clamp(*NOISE_FACTORS)
        self.log_theta -= torch.log(factor)
        return factor

    def noise_variance(self, mean: Tensor, variance: Tensor) -> Tensor:
        return (mean**2 + variance) / self.theta

    def draw(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        theta = self.theta.expand_as(mean).contiguous()
        # torch's gamma sampler with a generator of its own keeps results independent of the global state
        return super().draw(mean / theta * torch._standard_gamma(theta, generator=generator), generator)


def split_counts(
    counts: Tensor, kept: Tensor, visible: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin the visible counts: one part is visible, the rest is fitted (count splitting).

    Under Poisson noise the two parts are independent given the rate, so that a visible count can be fitted without
    learning to repeat it. `kept` is the share that stays visible, (batch, 1).

    Returns
    -------
    Visible counts, counts to fit, and the share of the exposure that the latter have, (batch, n_genes) each.
    """
    # draws with a generator are made where it is: devices take none of another
    device = counts.device if generator is None else generator.device
    counts_there, kept_there = (part.to(device) for part in (counts.detach(), kept.expand_as(counts).contiguous()))
    looked_at = torch.binomial(counts_there, kept_there, generator=generator).to(counts.device)
    return (
        looked_at,
        torch.where(visible, counts - looked_at, counts),
        torch.where(visible, 1.0 - kept, torch.ones_like(kept)),
    )
