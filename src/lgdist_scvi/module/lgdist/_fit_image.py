"""Fit what the image adds to the network, and choose how much of it is used, after the autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module.lgdist._image import known

if TYPE_CHECKING:
    from lgdist_scvi.module.lgdist._hiding import Hide
    from lgdist_scvi.module.lgdist._module import LGDiSTModule

_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # per spot
_WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_N_FOLDS = 5
_N_LESSONS = 8192  # spots that the shift is learnt from
_N_JUDGES = 2048  # spots that choose weights
_CERTAIN = 2.0  # standard errors that a gain must exceed: chance gains nothing

Batch = dict[str, torch.Tensor]


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
    image, lessons, judges, n_spots = module.image, [], [], 0
    for batch in batches:
        if n_spots >= _N_LESSONS:
            break
        batch = {key: value.to(image.coefficients.device) for key, value in batch.items()}
        lessons.append(_lesson(module, batch))
        if n_spots < _N_JUDGES:  # whole batches are large
            judges.append(batch)
        n_spots += len(batch[keys.COUNTS])
    design, target, teaches = map(torch.cat, zip(*lessons, strict=True))
    if teaches.sum() < 2 * _N_FOLDS:
        return
    fold = torch.randperm(len(design), generator=generator).to(design.device) % _N_FOLDS
    target = target - target[teaches].mean(0)
    shifts = torch.stack([_cross_fitted(design, target, teaches, fold, penalty) for penalty in _PENALTIES])
    place, weight = _best(_losses(module, judges, "set_aside", shifts, generator, own_entries=False))
    if not weight:
        return
    weight_visible = 0.0
    if module.own_entries:
        chosen = shifts[place : place + 1]
        _, weight_visible = _best(sum(_losses(module, judges, how, chosen, generator) for how in module.hold_outs))
    image.coefficients.copy_(_solve(design[teaches], target[teaches], _PENALTIES[place]))
    image.weight_visible.fill_(weight_visible)
    image.weight_hidden.fill_(weight)


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
    """Coefficients, (n_columns, n_latent), in double precision, which not every device has."""
    x, y = design.cpu().double(), target.cpu().double()
    ridge = penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.T @ x + ridge, x.T @ y).to(target)


def _cross_fitted(
    design: torch.Tensor, target: torch.Tensor, teaches: torch.Tensor, fold: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Shift of each spot by a regression on spots of other folds, (n, n_latent)."""
    shift = torch.zeros_like(target)
    for held_out in range(_N_FOLDS):
        there, others = teaches & (fold == held_out), teaches & (fold != held_out)
        shift[there] = design[there] @ _solve(design[others], target[others], penalty)
    return shift


def _losses(
    module: LGDiSTModule,
    batches: Sequence[Batch],
    hide: Hide,
    shifts: torch.Tensor,
    generator: torch.Generator,
    own_entries: bool = True,
) -> torch.Tensor:
    """Loss of each spot, summed over what is held out of it, without a shift and with each weight, (n_shifts, 1 + n_weights, n)."""
    parts, start = [], 0
    for batch in batches:
        inputs = module.inputs(batch, hide, generator, own_entries=own_entries)
        condition = module.encode(inputs.centre, module.neighborhood(inputs, with_experts=False))
        exposure, scored = module.fitted_exposure(batch, inputs), inputs.score > 0
        stop, losses = start + len(scored), []
        for shift in shifts[:, start:stop]:
            for weight in (0.0, *_WEIGHTS):
                decoded = module.autoencoder.decode(condition.mean + weight * shift, condition)
                losses.append((module.likelihood.error(decoded, inputs.target, exposure) * scored).sum(1))
        parts.append(torch.stack(losses).view(len(shifts), -1, len(scored)))
        start = stop
    return torch.cat(parts, dim=-1)


def _best(losses: torch.Tensor) -> tuple[int, float]:
    """Place of the best shift, and its best weight: 0 where none is certain to predict better than no shift."""
    gain = losses[:, :1] - losses[:, 1:]
    mean, error = gain.mean(-1), gain.std(-1) / gain.shape[-1] ** 0.5
    certain = torch.where(mean > _CERTAIN * error, mean, 0.0)
    if not certain.any():
        return 0, 0.0
    place, weight = divmod(int(certain.argmax()), len(_WEIGHTS))
    return place, _WEIGHTS[weight]
