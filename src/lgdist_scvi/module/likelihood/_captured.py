"""Captured values: log1p(CP10K) of positive counts, every zero being missing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lgdist_scvi._poisson import variance_given_positive
from lgdist_scvi._units import cp10k_per_count, to_log1p
from lgdist_scvi.module._spots import Spots, sum_of_neighbors
from lgdist_scvi.module.likelihood._base import Estimand, Likelihood, Own, Thinned
from lgdist_scvi.module.likelihood._counts import NOISE_FACTORS
from lgdist_scvi.module.likelihood._effects import Summand
from lgdist_scvi.module.likelihood._predictive import NormalPredictive

_LOG_SIGMA_RANGE = (-5.0, 3.0)


class CapturedLikelihood(Likelihood):
    """Gaussian log1p(CP10K) of captured entries, with one standard deviation per gene."""

    estimands = ("captured",)
    hold_outs = ("set_aside",)
    region_effect = Summand()
    n_weight_groups = 6

    def __init__(self, n_genes: int, n_latent: int, compositional: bool):
        super().__init__(n_genes, n_latent, compositional)
        # the smallest value that can be captured depends on the library
        self.depth = nn.Linear(2, n_latent)
        # one for all genes: completed values are judged on log1p(CP10K), whatever the gene
        self.register_buffer("scale", torch.tensor(1.0))
        self.log_sigma = nn.Parameter(torch.zeros(n_genes))
        # share of the noise's variance that another measurement of the same spots would show again
        self.register_buffer("lasting_share", torch.zeros(n_genes))

    @property
    def sigma(self) -> Tensor:
        """Standard deviation per gene in log1p(CP10K), (n_genes,)."""
        return self.log_sigma.clamp(*_LOG_SIGMA_RANGE).exp()

    # ---- choice and statistics

    @classmethod
    def refusal(cls, shows_zeros: bool, hides_every_zero: bool) -> str | None:
        if shows_zeros:
            return (
                "describes captured values only, but some zeros are registered as data; register a mask that calls every zero "
                'missing (pp.observed_mask(adata), then mask_layer="observed"), or use "nb"'
            )
        return None

    @staticmethod
    def counted_among(known: np.ndarray) -> np.ndarray:
        # what is seen of a gene is a share of all libraries, not of those in which it was seen
        return np.broadcast_to(known.any(axis=1, keepdims=True), known.shape)

    def set_statistics(
        self, gene_rate: Tensor, value_mean: Tensor, value_scale: Tensor, typical_library: float
    ) -> None:
        super().set_statistics(gene_rate, value_mean, value_scale, typical_library)
        self.scale.copy_(value_scale.square().mean().sqrt())

    @property
    def expression(self) -> Tensor:
        return self.value_mean

    # ---- what networks see

    def log_ratio(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        standardised = self.standardised(neighbors, library)
        n_seen = sum_of_neighbors(neighbors.visible, index, valid)
        return sum_of_neighbors(standardised, index, valid) / (n_seen + 1.0)

    def thin(self, counts: Tensor, visible: Tensor, keep_at_least: float, visible_weight: float) -> Thinned:
        """No thinning: a thinned captured value is another one. Visible entries are fitted with less weight instead."""
        return Thinned(counts, counts, 1.0, 1.0, visible_weight)

    # ---- from scores to values

    def initial_slope(self) -> Tensor:
        return torch.ones_like(self.value_mean)

    def with_depth(self, latent: Tensor, depth: Tensor) -> Tensor:
        return latent + self.depth(depth)

    def expected(self, score: Tensor) -> Tensor:
        return self.value_mean + self.value_scale * score

    def relative(self, experts: Tensor, network: Tensor) -> Tensor:
        return experts - network

    def corrected(self, decoded: Tensor, correction: Tensor) -> Tensor:
        return decoded + correction

    def own_variance(self, decoded: Tensor, own: Own | None) -> Tensor:
        return self.lasting_variance.expand_as(decoded)

    @property
    def lasting_variance(self) -> Tensor:
        """Variance of a single gene in a single spot that is no sampling noise, (n_genes,)."""
        return self.lasting_share * self.sigma**2

    # ---- losses and noise

    def training_loss(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """What training minimises, the negative log-likelihood, and what validation judges, the squared error.

        Validation looks at the mean alone: the likelihood goes on falling while the noise is learnt, long after the mean
        has begun to overfit.
        """
        if not self.training:
            return self.error(decoded, counts, exposure)
        values = to_log1p(counts, exposure)
        return 0.5 * ((values - decoded) / self.sigma) ** 2 + self.log_sigma.clamp(*_LOG_SIGMA_RANGE)

    def error(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """Squared error in units of the variance of the values, one for all genes."""
        return 0.5 * ((to_log1p(counts, exposure) - decoded) / self.scale) ** 2

    def noise_variance(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Variance of a measured value that the latent does not explain, (batch, n_genes)."""
        return (self.sigma**2).expand_as(mean)

    @torch.no_grad()
    def scale_noise(self, square: Tensor, sampling: Tensor, expected: Tensor) -> Tensor:
        """Bring the noise to the size that was seen, and find the share of it that is no sampling noise."""
        factor = (square / expected).clamp(*NOISE_FACTORS)
        self.log_sigma += 0.5 * torch.log(factor)
        self.lasting_share.copy_((1.0 - sampling / square.clamp(min=1e-12)).clamp(min=0.0))
        return factor

    def squared_error(self, counts: Tensor, per_count: Tensor, mean: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        scale = cp10k_per_count(library)
        sampling = variance_given_positive(mean.cpu().double().numpy(), (scale * per_count).cpu().double().numpy())
        counts = counts_in_library(counts, per_count)
        return (torch.log1p(counts * scale) - mean) ** 2, torch.from_numpy(sampling).to(mean)

    # ---- answers

    def in_log1p(self, decoded: Tensor) -> Tensor:
        return decoded

    def answer(self, decoded: Tensor, exposure: Tensor, library: Tensor, estimand: Estimand) -> Tensor:
        # a captured value is at least that of a single count
        return torch.maximum(decoded, torch.log1p(cp10k_per_count(library)))

    def predictive(self, mean: Tensor, variance: Tensor, library: Tensor, estimand: Estimand) -> NormalPredictive:
        variance = variance + self.noise_variance(mean, variance)
        return NormalPredictive(*(part.cpu().numpy() for part in (mean, variance, library)))

    def sample_counts(self, mean: Tensor, library: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return torch.round(torch.expm1(mean + self.sigma * noise) / cp10k_per_count(library)).clamp(min=1.0)

    def region_evidence(
        self, decoded: Tensor, centre: Spots, own: Own, exposure: Tensor, library: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = self.values(centre, self.visible_library(centre))
        above = values - self.answer(decoded, exposure, library, "captured")
        return above * centre.visible, centre.visible

    # ---- skill

    def for_skill(self, decoded: Tensor, exposure: Tensor, library: Tensor) -> Tensor:
        return self.answer(decoded, exposure, library, "captured")

    def expected_log1p(self, predicted: Tensor, library: Tensor, genes: Tensor, estimand: Estimand) -> Tensor:
        return predicted


def counts_in_library(counts: Tensor, per_count: Tensor) -> Tensor:
    """Counts as they might be in another library, (batch, n_genes): whole, and positive where they were.

    `per_count` is what a molecule counts for in it, (batch, 1): 1 where it is their own.
    """
    brought = torch.round(counts * per_count).clamp(min=1.0) * (counts > 0)
    return torch.where(per_count == 1.0, counts, brought)
