"""Fit the experts, their averaging weights and the gene effects, after the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Inputs, Spots
from lgdist_scvi.module.experts import HeldOutBatch, TrainingSpots, best_weights
from lgdist_scvi.module.lgdist._hiding import Hide

if TYPE_CHECKING:
    from lgdist_scvi.module.lgdist._module import LGDiSTModule

_N_PROFILE_SPOTS = 4096  # that profiles are learnt from, fewer of whole transcriptomes
_N_PROFILE_ENTRIES = 8_000_000
_N_SPOTS = 2048  # that choose weights
_MASKS = (keys.MASK, keys.NEIGHBOR_MASK)

Batch = dict[str, torch.Tensor]


@torch.no_grad()
def fit_experts(module: LGDiSTModule, batches: Iterable[Batch], generator: torch.Generator) -> None:
    """Fit the experts, and choose their averaging weights on held-out entries.

    Parameters
    ----------
    module
        With a trained autoencoder.
    batches
        Batches of spots.
    generator
        Of the random starts and of the entries that are hidden in turn.
    """
    module.experts.in_use.fill_(False)
    if not module.own_entries:
        return  # experts correct predictions of spots with visible entries
    try:
        _fit(module, batches, generator)
    except BaseException:  # Ctrl-C among them: experts are fitted whole or not at all
        module.experts.in_use.fill_(False)
        raise


def _fit(module: LGDiSTModule, batches: Iterable[Batch], generator: torch.Generator) -> None:
    average, likelihood = module.experts, module.likelihood
    chosen, parts, n_spots = [], [], 0
    n_enough = min(_N_PROFILE_SPOTS, _N_PROFILE_ENTRIES // len(likelihood.gene_rate))
    for batch in batches:
        if n_spots >= max(n_enough, _N_SPOTS):
            break
        batch = {key: value.to(average.weights_hidden.device) for key, value in batch.items()}
        if n_spots < n_enough:
            parts.append(_for_profiles(module, batch))
        # whole batches are large: no more are kept than choose weights
        if n_spots < _N_SPOTS:
            chosen.append({key: _packed(key, value) for key, value in batch.items()})
        n_spots += len(batch[keys.COUNTS])
    likelihood.reset_gene_effects()
    batches = _Each(lambda batch: {key: _unpacked(key, value) for key, value in batch.items()}, chosen)
    data = _training_spots(parts, _Each(lambda batch: module.inputs(batch, "set_aside"), batches))
    for expert in average.experts:
        expert.fit(data, likelihood, generator)
    average.weights_hidden.zero_()
    average.weights_visible.zero_()
    average.in_use.fill_(True)
    for hold_out in likelihood.hold_outs:
        held_out = _held_out(module, batches, hold_out, generator)
        average.weights_of(hold_out).copy_(best_weights(likelihood, len(average.experts), held_out))
    likelihood.fit_gene_effects(_halves(module, batches, generator))
    # share of each gene's entries that is held out, in spots that are not held out whole
    patterns = module.set_aside_patterns
    share = patterns[~patterns.all(dim=1)].float().mean(0)  # (n_genes,)
    for expert in average.experts:
        expert.release(share)


@dataclass
class _Each:
    """What a function gives of each of several things, computed anew whenever they are gone through."""

    function: Callable[[Any], Any]
    given: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return map(self.function, self.given)


def _packed(key: str, values: torch.Tensor) -> torch.Tensor:
    """The same in less memory."""
    if key in _MASKS:
        return values.bool()
    few = values.ndim == 2 and values.is_floating_point() and 8 * values.count_nonzero() < values.numel()
    return values.to_sparse() if few else values


def _unpacked(key: str, values: torch.Tensor) -> torch.Tensor:
    return values.float() if key in _MASKS else values.to_dense()


def _for_profiles(module: LGDiSTModule, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Counts, which of them are visible, library, rows of the spots and of their neighbours, and which of these exist."""
    centre = module.inputs(batch, "set_aside").centre
    neighbor = batch[keys.NEIGHBOR_SPOT].flatten().long()[batch[keys.NEIGHBOR_INDEX].long()]
    library = module.likelihood.visible_library(centre)
    spot, valid = batch[keys.SPOT].flatten().long(), batch[keys.NEIGHBOR_VALID].float()
    return centre.counts, centre.visible, library, spot, neighbor, valid


def _training_spots(parts: Sequence[tuple[torch.Tensor, ...]], batches: Iterable[Inputs]) -> TrainingSpots:
    """Join batches of spots; neighbours that are in none of them are left out."""
    counts, visible, library, spot, neighbor, valid = map(torch.cat, zip(*parts, strict=True))
    position = torch.full((int(max(spot.max(), neighbor.max())) + 1,), -1, device=spot.device)
    position[spot] = torch.arange(len(spot), device=spot.device)
    index = position[neighbor]
    return TrainingSpots(Spots(counts, visible, library), index.clamp(min=0), valid * (index >= 0), batches)


def _held_out(
    module: LGDiSTModule, batches: Iterable[Batch], hide: Hide, generator: torch.Generator
) -> Iterator[HeldOutBatch]:
    """Predictions of network and experts of what is held out."""
    for batch in batches:
        inputs = module.inputs(batch, hide, generator)
        condition = module.condition_of(inputs)
        network = module.autoencoder.decode(condition.mean, condition)
        exposure = module.fitted_exposure(batch, inputs)
        yield HeldOutBatch(network, condition.experts, condition.reliability, inputs.target, exposure, inputs.score > 0)


def _halves(
    module: LGDiSTModule, batches: Iterable[Batch], generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """Predictions from one half of the molecules, that half, and the other, with the libraries of both."""
    for batch in batches:
        inputs = module.inputs(batch, "split", generator)
        condition = module.condition_of(inputs)
        rate, known = module.decode(condition.mean, condition), inputs.known
        yield rate, condition.own, (inputs.target * known, module.fitted_exposure(batch, inputs) * known)
