"""The expert of expression profiles where only positive counts are seen: the rest are zeros, or missing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lgdist_scvi.module._spots import Spots, sum_of_neighbors
from lgdist_scvi.module.experts._base import ExpertSizes, TrainingSpots
from lgdist_scvi.module.experts._gamma_poisson import GammaPoisson, GammaPoissonExpert
from lgdist_scvi.module.likelihood import GeneEffects, Likelihood, any_poisson, expected_captured

_MISSING_RANGE = (0.001, 0.95)


class CapturedGammaPoisson(GammaPoisson):
    """Gamma-Poisson factorisation of counts of which only positive ones are seen.

    A mask that calls every zero missing hides two things: zeros, and positive counts that are missing. With the
    probability p_g that an entry of a gene is missing, whatever its count, one without a count, whose Poisson mean is
    m, is a zero that was looked at with probability (1 - p_g) exp(-m) / (p_g + (1 - p_g) exp(-m)), and as much of a
    zero enters the inference.
    """

    def __init__(self, n_genes: int, n_profiles: int):
        super().__init__(n_genes, n_profiles)
        self.register_buffer("missing", torch.full((n_genes,), _MISSING_RANGE[0]))

    def fit(self, *data: Tensor) -> None:
        """As :meth:`GammaPoisson.fit`, and how many entries of each gene are missing."""
        self.missing.fill_(_MISSING_RANGE[0])
        super().fit(*data)

    def release(self, share: Tensor) -> None:
        """Held-out entries, a share of each gene's, (n_genes,), were missing while learning and are so no longer."""
        left = 1.0 - (1.0 - self.missing) / (1.0 - share).clamp(min=1e-6)
        self.missing.copy_(left.clamp(*_MISSING_RANGE))

    def known(self, visible: Tensor, library: Tensor, loading: Tensor, learn: bool = False) -> Tensor:
        """As :meth:`GammaPoisson.known`: 1 where visible, else the probability of a zero; 0 in a spot without a count."""
        in_use, unseen = visible.any(1, keepdim=True).to(visible), 1.0 - visible
        zero = ((-library * loading) @ self.profiles).exp_()  # probability of a zero count, (n, n_genes)
        if learn:
            n = in_use.sum().clamp(min=1.0)
            n_zeros, n_unseen = (in_use.T @ zero)[0] / n, (in_use.T @ unseen)[0] / n
            self.missing.copy_(((n_unseen - n_zeros) / (1.0 - n_zeros).clamp(min=1e-6)).clamp(*_MISSING_RANGE))
        chance = torch.addcmul(self.missing, 1.0 - self.missing, zero)
        return in_use * (1.0 - unseen * self.missing / chance)

    def expected_counts(self, visible: Tensor, library: Tensor, loading: Tensor) -> Tensor:
        """Expected counts, weighted as :meth:`known` weighs observed ones, (n, n_genes); same arguments."""
        return self.known(visible, library, loading) * library * (loading @ self.profiles)


class CapturedGammaPoissonExpert(GammaPoissonExpert):
    """Expected captured values: those of a Poisson count, given that it is positive, with the mean rate of the factorisations.

    What the factorisations leave unexplained of a gene in the neighbours is carried over to the spot: a neighbourhood shares a
    factor of the rate that is gamma distributed around 1, and its posterior mean given the neighbours' counts multiplies the rate.
    """

    factorisation = CapturedGammaPoisson

    def __init__(self, n_genes: int, sizes: ExpertSizes):
        super().__init__(n_genes, sizes)
        self.shared = GeneEffects(n_genes)

    @torch.no_grad()
    def fit(self, data: TrainingSpots, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn the profiles, and how much neighbourhoods share beyond them."""
        super().fit(data, likelihood, generator)
        spots = data.spots
        priors, *neighbors = self.neighborhood(spots, spots.library, data.index, data.valid)
        expected = self._expected_counts(spots.visible, spots.library, self.loadings(spots, spots.library, priors))
        ones = torch.ones_like(expected)
        self.shared.fit(self.shared.evidence(ones, *neighbors, spots.counts * spots.visible, expected))

    def release(self, share: Tensor) -> None:
        for one in self.factorisations:
            one.release(share)

    def neighborhood(
        self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prior means of the loadings, (n_mixtures, batch, n_profiles), and sums of observed and of expected counts, (batch, n_genes)."""
        loadings = self.typical_loadings(neighbors, library)
        observed = neighbors.counts * neighbors.visible
        expected = self._expected_counts(neighbors.visible, library, loadings)
        sums = (sum_of_neighbors(counts, index, valid) for counts in (observed, expected))
        return self.prior_means(loadings, index, valid), *sums

    def _expected_counts(self, visible: Tensor, library: Tensor, loadings: Iterable[Tensor]) -> Tensor:
        """Mean over the factorisations of their expected counts, (n, n_genes)."""
        pairs = zip(self.factorisations, loadings, strict=True)
        total = sum(one.expected_counts(visible, library, loading) for one, loading in pairs)
        return total / len(self.factorisations)

    def forward(
        self, centre: Spots, library: Tensor, neighborhood: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Expected log1p(CP10K) given a count, (batch, n_genes), and the weight of the spot's own counts beside their prior, (batch, 1)."""
        priors, observed, expected = neighborhood
        rate = super().forward(centre, library, priors)[0]
        rate = rate * self.shared(torch.ones_like(observed), observed, expected)
        own = (centre.counts * centre.visible).sum(1, keepdim=True)
        reliability = own / (own + self.factorisations[0].n_pseudo_counts)
        return expected_captured(any_poisson, library * rate, library), reliability
