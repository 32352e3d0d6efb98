"""What is visible of spots, and what it tells: the data that the networks hand on, and sums over neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass
class Spots:
    """What is visible of a set of spots.

    Attributes
    ----------
    counts
        Raw counts, (n, n_genes); entries that are not visible are ignored.
    visible
        1 where an entry may be looked at, float, (n, n_genes).
    library
        Library size in counts, (n, 1).
    fill
        Standardised deviation from the gene mean that a first round of training put in the place of missing entries, 0
        elsewhere, (n, n_genes); ``None`` in the first round.
    regional
        By how much genes stray over the slide and around the spot: factors of rates, or what is added to captured values,
        (n, n_genes); ``None`` if nothing is known of it.
    """

    counts: torch.Tensor
    visible: torch.Tensor
    library: torch.Tensor
    fill: torch.Tensor | None = None
    regional: torch.Tensor | None = None


@dataclass
class Around:
    """What the neighbours of each centre tell, whatever the centre shows.

    Attributes
    ----------
    tokens
        One per neighbour, (batch, k, n_hidden).
    valid
        (batch, k), False where a token is padding.
    deviation
        How far each gene of the neighbours lies from its mean, (batch, n_genes): logarithm of observed over expected
        counts, or mean standardised value.
    experts
        What they tell each expert; ``None`` if those have no say.
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    deviation: torch.Tensor
    experts: tuple | None


@dataclass
class Condition:
    """What a neighbourhood tells about its centre.

    Attributes
    ----------
    mean, log_variance
        Posterior of the latent, (batch, n_latent).
    tokens
        Summary of the neighbourhood, the centre's own visible part, and each neighbour: (batch, 2 + k, n_hidden).
    valid
        (batch, 2 + k), False where a token is padding.
    depth
        Logarithm of the library relative to the typical one, and the share of entries that are visible, (batch, 2).
    deviation
        See :class:`Around`.
    experts, reliability
        Predictions of the experts, (n_experts, batch, n_genes), and how much is known of the spot, (batch, 1); ``None`` if they
        have no say.
    correction
        What they do to the network's prediction, (batch, n_genes).
    regional
        See :class:`Spots`.
    own
        Visible counts of the spot, and the library sizes, in counts, that they are a part of, (batch, n_genes) each, 0 where
        nothing is visible; ``None`` like the experts.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor
    depth: torch.Tensor
    deviation: torch.Tensor
    experts: torch.Tensor | None = None
    reliability: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    regional: torch.Tensor | None = None
    own: tuple[torch.Tensor, torch.Tensor] | None = None

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Reparametrised sample of the latent, in the shape of `noise`, (..., batch, n_latent)."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


def sum_of_neighbors(values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Sum over the neighbours of each centre, (batch, n_columns).

    Parameters
    ----------
    values
        Of every spot that is a neighbour of some centre, (n, n_columns).
    index
        Rows of a centre's neighbours among these, (batch, k).
    valid
        1 where there is a neighbour, (batch, k).
    """
    return functional.embedding_bag(index, values, mode="sum", per_sample_weights=valid.to(values))
