"""Fit what the image adds to the network, and choose how much of it is used, after the autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Condition, Inputs
from lgdist_scvi.module.lgdist._image import known

if TYPE_CHECKING:
    from lgdist_scvi.module.lgdist._hiding import Hide
    from lgdist_scvi.module.lgdist._module import LGDiSTModule

_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # per spot
_WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_N_FOLDS = 5
_N_SPOTS = 8192
_CERTAIN = 2.0  # standard errors that a gain must exceed: chance gains nothing

Batch = dict[str, torch.Tensor]


class _Case(NamedTuple):
    """A batch with something held out: condition without the image, and places of its spots among all that learn."""

    batch: Batch
    inputs: Inputs
    condition: Condition
    place: torch.Tensor


@torch.no_grad()
def fit_image(module: LGDiSTModule, batches: Iterable[Batch], seed: int) -> None:
    """Fit the shift of the latent by the image, and choose its weights on held-out entries.

    What is learnt is how the posterior given everything that is known differs from that given the neighbours alone (ridge
    regression). Spots are judged by a regression that they had no part in. Whatever follows draws the same random numbers as
    without an image.

    Parameters
    ----------
    module
        With a trained autoencoder.
    batches
        Batches of spots.
    seed
        Of the parts of the spots, and of the entries that are hidden in turn.
    """
    module.image.reset()
    try:
        with torch.random.fork_rng(devices=[]):  # batches come in random order
            _fit(module, batches, torch.Generator().manual_seed(seed))
    except BaseException:  # Ctrl-C among them: the image is fitted whole or not at all
        module.image.reset()
        raise


def _fit(module: LGDiSTModule, batches: Iterable[Batch], generator: torch.Generator) -> None:
    image = module.image
    kept = _some(batches, image.coefficients.device)
    design, target, present = map(torch.cat, zip(*(_lesson(module, batch) for batch in kept), strict=True))
    if present.sum() < 2 * _N_FOLDS:
        return
    fold = torch.randperm(len(design), generator=generator).to(design.device) % _N_FOLDS
    target = target - target[present].mean(0)
    neighbors_alone = [list(_cases(module, kept, "set_aside", generator, own_entries=False))]
    best, chosen = 0.0, None
    for penalty in _PENALTIES:
        shift = _cross_fitted(design, target, present, fold, penalty)
        weight, gain = _best_weight(module, neighbors_alone, shift)
        if gain > best:
            best, chosen = gain, (penalty, weight, shift)
    if chosen is None:
        return
    penalty, weight, shift = chosen
    image.coefficients.copy_(_solve(design[present], target[present], penalty))
    weight_visible = 0.0
    if module.own_entries:
        own = [list(_cases(module, kept, hold_out, generator)) for hold_out in module.hold_outs]
        weight_visible, _ = _best_weight(module, own, shift)
    image.weight_visible.fill_(weight_visible)
    image.weight_hidden.fill_(weight)


def _some(batches: Iterable[Batch], device: torch.device) -> list[Batch]:
    kept, n_spots = [], 0
    for batch in batches:
        kept.append({key: value.to(device) for key, value in batch.items()})
        n_spots += len(batch[keys.COUNTS])
        if n_spots >= _N_SPOTS:
            break
    return kept


def _lesson(module: LGDiSTModule, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Components of spots and of their surroundings, what they should add to the latent, and which spots teach it."""
    hidden = module.inputs(batch, "set_aside", own_entries=False)
    around = module.image.surroundings(hidden.neighbors.fields[keys.IMAGE], hidden.index, hidden.valid)
    neighborhood = module.neighborhood(hidden, with_experts=False)
    everything = replace(hidden.centre, visible=hidden.known)
    difference = module.encode(everything, neighborhood).mean - module.encode(hidden.centre, neighborhood).mean
    values, present = known(hidden.centre.fields[keys.IMAGE])
    teaches = present[:, 0] & hidden.known.bool().any(dim=1)
    return torch.cat([values, around.mean], dim=1), difference, teaches


def _solve(design: torch.Tensor, target: torch.Tensor, penalty: float) -> torch.Tensor:
    design, target = design.double(), target.double()
    ridge = penalty * max(len(design), 1) * torch.eye(design.shape[1], dtype=design.dtype, device=design.device)
    return torch.linalg.solve(design.T @ design + ridge, design.T @ target).float()


def _cross_fitted(
    design: torch.Tensor, target: torch.Tensor, present: torch.Tensor, fold: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Shift of each spot by a regression on spots of other folds, (n, n_latent)."""
    shift = torch.zeros_like(target)
    for held_out in range(_N_FOLDS):
        there, others = present & (fold == held_out), present & (fold != held_out)
        shift[there] = design[there] @ _solve(design[others], target[others], penalty)
    return shift


def _cases(
    module: LGDiSTModule, batches: Sequence[Batch], hide: Hide, generator: torch.Generator, own_entries: bool = True
) -> Iterator[_Case]:
    start = 0
    for batch in batches:
        inputs = module.inputs(batch, hide, generator, own_entries=own_entries)
        place = torch.arange(start, start + len(inputs.target), device=inputs.target.device)
        start += len(place)
        yield _Case(batch, inputs, module.encode(inputs.centre, module.neighborhood(inputs, with_experts=False)), place)


def _best_weight(module: LGDiSTModule, cases: Sequence[Sequence[_Case]], shift: torch.Tensor) -> tuple[float, float]:
    """Weight of the shift that predicts what is held out best, and how much better than without; 0 where that is not certain."""
    before = _losses(module, cases, shift, 0.0)
    best, most = 0.0, 0.0
    for weight in _WEIGHTS:
        gain = before - _losses(module, cases, shift, weight)
        error = gain.std() / len(gain) ** 0.5
        if gain.mean() > max(most, _CERTAIN * error):
            best, most = weight, float(gain.mean())
    return best, most


def _losses(module: LGDiSTModule, cases: Sequence[Sequence[_Case]], shift: torch.Tensor, weight: float) -> torch.Tensor:
    """Loss of each spot, summed over its held-out entries and the ways of holding out, (n,)."""
    total = 0.0
    for batches in cases:
        losses = []
        for batch, inputs, condition, place in batches:
            latent = condition.mean + weight * shift[place]
            decoded = module.autoencoder.decode(latent, condition)
            error = module.likelihood.error(decoded, inputs.target, module.fitted_exposure(batch, inputs))
            losses.append((error * (inputs.score > 0)).sum(1))
        total = total + torch.cat(losses)
    return total
