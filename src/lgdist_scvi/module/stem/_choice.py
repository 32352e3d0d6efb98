"""Choices that are made only where they are certain to pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_CERTAIN = 2.0  # standard errors that a gain must exceed: chance gains nothing


def certain_choice(losses: torch.Tensor, choices: Sequence[float]) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The choice with the largest gain that is certain, 0 without any; mean gain of each, and its standard error.

    Losses of spots are those of 0 and of each choice, (1 + n_choices, n).
    """
    gain = losses[:1] - losses[1:]
    mean, error = gain.mean(1), gain.std(1) / gain.shape[1] ** 0.5
    certain = mean > _CERTAIN * error
    return (choices[int(torch.where(certain, mean, 0.0).argmax())] if certain.any() else 0.0), mean, error
