"""The mixture expert: counts of a spot as a sum of expression profiles, each used as much as its neighbours let expect."""

from __future__ import annotations

import torch
from torch import nn

from lgdist_scvi.module._neighborhood import sum_of_neighbors

_USAGE_SHAPE = 1.0
_PROFILE_SHAPE = 0.3
_FROM_NEIGHBORS = 0.9  # share of the neighbours in what is expected of a spot's usage
_FIT_STEPS = 200
_STEPS = 5
# With given profiles a step goes further than expectation-maximisation would, and keeps some of its direction (heavy ball): it
# ends in the same place, sooner, as long as the stride is below twice (1 + momentum).
_STRIDE = 2.2
_MOMENTUM = 0.2
_SMALLEST = 1e-20


class ProfileMixture(nn.Module):
    """Gamma-Poisson factorisation with variational inference for any pattern of missing entries.

    A count is Poisson with mean L * sum_k w_k h_kg: usages w of a spot are gamma with the mean that its neighbours' usages
    let expect, profiles h are gamma around the genes' mean rates, and the posteriors of all are approximated by gamma
    distributions (Cemgil 2009, "Bayesian inference for nonnegative matrix factorisation models"; Gopalan et al. 2015,
    "Scalable recommendation with hierarchical Poisson factorization").

    Parameters
    ----------
    gene_rate
        Mean share of each gene in the library, (n_genes,).
    n_profiles
        Number of profiles.
    """

    def __init__(self, gene_rate: torch.Tensor, n_profiles: int):
        super().__init__()
        profiles = gene_rate.expand(n_profiles, -1).clone()
        # posterior mean of the profiles, exponential of the expected logarithm, and mean usage
        self.register_buffer("profiles", profiles)
        self.register_buffer("geometric", profiles.clone())
        self.register_buffer("typical_usage", torch.full((n_profiles,), 1.0 / n_profiles))

    @torch.no_grad()
    def fit(
        self,
        counts: torch.Tensor,
        visible: torch.Tensor,
        library: torch.Tensor,
        index: torch.Tensor,
        valid: torch.Tensor,
        gene_rate: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Learn profiles from counts.

        Parameters
        ----------
        counts, visible
            (n, n_genes); `visible` is 0 where a count may not be looked at.
        library
            In counts, (n, 1).
        index, valid
            Rows of the spots' neighbours, and 1 where there is one, (n, k).
        gene_rate
            As in the constructor.
        generator
            Of the random start.
        """
        counts = counts * visible
        n_profiles = len(self.profiles)
        # a start that tells profiles apart a little
        noise = torch.rand(self.profiles.shape, generator=generator).to(counts)
        self.profiles.copy_(gene_rate * (0.75 + 0.5 * noise))
        self.geometric.copy_(self.profiles)
        self.typical_usage.fill_(1.0 / n_profiles)
        usage = geometric = self.typical_usage.expand(len(counts), -1)
        for _ in range(_FIT_STEPS):
            known = self.known(visible, library, usage, learn=True)
            rate = self._usage_rate(known, library, self.expected_usage(usage, index, valid))
            usage, geometric = self._usage_step(counts, rate, geometric)
            self.typical_usage.copy_(usage.mean(0).clamp(min=1e-6))
            shape = _PROFILE_SHAPE + self.geometric * (geometric.T @ self._ratio(counts, geometric))
            rate = _PROFILE_SHAPE / gene_rate + (library * usage).T @ known
            self.profiles.copy_(shape / rate)
            self.geometric.copy_(torch.exp(torch.digamma(shape)) / rate)

    @property
    def n_pseudo_counts(self) -> float:
        """What is expected of the usages of a spot weighs as much as this number of its counts."""
        return _USAGE_SHAPE * len(self.typical_usage)

    def known(
        self, visible: torch.Tensor, library: torch.Tensor, usage: torch.Tensor, learn: bool = False
    ) -> torch.Tensor:
        """Weight of each entry as a count that is known, (n, n_genes): here, those that are visible.

        Parameters
        ----------
        visible, library
            As in :meth:`usage`.
        usage
            The latest, (n, n_profiles).
        learn
            Whether to learn from them, where there is something to learn.
        """
        return visible

    def _ratio(self, counts: torch.Tensor, geometric: torch.Tensor) -> torch.Tensor:
        """Counts over what they are attributed to, (n, n_genes)."""
        attributed = (geometric @ self.geometric).add_(_SMALLEST)
        if torch.is_grad_enabled():
            return counts / attributed
        return torch.div(counts, attributed, out=attributed)  # in place: large, and made again in every step

    def _usage_rate(self, known: torch.Tensor, library: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Rate of the usages' gamma posterior, (n, n_profiles)."""
        return _USAGE_SHAPE / expected + library * (known @ self.profiles.T)

    def _usage_step(
        self, counts: torch.Tensor, rate: torch.Tensor, geometric: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean of the usages and exponential of their expected logarithm, from the latter; all (n, n_profiles)."""
        shape = _USAGE_SHAPE + geometric * (self._ratio(counts, geometric) @ self.geometric.T)
        # exponential of the digamma function by its series, within .2 % for shapes of at least 1: the function itself is slow
        exponential = shape - 0.5 + (1.0 / 24.0 + 1.0 / 48.0 / shape) / shape
        return shape / rate, exponential / rate

    def expected_usage(self, usage: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Usages that neighbours let expect, (n, n_profiles)."""
        n_neighbors = valid.sum(1, keepdim=True)
        mean = sum_of_neighbors(usage, index, valid) / n_neighbors.clamp(min=1.0)
        return self.typical_usage + _FROM_NEIGHBORS * (n_neighbors > 0) * (mean - self.typical_usage)

    def usage(
        self, counts: torch.Tensor, visible: torch.Tensor, library: torch.Tensor, expected: torch.Tensor
    ) -> torch.Tensor:
        """Posterior mean of the usages, (n, n_profiles).

        Parameters
        ----------
        counts, visible
            (n, n_genes); `visible` is 0 where a count may not be looked at.
        library
            In counts, (n, 1).
        expected
            Prior mean, (n, n_profiles) or (n_profiles,).
        """
        counts = counts * visible
        usage = geometric = expected.expand(len(counts), -1)
        logarithm, direction, known = geometric.log(), 0.0, None
        for step in range(_STEPS):
            before, known = known, self.known(visible, library, usage)
            if known is not before:  # what is known for certain stays the same
                rate = self._usage_rate(known, library, expected)
            usage, target = self._usage_step(counts, rate, geometric)
            if step < _STEPS - 1:
                direction = _STRIDE * (target.log() - logarithm) + _MOMENTUM * direction
                logarithm = logarithm + direction
                geometric = logarithm.exp()
        return usage

    def around(
        self,
        counts: torch.Tensor,
        visible: torch.Tensor,
        library: torch.Tensor,
        index: torch.Tensor,
        valid: torch.Tensor,
    ) -> torch.Tensor:
        """Usages that neighbours let expect, (batch, n_profiles).

        Parameters
        ----------
        counts, visible, library
            Of every spot that is a neighbour of some centre; as in :meth:`usage`.
        index, valid
            Rows of a centre's neighbours among these, and 1 where there is one, (batch, k).
        """
        return self.expected_usage(self.usage(counts, visible, library, self.typical_usage), index, valid)

    def forward(
        self, counts: torch.Tensor, visible: torch.Tensor, library: torch.Tensor, around: torch.Tensor
    ) -> torch.Tensor:
        """Expected share of the library, (batch, n_genes); arguments as in :meth:`usage`, and the output of :meth:`around`."""
        return self.usage(counts, visible, library, around) @ self.profiles


class AveragedMixtures(nn.ModuleList):
    """Mean of mixtures from different starts: each ends in an optimum of its own, and they err differently.

    Parameters
    ----------
    gene_rate, n_profiles
        As in :class:`ProfileMixture`.
    n_mixtures
        Their number.
    kind
        Their class.
    """

    def __init__(
        self, gene_rate: torch.Tensor, n_profiles: int, n_mixtures: int, kind: type[ProfileMixture] = ProfileMixture
    ):
        super().__init__(kind(gene_rate, n_profiles) for _ in range(n_mixtures))

    def fit(self, *data: torch.Tensor, generator: torch.Generator) -> None:
        """As :meth:`ProfileMixture.fit`."""
        for mixture in self:
            mixture.fit(*data, generator)

    def around(self, *neighbors: torch.Tensor) -> torch.Tensor:
        """As :meth:`ProfileMixture.around`: (n_mixtures, batch, n_profiles)."""
        return torch.stack([mixture.around(*neighbors) for mixture in self])

    def forward(
        self, counts: torch.Tensor, visible: torch.Tensor, library: torch.Tensor, around: torch.Tensor
    ) -> torch.Tensor:
        """As :class:`ProfileMixture`."""
        shares = [mixture(counts, visible, library, part) for mixture, part in zip(self, around, strict=True)]
        return torch.stack(shares).mean(0)
