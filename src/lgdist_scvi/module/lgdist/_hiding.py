"""What is hidden of a batch, and what is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module.likelihood import split_counts

if TYPE_CHECKING:
    from lgdist_scvi.module.lgdist._module import LGDiSTModule

Hide = Literal["random", "set_aside", "split", "nothing"]

_N_GROUPS = 8
# what a latent may be is widest, and least Gaussian, where nothing of a spot is visible
_WHOLE_SPOTS_IN_DIFFUSION = 0.3


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


def split_batch(
    module: LGDiSTModule,
    batch: dict[str, torch.Tensor],
    hide: Hide,
    generator: torch.Generator | None,
    autoencode: bool,
    own_entries: bool,
) -> Split:
    """Split the centres of a batch into what is visible and what is scored; arguments as in :meth:`LGDiSTModule.inputs`."""
    counts, observed = batch[keys.COUNTS], batch[keys.MASK].bool()
    aside = torch.zeros_like(observed) if hide == "nothing" else module.set_aside(batch[keys.SPOT])
    known = visible = observed & ~aside
    whole_spots = module.hide_spot if autoencode else max(module.hide_spot, _WHOLE_SPOTS_IN_DIFFUSION)
    target, share, looked_at, score = counts, 1.0, 1.0, (observed & aside).float()
    how = known.shape, module.config.hide_up_to, whole_spots, known.device
    sees_itself = own_entries and (module.own_entries or (hide == "random" and autoencode))
    if hide == "random":
        visible = known & ~draw_hidden(*how) & sees_itself
        weight = module.config.visible_weight
        if autoencode:
            counts, target, share, looked_at, weight = module.likelihood.thin(
                counts, visible, module.config.keep_at_least, weight
            )
        score = torch.where(visible, weight, 1.0) * known
    elif hide == "split":
        visible, looked_at = observed, torch.full_like(counts[:, :1], 0.5)
        counts, target, share = split_counts(counts, looked_at, visible, generator)
    elif hide == "set_aside" and not autoencode:
        visible = known & ~draw_hidden(*how, generator)
    return Split(counts, visible & sees_itself, looked_at, known, target, share, score)
