"""The interface of a likelihood: from counts to what networks see, and from what they predict to counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lgdist_scvi._units import to_log1p
from lgdist_scvi.module._spots import Spots
from lgdist_scvi.module.likelihood._effects import Effect
from lgdist_scvi.module.likelihood._predictive import Predictive

Estimand = Literal["rate", "captured"]
HoldOut = Literal["set_aside", "split", "unseen_slide"]
Own = tuple[Tensor, Tensor]
"""Visible counts of each spot, and the library sizes that they are a part of, (batch, n_genes) each."""


class Thinned(NamedTuple):
    """Counts of a training step: visible and fitted ones, and the shares of the library that both are a part of.

    `weight` is the weight of a visible entry in the loss, against 1 for a hidden one.
    """

    counts: Tensor
    target: Tensor
    share: Tensor | float
    looked_at: Tensor | float
    weight: float


class Likelihood(nn.Module, ABC):
    """Distribution of measured values given expected ones, and all that depends on the kind of value.

    Expected values ("decoded") are in the likelihood's own unit: shares of the library for counts, log1p(CP10K) for captured values.

    Parameters
    ----------
    n_genes, n_latent
        Number of genes, and length of the latent.
    compositional
        Whether the registered genes make up the library, so that rates sum to 1.

    Attributes
    ----------
    estimands
        What can be predicted; the first is what is modelled.
    hold_outs
        How entries can be held out to judge predictions: hidden (``"set_aside"``), or half of their molecules (``"split"``).
    region_effect
        How region effects act on expected values.
    gene_rate
        Mean share of each gene in the library, (n_genes,).
    value_mean, value_scale
        Mean and standard deviation of the observed values of each gene, log1p(CP10K), (n_genes,).
    typical_library
        Median library size in counts.
    """

    estimands: ClassVar[tuple[Estimand, ...]]
    hold_outs: ClassVar[tuple[HoldOut, ...]]
    region_effect: ClassVar[Effect]
    n_weight_groups: ClassVar[int] = 1  # groups of genes, by their rates, in which experts have weights of their own

    def __init__(self, n_genes: int, n_latent: int, compositional: bool):
        super().__init__()
        self.compositional = compositional
        self.register_buffer("gene_rate", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("value_mean", torch.ones(n_genes))
        self.register_buffer("value_scale", torch.ones(n_genes))
        self.register_buffer("typical_library", torch.tensor(1.0))

    @property
    def modelled(self) -> Estimand:
        """What is modelled."""
        return self.estimands[0]

    # ---- choice and statistics, before there is a model

    @classmethod
    @abstractmethod
    def refusal(cls, shows_zeros: bool, hides_every_zero: bool) -> str | None:
        """Why data do not fit, as a clause with the remedy; ``None`` if they do.

        `shows_zeros`: some observed entry is a zero. `hides_every_zero`: there are zeros, and a mask calls all of them
        missing.
        """

    @staticmethod
    @abstractmethod
    def counted_among(known: np.ndarray) -> np.ndarray:
        """Entries in whose libraries the counts of known entries are a share, from those known, (n, n_genes)."""

    def set_statistics(
        self, gene_rate: Tensor, value_mean: Tensor, value_scale: Tensor, typical_library: float
    ) -> None:
        """Set the statistics of the genes."""
        self.gene_rate.copy_(gene_rate)
        self.value_mean.copy_(value_mean)
        self.value_scale.copy_(value_scale)
        self.typical_library.fill_(typical_library)

    @property
    @abstractmethod
    def expression(self) -> Tensor:
        """Mean of what is modelled of each gene, (n_genes,)."""

    # ---- what networks see

    def usable(self, library: Tensor) -> Tensor:
        """Library size with the typical one where nothing was counted, (n, 1)."""
        return torch.where(library > 0, library, self.typical_library)

    def visible_library(self, spots: Spots) -> Tensor:
        """Library size, in counts (n, 1), from visible entries alone."""
        return self.usable(spots.library)

    def whole_library(self, library: Tensor, observed: Tensor) -> Tensor:
        """Library size as it would be without missing entries, (n, 1), where that can be estimated."""
        return library

    @staticmethod
    def values(spots: Spots, library: Tensor) -> Tensor:
        """log1p(CP10K) of the visible counts in a library, in counts (n, 1): (n, n_genes), 0 where hidden."""
        return to_log1p(spots.counts * spots.visible, library)

    def standardise(self, values: Tensor) -> Tensor:
        """log1p(CP10K) in units of the gene's standard deviation from its mean, (n, n_genes)."""
        return (values - self.value_mean) / self.value_scale

    def standardised(self, spots: Spots, library: Tensor) -> Tensor:
        """Standardised visible values, (n, n_genes), 0 where hidden."""
        return self.standardise(self.values(spots, library)) * spots.visible

    @abstractmethod
    def log_ratio(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """How far each gene of the neighbours lies from its mean, (batch, n_genes)."""

    @abstractmethod
    def thin(self, counts: Tensor, visible: Tensor, keep_at_least: float, visible_weight: float) -> Thinned:
        """Counts that are visible and counts that are fitted in a training step, (batch, n_genes)."""

    # ---- from the decoder's scores to expected values

    @abstractmethod
    def initial_slope(self) -> Tensor:
        """Change of a score with the log1p(CP10K) value, (n_genes,), from which the decoder starts."""

    def with_depth(self, latent: Tensor, depth: Tensor) -> Tensor:
        """Latent with what expected values owe to the depth."""
        return latent

    @abstractmethod
    def expected(self, score: Tensor) -> Tensor:
        """Expected values of the decoder's scores, (..., n_genes)."""

    def normalised(self, decoded: Tensor) -> Tensor:
        """Expected values that sum to 1, if they are shares of one whole, (..., n_genes)."""
        return decoded

    @abstractmethod
    def relative(self, experts: Tensor, network: Tensor) -> Tensor:
        """Correction that takes the network's prediction to those of the experts, (n_experts, batch, n_genes)."""

    @abstractmethod
    def corrected(self, decoded: Tensor, correction: Tensor) -> Tensor:
        """Apply a correction, entry by entry; not normalised."""

    def with_own_count(self, decoded: Tensor, own: Own) -> Tensor:
        """Expected values given the spot's own count of each gene: the gene effect, (..., n_genes)."""
        return decoded

    @abstractmethod
    def own_variance(self, decoded: Tensor, own: Own | None) -> Tensor:
        """Variance of an expected value that no latent holds, of a single gene in a single spot, (batch, n_genes)."""

    def reset_gene_effects(self) -> None:
        """No gene effects."""

    def fit_gene_effects(self, halves: Iterable[tuple[Tensor, Own, Own]]) -> None:
        """Fit gene effects on expected values, a first half of the counts and a second one, batch by batch."""

    # ---- losses and noise

    @abstractmethod
    def training_loss(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """What training minimises, entry by entry, in nats, (batch, n_genes).

        `counts` are fitted, (batch, n_genes); `exposure` is the library size, in counts, that the rates multiply,
        (batch, 1) or (batch, n_genes).
        """

    @abstractmethod
    def error(self, decoded: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """What judges expected values alone, entry by entry, in nats up to a constant."""

    @abstractmethod
    def noise_variance(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Variance of a measured value about its mean, (batch, n_genes); of counts without that of the Poisson distribution."""

    def scale_noise(self, square: Tensor, sampling: Tensor, expected: Tensor) -> Tensor | None:
        """Bring the noise to the size that was seen; the factor of its variance, (n_genes,), or ``None`` without a parameter.

        `square` sums over entries the squared error that the spread of samples leaves to the noise, of a stratum for
        each of its genes, (n_genes,); `sampling` and `expected` sum the variance of sampling noise, and
        :meth:`noise_variance`, over the same entries.
        """

    @abstractmethod
    def squared_error(self, counts: Tensor, per_count: Tensor, mean: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of a mean about hidden counts, and the part of it that is sampling noise, (batch, n_genes) each.

        Hidden counts are (batch, n_genes), `per_count` is what a molecule counts for in `library`, (batch, 1) each, and
        `mean` is in units of :meth:`in_measured_unit`, (batch, n_genes).
        """

    def error_weight(self, hidden: Tensor) -> Tensor:
        """Weight of squared errors of hidden entries beside those of other genes, (batch, n_genes)."""
        return hidden

    # ---- answers

    @abstractmethod
    def in_log1p(self, decoded: Tensor) -> Tensor:
        """Expected values in log1p(CP10K) of a library without missing entries, (..., n_genes)."""

    @abstractmethod
    def answer(self, decoded: Tensor, exposure: Tensor, library: Tensor, estimand: Estimand) -> Tensor:
        """Expected value in the unit that samples are averaged in: CP10K for rates, log1p(CP10K) for captured values.

        `decoded` is (..., batch, n_genes); `exposure` and `library` are library sizes in counts, (batch, 1): without
        missing entries, and of the measurement.
        """

    def in_measured_unit(self, mean: Tensor, variance: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of :meth:`answer`, of what is modelled, in the unit of measured values."""
        return mean, variance

    @abstractmethod
    def predictive(self, mean: Tensor, variance: Tensor, library: Tensor, estimand: Estimand) -> Predictive:
        """Distribution of measured counts, from mean and variance of :meth:`answer` of what is modelled."""

    @abstractmethod
    def sample_counts(self, mean: Tensor, library: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts about :meth:`answer` of what is modelled, same shape as `mean`; `library` broadcasts against it."""

    @abstractmethod
    def region_evidence(
        self, decoded: Tensor, centre: Spots, own: Own, exposure: Tensor, library: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is found and expected of each entry, as its effect defines it, (batch, n_genes), 0 where not visible."""

    # ---- skill: expected measured values of held-out entries

    @abstractmethod
    def for_skill(self, decoded: Tensor, exposure: Tensor, library: Tensor) -> Tensor:
        """Expected values as :meth:`expected_log1p` takes them, (batch, n_genes)."""

    @abstractmethod
    def expected_log1p(self, predicted: Tensor, library: Tensor, genes: Tensor, estimand: Estimand) -> Tensor:
        """Expected measured log1p(CP10K) of entries, (n_entries,); for ``"captured"`` given that there is a count."""

    def count_baselines(self, *expected: Tensor) -> tuple[Tensor, ...]:
        """Of expected counts of simple predictors, those that :meth:`expected_log1p` can take."""
        return ()
