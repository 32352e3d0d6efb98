"""Choices that are made only where they are certain to pay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lgdist_scvi.module.stem._patches import TrainingPatches, on_device

if TYPE_CHECKING:
    from lgdist_scvi.module.stem._module import StemModule

_SYNTHETIC_WEIGHTS = (0.25, 0.5, 1.0)
_CERTAIN = 2.0  # standard errors that a gain must exceed: chance gains nothing


def certain_choice(losses: torch.Tensor, choices: Sequence[float]) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The choice with the largest gain that is certain, 0 without any; mean gain of each, and its standard error.

    Losses of spots are those of 0 and of each choice, (1 + n_choices, n).
    """
    gain = losses[:1] - losses[1:]
    mean, error = gain.mean(1), gain.std(1) / gain.shape[1] ** 0.5
    certain = mean > _CERTAIN * error
    return (choices[int(torch.where(certain, mean, 0.0).argmax())] if certain.any() else 0.0), mean, error


@torch.no_grad()
def choose_synthetic_weight(
    module: StemModule, batches: Iterable[dict[str, torch.Tensor]], seed: int
) -> dict[str, float]:
    """Choose how much generated patches count, by the expert alone and on slides that were not seen.

    Returns
    -------
    The weight, and for each that was tried the gain over none, in nats per spot, and its standard error.
    """
    data, (expert,) = TrainingPatches.of(on_device(batches, module.spread.device)), module.experts.experts
    tried, lengths = [], {}
    for weight in (0.0, *_SYNTHETIC_WEIGHTS):
        data, generator = replace(data, synthetic_weight=weight), torch.Generator().manual_seed(seed)
        tried.append(expert.fit(data, module.likelihood, generator, **lengths))
        lengths = {"lengths": (float(expert.length),)}  # that of the weight 0 does for all, in a fifth of the time
    chosen, gain, error = certain_choice(torch.stack(tried), _SYNTHETIC_WEIGHTS)
    module.synthetic_weight.fill_(chosen)
    told = {"weight": chosen}
    for weight, its_gain, its_error in zip(_SYNTHETIC_WEIGHTS, gain.tolist(), error.tolist(), strict=True):
        told |= {f"gain_{weight}": its_gain, f"se_{weight}": its_error}
    return told
