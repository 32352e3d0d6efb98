"""Sizes and settings of the Stem module."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from lgdist_scvi._checks import check_choice, check_positive_int

_COUNTED = (
    "n_components", "n_latent", "n_hidden", "n_layers", "n_heads", "n_denoiser_hidden", "n_denoiser_layers",
    "n_denoiser_heads", "n_timesteps", "n_draws",
)  # fmt: skip
_SHARES = ("dropout_rate", "hide_patch")


@dataclass(frozen=True)
class StemConfig:
    """Arguments of :class:`~lgdist_scvi.Stem`, where they are explained.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    n_components: int
    n_latent: int
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout_rate: float
    hide_patch: float
    n_denoiser_hidden: int
    n_denoiser_layers: int
    n_denoiser_heads: int
    n_timesteps: int
    n_draws: int
    decoded_weight: float
    denoiser: Literal["latent", "genes"] = "latent"

    def __post_init__(self) -> None:
        given = asdict(self)
        check_choice("denoiser", self.denoiser, ("latent", "genes"))
        for name in _COUNTED:
            check_positive_int(given[name], name)
        for width, heads in (("n_hidden", "n_heads"), ("n_denoiser_hidden", "n_denoiser_heads")):
            if given[width] % given[heads]:
                raise ValueError(f"{width}={given[width]} must be a multiple of {heads}={given[heads]}")
        if self.n_denoiser_hidden % 2:
            raise ValueError(f"n_denoiser_hidden={self.n_denoiser_hidden} must be even")
        for name in _SHARES:
            if not 0 <= given[name] < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {given[name]}")
        if not 0 <= self.decoded_weight < np.inf:
            raise ValueError(f"decoded_weight must be at least 0, got {self.decoded_weight}")
