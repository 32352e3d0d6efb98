"""What a training step hides, and how visible counts are split into what is looked at and what is fitted."""

from __future__ import annotations

import torch

_N_GROUPS = 8


def draw_hidden(
    shape: torch.Size, up_to: float, whole_spots: float, device: torch.device, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw entries to hide, (n_obs, n_genes), bool.

    Parameters
    ----------
    shape
        (n_obs, n_genes)
    up_to
        Largest share of a spot's entries that is hidden.
    whole_spots
        Share of the spots of which everything is hidden.
    device, generator
        Of the draws.
    """
    n_obs, n_genes = shape
    whole = torch.rand(n_obs, 1, device=device, generator=generator) < whole_spots
    share = up_to * torch.rand(n_obs, 1, device=device, generator=generator)
    # groups of genes are hidden to different degrees: that one gene is hidden says little about another
    group = torch.randint(_N_GROUPS, (n_genes,), device=device, generator=generator)
    share = share * torch.rand(n_obs, _N_GROUPS, device=device, generator=generator)[:, group]
    return torch.rand(shape, device=device, generator=generator) < torch.where(whole, 1.0, share)


def split_counts(
    counts: torch.Tensor, kept: torch.Tensor, visible: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thin the visible counts: one part is looked at, the rest is fitted (count splitting).

    Under Poisson noise the two parts are independent given the rate, so that a visible count can be fitted without
    learning to repeat it.

    Parameters
    ----------
    counts
        (batch, n_genes)
    kept
        Share that is looked at, (batch, 1).
    visible
        (batch, n_genes)
    generator
        Of the draws.

    Returns
    -------
    Counts to look at, counts to fit, and the share of the exposure that the latter have.
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
