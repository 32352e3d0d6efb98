"""After stage 1: what the experts learn, how much say each of them has, and how far genes stray from what all of them say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from lgdist_scvi.module._neighborhood import Spots

if TYPE_CHECKING:
    from lgdist_scvi.module._module import Hide, LGDiSTModule
    from lgdist_scvi.module._vae import NeighborhoodVAE

_N_PROFILE_SPOTS = 4096  # that profiles are learnt from, fewer of whole transcriptomes
_N_PROFILE_ENTRIES = 8_000_000
_N_SPOTS = 2048  # that choose weights
_HIDDEN_FOR_NEIGHBORS = 0.1
_N_WEIGHTS = 10  # weights are multiples of a tenth
_N_GROUPS = 6  # of the genes, by their rates, with weights of their own where captured values are modelled
_N_SHARED = 500  # entries of all genes, as many as count in every group


@torch.no_grad()
def fit_experts(module: LGDiSTModule, batches: Iterable[dict[str, torch.Tensor]], generator: torch.Generator) -> None:
    """Let the experts learn, choose their weights on what training set aside, and let genes learn their deviations.

    Parameters
    ----------
    module
        With a trained VAE.
    batches
        Batches of spots.
    generator
        Of the random starts and of the entries that are hidden in turn.
    """
    vae = module.vae
    vae.has_experts.fill_(False)
    if not module.own_entries:
        return  # experts correct what is said of spots of which something is visible
    chosen, parts, n_spots = [], [], 0
    n_enough = min(_N_PROFILE_SPOTS, _N_PROFILE_ENTRIES // len(vae.gene_rate))
    for batch in batches:
        if n_spots >= max(n_enough, _N_SPOTS):
            break
        tensors = {key: value.to(vae.weights_hidden.device) for key, value in batch.items()}
        if n_spots < n_enough:
            parts.append(_for_profiles(module, tensors))
        # whole batches are large: no more are kept than choose weights
        if n_spots < _N_SPOTS:
            chosen.append(tensors)
        n_spots += len(tensors["X"])
    _fit_mixtures(vae, parts, generator)
    vae.weights_hidden.zero_()
    vae.weights_visible.zero_()
    if vae.counts_are_modelled:
        vae.deviations.variance.zero_()
    vae.has_experts.fill_(True)
    if vae.linear is not None:
        _fit_neighbors(module, chosen, generator)
    vae.weights_hidden.copy_(_best_weights(module, chosen, "set_aside", generator))
    if vae.counts_are_modelled:
        vae.weights_visible.copy_(_best_weights(module, chosen, "split", generator))
        _fit_deviations(module, chosen, generator)
    else:
        vae.mixtures.show_set_aside(module.share_set_aside())


def _for_profiles(module: LGDiSTModule, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Counts, which of them may be looked at, library, rows of the spots and of their neighbours, and which of these exist."""
    centre = module._get_inference_input(tensors, "set_aside")["centre"]
    neighbor = tensors["neighbor_spot"].flatten().long()[tensors["neighbor_index"].long()]
    library = module.vae.visible_library(centre)
    spot, valid = tensors["spot"].flatten().long(), tensors["neighbor_valid"].float()
    return centre.counts, centre.visible, library, spot, neighbor, valid


def _fit_mixtures(vae: NeighborhoodVAE, parts: Sequence[tuple[torch.Tensor, ...]], generator: torch.Generator) -> None:
    """Let the mixtures learn profiles from what is known of batches of spots."""
    counts, visible, library, spot, neighbor, valid = map(torch.cat, zip(*parts, strict=True))
    position = torch.full((int(max(spot.max(), neighbor.max())) + 1,), -1, device=spot.device)
    position[spot] = torch.arange(len(spot), device=spot.device)
    index = position[neighbor]
    valid = valid * (index >= 0)
    vae.mixtures.fit(counts, visible, library, index.clamp(min=0), valid, vae.gene_rate, generator=generator)


def _fit_neighbors(
    module: LGDiSTModule, batches: Sequence[dict[str, torch.Tensor]], generator: torch.Generator
) -> None:
    """Let the linear expert learn from entries that are hidden in turn how much of the neighbours to carry over."""
    vae, parts = module.vae, []
    for tensors in batches:
        inputs = module._get_inference_input(tensors, "set_aside")
        (around, *_), centre = module.around(inputs).experts, inputs["centre"]
        hidden = (torch.rand(centre.visible.shape, generator=generator) < _HIDDEN_FOR_NEIGHBORS).to(centre.visible)
        target, weight = vae.residuals(centre, vae.visible_library(centre))
        shown = Spots(centre.counts, centre.visible * (1.0 - hidden), centre.library)
        part = vae.linear.parts(*vae.residuals(shown, vae.visible_library(shown)), around)
        parts.append((target * hidden, weight * hidden, *part[:3]))
    vae.linear.fit_neighbors(parts)


def _best_weights(
    module: LGDiSTModule, batches: Sequence[dict[str, torch.Tensor]], hide: Hide, generator: torch.Generator
) -> torch.Tensor:
    """Weights of the experts that predict set-aside entries best, (n_experts, n_genes)."""
    vae = module.vae
    candidates = _candidates(len(vae.weights_hidden)).to(vae.weights_hidden)
    n_groups, n_genes = 1 if vae.counts_are_modelled else _N_GROUPS, len(vae.gene_rate)
    group = vae.gene_rate.argsort().argsort() * n_groups // n_genes
    losses, n_scored = candidates.new_zeros(len(candidates), n_groups), 0
    alone = torch.eye(candidates.shape[1], device=candidates.device)[:, :, None, None]
    for tensors in batches:
        inputs = module._get_inference_input(tensors, hide, generator)
        condition = vae.encode(inputs["centre"], module.around(inputs))
        network = vae.network(condition.mean, condition)
        scored = inputs["score"] > 0
        target = inputs["target"][scored]
        exposure = module.fitted_exposure(tensors, inputs).expand_as(network)[scored]
        full = torch.stack([vae.correction(condition, one)[scored] for one in alone])
        group_of_entry = group.expand_as(scored)[scored]
        n_scored += len(target)
        for place, weights in enumerate(candidates):
            error = vae.error(vae.corrected(network[scored], weights @ full), target, exposure)
            losses[place].index_add_(0, group_of_entry, error)
    losses += _N_SHARED / max(n_scored, 1) * losses.sum(1, keepdim=True)
    return candidates[losses.argmin(0)].T[:, group]


def _fit_deviations(
    module: LGDiSTModule, batches: Sequence[dict[str, torch.Tensor]], generator: torch.Generator
) -> None:
    """Let genes learn from halves of their counts how far they stray from what is expected of them."""
    vae = module.vae
    evidence = 0.0
    for tensors in batches:
        inputs = module._get_inference_input(tensors, "split", generator)
        condition = vae.encode(inputs["centre"], module.around(inputs))
        rate, known = vae.decode(condition.mean, condition), inputs["known"]
        again, exposure = inputs["target"] * known, module.fitted_exposure(tensors, inputs) * known
        evidence = evidence + vae.deviations.evidence(rate, *condition.own, again, exposure)
    vae.deviations.fit(evidence)


def _candidates(n_experts: int) -> torch.Tensor:
    """All weights that leave something, or nothing, to the network, (n_candidates, n_experts)."""
    tenths = itertools.product(range(_N_WEIGHTS + 1), repeat=n_experts)
    return torch.tensor([weights for weights in tenths if sum(weights) <= _N_WEIGHTS]) / _N_WEIGHTS
