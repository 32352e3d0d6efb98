"""The mixture expert where only positive counts are seen: what is not seen is a zero, or missing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lgdist_scvi.module._deviations import GeneDeviations
from lgdist_scvi.module._likelihood import CountLikelihood
from lgdist_scvi.module._neighborhood import sum_of_neighbors
from lgdist_scvi.module._profiles import AveragedMixtures, ProfileMixture

_MISSING_RANGE = (0.001, 0.95)


class CapturedMixture(ProfileMixture):
    """Gamma-Poisson factorisation of counts of which only positive ones are seen.

    A mask that calls every zero missing hides two things: zeros, and positive counts that are missing. With the probability
    p_g that an entry of a gene is missing, whatever its count, one without a count, whose Poisson mean is m, is a zero that was
    looked at with probability (1 - p_g) exp(-m) / (p_g + (1 - p_g) exp(-m)), and as much of a zero enters the inference.

    Parameters
    ----------
    gene_rate, n_profiles
        As in :class:`ProfileMixture`.
    """

    def __init__(self, gene_rate: torch.Tensor, n_profiles: int):
        super().__init__(gene_rate, n_profiles)
        self.register_buffer("missing", torch.full_like(gene_rate, _MISSING_RANGE[0]))

    def fit(self, *data: torch.Tensor) -> None:
        """As :meth:`ProfileMixture.fit`, and how many entries of each gene are missing."""
        self.missing.fill_(_MISSING_RANGE[0])
        super().fit(*data)

    def show_set_aside(self, share: torch.Tensor) -> None:
        """Entries that training set aside, a share of each gene's, (n_genes,), were missing while learning and are so no longer."""
        left = 1.0 - (1.0 - self.missing) / (1.0 - share).clamp(min=1e-6)
        self.missing.copy_(left.clamp(*_MISSING_RANGE))

    def known(
        self, visible: torch.Tensor, library: torch.Tensor, usage: torch.Tensor, learn: bool = False
    ) -> torch.Tensor:
        """As :meth:`ProfileMixture.known`: 1 where visible, else the probability of a zero; 0 in a spot without a count."""
        in_use, unseen = visible.any(1, keepdim=True).to(visible), 1.0 - visible
        zero = ((-library * usage) @ self.profiles).exp_()
        if learn:
            n = in_use.sum().clamp(min=1.0)
            n_zeros, n_unseen = (in_use.T @ zero)[0] / n, (in_use.T @ unseen)[0] / n
            self.missing.copy_(((n_unseen - n_zeros) / (1.0 - n_zeros).clamp(min=1e-6)).clamp(*_MISSING_RANGE))
        chance = torch.addcmul(self.missing, 1.0 - self.missing, zero)
        return in_use * (1.0 - unseen * self.missing / chance)

    def expected_counts(self, visible: torch.Tensor, library: torch.Tensor, usage: torch.Tensor) -> torch.Tensor:
        """Expected counts of what is known, (n, n_genes); arguments as in :meth:`known`."""
        return self.known(visible, library, usage) * library * (usage @ self.profiles)


class CapturedMixtures(nn.Module):
    """Expected captured values: those of a Poisson count, given that it is positive, with the averaged rate of the mixtures.

    What the mixtures leave unexplained of a gene in the neighbours is carried over to the spot: neighbourhoods share a factor of
    the rate that is gamma distributed around 1, and its posterior mean given the neighbours' counts multiplies the rate.

    Parameters
    ----------
    gene_rate, n_profiles, n_mixtures
        As in :class:`AveragedMixtures`.
    """

    def __init__(self, gene_rate: torch.Tensor, n_profiles: int, n_mixtures: int):
        super().__init__()
        self.mixtures = AveragedMixtures(gene_rate, n_profiles, n_mixtures, CapturedMixture)
        self.shared = GeneDeviations(len(gene_rate))
        self.likelihood = CountLikelihood(len(gene_rate), overdispersed=False)

    @torch.no_grad()
    def fit(
        self,
        counts: torch.Tensor,
        visible: torch.Tensor,
        library: torch.Tensor,
        index: torch.Tensor,
        valid: torch.Tensor,
        gene_rate: torch.Tensor,
        *,
        generator: torch.Generator,
    ) -> None:
        """As :meth:`AveragedMixtures.fit`, and how far neighbourhoods stray together."""
        self.mixtures.fit(counts, visible, library, index, valid, gene_rate, generator=generator)
        usages, *around = self.around(counts, visible, library, index, valid)
        own = [
            mixture.usage(counts, visible, library, prior) for mixture, prior in zip(self.mixtures, usages, strict=True)
        ]
        expected = self._expected_counts(visible, library, own)
        ones = torch.ones_like(expected)
        self.shared.fit(self.shared.evidence(ones, *around, counts * visible, expected))

    def show_set_aside(self, share: torch.Tensor) -> None:
        """As :meth:`CapturedMixture.show_set_aside`."""
        for mixture in self.mixtures:
            mixture.show_set_aside(share)

    def around(
        self,
        counts: torch.Tensor,
        visible: torch.Tensor,
        library: torch.Tensor,
        index: torch.Tensor,
        valid: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What neighbours tell; arguments as in :meth:`ProfileMixture.around`.

        Returns
        -------
        Usages that they let expect, (n_mixtures, batch, n_profiles), and their counts and what was expected of these,
        (batch, n_genes) each.
        """
        usages = [mixture.usage(counts, visible, library, mixture.typical_usage) for mixture in self.mixtures]
        pairs = zip(self.mixtures, usages, strict=True)
        prior = torch.stack([mixture.expected_usage(usage, index, valid) for mixture, usage in pairs])
        seen, expected = counts * visible, self._expected_counts(visible, library, usages)
        return prior, sum_of_neighbors(seen, index, valid), sum_of_neighbors(expected, index, valid)

    def _expected_counts(
        self, visible: torch.Tensor, library: torch.Tensor, usages: Iterable[torch.Tensor]
    ) -> torch.Tensor:
        """Expected counts of what is known, the mean of the mixtures, (n, n_genes)."""
        pairs = zip(self.mixtures, usages, strict=True)
        return sum(mixture.expected_counts(visible, library, usage) for mixture, usage in pairs) / len(self.mixtures)

    def forward(
        self,
        counts: torch.Tensor,
        visible: torch.Tensor,
        library: torch.Tensor,
        around: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Expected log1p(CP10K) of each entry given that it is captured, (batch, n_genes); arguments as in :class:`ProfileMixture`."""
        usages, seen, expected = around
        rate = self.mixtures(counts, visible, library, usages) * self.shared(torch.ones_like(seen), seen, expected)
        return self.likelihood.expected_captured(library * rate, library)

    def reliability(self, counts: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Share of the spot's own counts in all that usages follow, the pseudo-counts of their prior included, (n, 1)."""
        own = (counts * visible).sum(1, keepdim=True)
        return own / (own + self.mixtures[0].n_pseudo_counts)
