"""After stage 1: what the experts learn, and how much say each of them has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from lgdist_scvi.module._neighborhood import Spots

if TYPE_CHECKING:
    from lgdist_scvi.module._module import Hide, LGDiSTModule

_HIDDEN_FOR_NEIGHBORS = 0.1
_N_WEIGHTS = 10  # weights are multiples of a tenth


@torch.no_grad()
def fit_experts(
    module: LGDiSTModule,
    batches: Sequence[dict[str, torch.Tensor]],
    centres: Iterable[Spots],
    generator: torch.Generator,
) -> None:
    """Let the experts learn, and choose their weights on what training set aside.

    Parameters
    ----------
    module
        With a trained VAE.
    batches
        Batches of spots.
    centres
        What may be looked at of spots, these or more: what the profiles are learnt from.
    generator
        Of the entries that are hidden in turn.
    """
    vae = module.vae
    if vae.profiles is not None:
        spots = list(centres)
        counts, known = (torch.cat([getattr(part, name) for part in spots]) for name in ("counts", "visible"))
        library = torch.cat([vae.visible_library(part) for part in spots])
        vae.profiles.fit(counts, known, library, vae.gene_rate, generator)
    vae.has_experts.fill_(True)
    parts = []
    for tensors in batches:
        inputs = module._get_inference_input(tensors, "set_aside")
        (around, *_), centre = module.around(inputs).experts, inputs["centre"]
        hidden = (torch.rand(centre.visible.shape, generator=generator) < _HIDDEN_FOR_NEIGHBORS).to(centre.visible)
        target, weight = vae.residuals(centre)
        shown = Spots(centre.counts, centre.visible * (1.0 - hidden), centre.library)
        parts.append((target * hidden, weight * hidden, *vae.linear.parts(*vae.residuals(shown), around)[:3]))
    vae.linear.fit_neighbors(parts, per_gene=not vae.counts_are_modelled)
    vae.weights_hidden.copy_(_best_weights(module, batches, "set_aside", generator))
    if vae.counts_are_modelled:
        vae.weights_visible.copy_(_best_weights(module, batches, "split", generator))


def _best_weights(
    module: LGDiSTModule, batches: Sequence[dict[str, torch.Tensor]], hide: Hide, generator: torch.Generator
) -> torch.Tensor:
    """Weights of the experts that predict set-aside entries best, (n_experts,)."""
    vae = module.vae
    candidates = _candidates(len(vae.weights_hidden)).to(vae.weights_hidden)
    losses = candidates.new_zeros(len(candidates))
    alone = torch.eye(candidates.shape[1], device=candidates.device)[:, :, None, None]
    for tensors in batches:
        inputs = module._get_inference_input(tensors, hide, generator if hide == "split" else None)
        condition = vae.encode(inputs["centre"], module.around(inputs))
        network = vae.network(condition.mean, condition)
        scored = inputs["score"] > 0
        target = inputs["target"][scored]
        exposure = module.fitted_exposure(tensors, inputs).expand_as(network)[scored]
        # of each expert what its full weight adds to 1, or to the network's value
        full = torch.stack([vae.correction(condition, one)[scored] for one in alone])
        neutral = 1.0 if vae.counts_are_modelled else 0.0
        for place, weights in enumerate(candidates):
            correction = neutral + weights @ (full - neutral)
            losses[place] += vae.error(vae.corrected(network[scored], correction), target, exposure).sum()
    return candidates[losses.argmin()]


def _candidates(n_experts: int) -> torch.Tensor:
    """All weights that leave something, or nothing, to the network, (n_candidates, n_experts)."""
    tenths = itertools.product(range(_N_WEIGHTS + 1), repeat=n_experts)
    return torch.tensor([weights for weights in tenths if sum(weights) <= _N_WEIGHTS]) / _N_WEIGHTS
