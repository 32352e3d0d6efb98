"""What is hidden of a batch, and what is scored."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Hide = Literal["random", "set_aside", "split", "nothing"]

_N_GROUPS = 8


class Split(NamedTuple):
    """What is visible of the centres of a batch, and what is scored; see :class:`~lgdist_scvi.module._spots.Inputs`.

    `looked_at` is the share of the library that the counts looked at are a part of: a number, or (batch, 1).
    """

    counts: torch.Tensor
    visible: torch.Tensor
    looked_at: torch.Tensor | float
    known: torch.Tensor
    target: torch.Tensor
    share: torch.Tensor | float
    score: torch.Tensor


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
