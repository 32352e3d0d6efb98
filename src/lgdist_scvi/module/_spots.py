"""Spots and their neighbourhoods in torch, and sums over neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Spots:
    """The visible part of a set of spots.

    Attributes
    ----------
    counts
        Raw counts, (n, n_genes); entries that are not visible are ignored.
    visible
        1 where an entry is visible in this pass, float, (n, n_genes).
    library
        Library size in counts, (n, 1).
    prefill
        Standardised value that stands in for a missing entry, 0 elsewhere, (n, n_genes).
    region_effect
        Effect of the slide and of the surroundings of each spot, (n, n_genes).
    fields
        Whatever else is registered, (n, ...) each, by the name of the field.
    """

    counts: Tensor
    visible: Tensor
    library: Tensor
    prefill: Tensor | None = None
    region_effect: Tensor | None = None
    fields: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Inputs:
    """One batch in one pass: what is visible, and what is scored.

    Attributes
    ----------
    centre, neighbors
        The spots of the batch, and every spot that is a neighbour of some centre, once.
    index, distance, valid
        Rows of a centre's neighbours among these, their distances in units of the spot pitch, and False where there is
        no neighbour; (batch, k) each.
    counts, known
        Counts before thinning, and 1 where an entry is observed and not held out, (batch, n_genes).
    target, share
        Counts to fit, (batch, n_genes), and the share of the library that they are a part of: a number, (batch, 1) or
        as `target`.
    score
        Weight of each entry in the loss, (batch, n_genes).
    """

    centre: Spots
    neighbors: Spots
    index: Tensor
    distance: Tensor
    valid: Tensor
    counts: Tensor
    known: Tensor
    target: Tensor
    share: Tensor | float
    score: Tensor


@dataclass
class Neighborhood:
    """Encoded neighbours of each centre; independent of the centre's own entries.

    Attributes
    ----------
    tokens, valid
        One per neighbour, (batch, k, n_hidden), and False where it is padding, (batch, k).
    log_ratio
        Of each gene in the neighbours: logarithm of observed over expected counts, or mean standardised value;
        (batch, n_genes).
    experts
        What each expert takes from the neighbours; ``None`` if the experts are not used.
    image
        What the image adds; ``None`` if it is not used.
    """

    tokens: Tensor
    valid: Tensor
    log_ratio: Tensor
    experts: list[Any] | None
    image: Any = None


@dataclass(kw_only=True)
class Posterior:
    """Posterior of the latent of each centre, and what averages its decoding with the experts' predictions.

    Attributes
    ----------
    mean, log_variance
        Gaussian posterior of the latent, (batch, n_latent).
    tokens, valid
        What the denoiser attends to, (batch, n_tokens, n_hidden), and False where it is padding; the first sums the
        others up.
    experts, reliability
        Predictions of the experts, (n_experts, batch, n_genes), and how reliable they are, from 0 to 1, (batch, 1);
        ``None`` if they are not used.
    correction
        What takes the network's prediction to its average with the experts', (batch, n_genes).
    own
        Visible counts of the spot, and the library sizes, in counts, that they are a part of, (batch, n_genes) each, 0
        where nothing is visible; ``None`` like the experts.
    """

    mean: Tensor
    log_variance: Tensor
    tokens: Tensor
    valid: Tensor
    experts: Tensor | None = None
    reliability: Tensor | None = None
    correction: Tensor | None = None
    own: tuple[Tensor, Tensor] | None = None

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the posterior, (batch, n_latent)."""
        return torch.exp(0.5 * self.log_variance)

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised sample of the latent, in the shape of `noise`, (..., batch, n_latent)."""
        return self.mean + self.spread * noise


@dataclass(kw_only=True)
class Condition(Posterior):
    """Posterior given a spot's visible entries and its neighbourhood, and what decoding needs of them.

    Tokens are a summary of the neighbourhood, the centre's own visible part, and each neighbour:
    (batch, 2 + k, n_hidden); where the image is used, that of the centre and that of each neighbour follow:
    (batch, 3 + 2 k, n_hidden). `depth` is the logarithm of the library relative to the typical one, and the share of
    visible entries, (batch, 2); `log_ratio` is as in :class:`Neighborhood`, `region_effect` as in :class:`Spots`.
    """

    depth: Tensor
    log_ratio: Tensor
    region_effect: Tensor | None = None


def sum_of_neighbors(values: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Sum over the neighbours of each centre, (batch, n_columns).

    `values` are of every spot that is a neighbour of some centre, (n, n_columns), `index` the rows of a centre's
    neighbours among these, and `valid` is 1 where there is one, (batch, k).
    """
    return functional.embedding_bag(index, values, mode="sum", per_sample_weights=valid.to(values))
