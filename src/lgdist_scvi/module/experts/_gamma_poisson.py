"""The expert of expression profiles: Gamma-Poisson factorisation whose loadings have the neighbours' mean as prior."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from lgdist_scvi.module._spots import Spots, sum_of_neighbors
from lgdist_scvi.module.experts._base import Expert, ExpertSizes, TrainingSpots
from lgdist_scvi.module.likelihood import Likelihood

_LOADING_SHAPE = 1.0
_PROFILE_SHAPE = 0.3
_FROM_NEIGHBORS = 0.9  # share of the neighbours in the prior mean of a spot's loadings
_FIT_STEPS = 200
_STEPS = 5
# With given profiles a step goes further than expectation-maximisation would, and keeps some of its direction (heavy ball): it
# ends in the same place, sooner, as long as the stride is below twice (1 + momentum).
_STRIDE = 2.2
_MOMENTUM = 0.2
_SMALLEST = 1e-20
_FEW = 2  # times as many rows as distinct ones


class GammaPoisson(nn.Module):
    """Gamma-Poisson factorisation with variational inference for any pattern of missing entries.

    A count is Poisson with mean L * sum_k w_k h_kg: loadings w of a spot are gamma with the neighbours' mean loading as
    prior mean, profiles h are gamma around the genes' mean rates, and the posteriors of all are approximated by gamma
    distributions (Cemgil 2009, "Bayesian inference for nonnegative matrix factorisation models"; Gopalan et al. 2015,
    "Scalable recommendation with hierarchical Poisson factorization").
    """

    def __init__(self, n_genes: int, n_profiles: int):
        super().__init__()
        profiles = torch.full((n_profiles, n_genes), 1.0 / n_genes)
        # posterior mean of the profiles, exponential of the expected logarithm, and mean loading
        self.register_buffer("profiles", profiles)
        self.register_buffer("geometric", profiles.clone())
        self.register_buffer("typical_loading", torch.full((n_profiles,), 1.0 / n_profiles))

    @torch.no_grad()
    def fit(
        self,
        counts: Tensor,
        visible: Tensor,
        library: Tensor,
        index: Tensor,
        valid: Tensor,
        gene_rate: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Learn profiles from counts, (n, n_genes), where they are visible, and library sizes in counts, (n, 1).

        `index` and `valid` are rows of the spots' neighbours, and 1 where there is one, (n, k); `gene_rate` is the mean
        share of each gene in the library, (n_genes,); `generator` is of the random start.
        """
        counts = counts * visible
        n_profiles = len(self.profiles)
        # a random start breaks the symmetry between profiles
        noise = torch.rand(self.profiles.shape, generator=generator).to(counts)
        self.profiles.copy_(gene_rate * (0.75 + 0.5 * noise))
        self.geometric.copy_(self.profiles)
        self.typical_loading.fill_(1.0 / n_profiles)
        loading = geometric = self.typical_loading.expand(len(counts), -1)
        repeated = _DistinctRows(visible)
        for _ in range(_FIT_STEPS):
            known = self.known(visible, library, loading, learn=True)
            known = repeated if known is visible else known
            rate = self._loading_rate(known, library, self.prior_mean(loading, index, valid))
            loading, geometric = self._loading_step(counts, rate, geometric)
            self.typical_loading.copy_(loading.mean(0).clamp(min=1e-6))
            # posterior of the profiles, (n_profiles, n_genes)
            shape = _PROFILE_SHAPE + self.geometric * (geometric.T @ self._ratio(counts, geometric))
            rate = _PROFILE_SHAPE / gene_rate + (library * loading).T @ known
            self.profiles.copy_(shape / rate)
            self.geometric.copy_(torch.exp(torch.digamma(shape)) / rate)

    @property
    def n_pseudo_counts(self) -> float:
        """The prior of the loadings of a spot weighs as much as this number of its counts."""
        return _LOADING_SHAPE * len(self.typical_loading)

    def known(self, visible: Tensor, library: Tensor, loading: Tensor, learn: bool = False) -> Tensor:
        """Weight of each entry as a known count, (n, n_genes): here, 1 where it is visible.

        Arguments are those of :meth:`loading`, and the latest loadings, (n, n_profiles); `learn` where there is
        something to learn.
        """
        return visible

    def _ratio(self, counts: Tensor, geometric: Tensor) -> Tensor:
        """Counts over what they are attributed to, (n, n_genes)."""
        attributed = (geometric @ self.geometric).add_(_SMALLEST)  # (n, n_genes)
        if torch.is_grad_enabled():
            return counts / attributed
        return torch.div(counts, attributed, out=attributed)  # in place: large, and made again in every step

    def _loading_rate(self, known: Tensor | _DistinctRows, library: Tensor, expected: Tensor) -> Tensor:
        """Rate of the loadings' gamma posterior, (n, n_profiles)."""
        return _LOADING_SHAPE / expected + library * (known @ self.profiles.T)

    def _loading_step(self, counts: Tensor, rate: Tensor, geometric: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean of the loadings and exponential of their expected logarithm, from the latter; all (n, n_profiles)."""
        shape = _LOADING_SHAPE + geometric * (self._ratio(counts, geometric) @ self.geometric.T)
        # exponential of the digamma function by its series, within .2 % for shapes of at least 1: the function itself is slow
        exponential = shape - 0.5 + (1.0 / 24.0 + 1.0 / 48.0 / shape) / shape
        return shape / rate, exponential / rate

    def prior_mean(self, loading: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """Prior mean of the loadings, mostly that of the neighbours, (n, n_profiles)."""
        n_neighbors = valid.sum(1, keepdim=True)
        mean = sum_of_neighbors(loading, index, valid) / n_neighbors.clamp(min=1.0)
        return self.typical_loading + _FROM_NEIGHBORS * (n_neighbors > 0) * (mean - self.typical_loading)

    def loading(self, counts: Tensor, visible: Tensor, library: Tensor, expected: Tensor) -> Tensor:
        """Posterior mean of the loadings, (n, n_profiles), given their prior mean, (n, n_profiles) or (n_profiles,).

        Counts are (n, n_genes), of which `visible` is 0 where one is hidden, and library sizes in counts, (n, 1).
        """
        counts = counts * visible
        loading = geometric = expected.expand(len(counts), -1)  # (n, n_profiles)
        logarithm, direction, known = geometric.log(), 0.0, None
        for step in range(_STEPS):
            before, known = known, self.known(visible, library, loading)
            if known is not before:  # visible entries keep their weight
                rate = self._loading_rate(known, library, expected)
            loading, target = self._loading_step(counts, rate, geometric)
            if step < _STEPS - 1:
                direction = _STRIDE * (target.log() - logarithm) + _MOMENTUM * direction
                logarithm = logarithm + direction
                geometric = logarithm.exp()
        return loading


class _DistinctRows:
    """Products with a matrix, from its distinct rows where these are few, such as patterns of what is held out."""

    def __init__(self, matrix: Tensor):
        rows, place = matrix.unique(dim=0, return_inverse=True)
        few = len(rows) * _FEW <= len(matrix)
        self.rows, self.place = (rows, place) if few else (matrix, None)

    def __matmul__(self, other: Tensor) -> Tensor:
        product = self.rows @ other
        return product if self.place is None else product[self.place]

    def __rmatmul__(self, other: Tensor) -> Tensor:
        if self.place is not None:  # other is (k, n): sums over equal rows, (k, n_rows)
            other = other.new_zeros(len(other), len(self.rows)).index_add_(1, self.place, other)
        return other @ self.rows


class GammaPoissonExpert(Expert):
    """Mean of factorisations from different starts: each ends in an optimum of its own, and they err differently."""

    name = "mixture"
    factorisation: ClassVar[type[GammaPoisson]] = GammaPoisson

    def __init__(self, n_genes: int, sizes: ExpertSizes):
        super().__init__(n_genes, sizes)
        self.factorisations = nn.ModuleList(
            self.factorisation(n_genes, sizes.n_profiles) for _ in range(sizes.n_mixtures)
        )

    def fit(self, data: TrainingSpots, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn the profiles."""
        spots = data.spots
        for one in self.factorisations:
            one.fit(spots.counts, spots.visible, spots.library, data.index, data.valid, self.gene_rate, generator)

    def neighborhood(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """Prior means of the loadings, (n_mixtures, batch, n_profiles)."""
        return self.prior_means(self.typical_loadings(neighbors, library), index, valid)

    def loadings(self, spots: Spots, library: Tensor, priors: Iterable[Tensor]) -> list[Tensor]:
        """Posterior means of the loadings, (n, n_profiles) for each factorisation, given their prior means."""
        pairs = zip(self.factorisations, priors, strict=True)
        return [one.loading(spots.counts, spots.visible, library, prior) for one, prior in pairs]

    def typical_loadings(self, spots: Spots, library: Tensor) -> list[Tensor]:
        """The :meth:`loadings` of spots of whose neighbours nothing is known."""
        return self.loadings(spots, library, [one.typical_loading for one in self.factorisations])

    def prior_means(self, loadings: Iterable[Tensor], index: Tensor, valid: Tensor) -> Tensor:
        """Prior means from the loadings of neighbours, (n_mixtures, batch, n_profiles)."""
        pairs = zip(self.factorisations, loadings, strict=True)
        return torch.stack([one.prior_mean(loading, index, valid) for one, loading in pairs])

    def forward(self, centre: Spots, library: Tensor, neighborhood: Tensor) -> tuple[Tensor, None]:
        """Expected rates, (batch, n_genes)."""
        pairs = zip(self.factorisations, self.loadings(centre, library, neighborhood), strict=True)
        return torch.stack([loading @ one.profiles for one, loading in pairs]).mean(0), None
