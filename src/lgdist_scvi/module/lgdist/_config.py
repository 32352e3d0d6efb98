"""Sizes and settings of the LGDiST module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from lgdist_scvi._checks import check_positive_int

_COUNTED = (
    "n_latent", "n_factors", "n_profiles", "n_mixtures", "n_hidden", "n_layers", "n_heads", "n_denoiser_hidden",
    "n_denoiser_layers", "n_denoiser_heads", "n_timesteps", "n_draws", "n_image_components",
)  # fmt: skip
_SHARES = ("dropout_rate", "hide_up_to", "hide_spot", "keep_at_least", "hide_image")
_WEIGHTS = ("visible_weight", "decoded_weight", "kl_weight")


@dataclass(frozen=True)
class LGDiSTConfig:
    """Arguments of :class:`~lgdist_scvi.LGDiST`, where they are explained.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    n_latent: int
    n_factors: int
    n_profiles: int
    n_mixtures: int
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout_rate: float
    n_denoiser_hidden: int
    n_denoiser_layers: int
    n_denoiser_heads: int
    n_timesteps: int
    hide_up_to: float
    hide_spot: float
    visible_weight: float
    keep_at_least: float
    set_aside_fraction: float
    n_draws: int
    decoded_weight: float
    kl_weight: float
    n_image_components: int = 64
    hide_image: float = 0.3

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Take the sizes and settings from among the arguments of a model."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        given = asdict(self)
        for name in _COUNTED:
            check_positive_int(given[name], name)
        for width, heads in (("n_hidden", "n_heads"), ("n_denoiser_hidden", "n_denoiser_heads")):
            if given[width] % given[heads]:
                raise ValueError(f"{width}={given[width]} must be a multiple of {heads}={given[heads]}")
        if self.n_denoiser_hidden % 2:
            raise ValueError(f"n_denoiser_hidden={self.n_denoiser_hidden} must be even")
        if not 0 < self.set_aside_fraction < 0.5:
            raise ValueError(f"set_aside_fraction must lie between 0 and 0.5, got {self.set_aside_fraction}")
        for name in _SHARES:
            if not 0 <= given[name] <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {given[name]}")
        for name in _WEIGHTS:
            if not 0 <= given[name] < np.inf:
                raise ValueError(f"{name} must be at least 0, got {given[name]}")
