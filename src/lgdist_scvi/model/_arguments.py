"""Arguments of the model, and those that the questions to a trained one share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import settings

from lgdist_scvi._checks import check_choice, check_positive_int
from lgdist_scvi.model._conformal import LEVELS

if TYPE_CHECKING:
    from anndata import AnnData

_SIZES = (
    "n_latent", "n_factors", "n_profiles", "n_mixtures", "n_hidden", "n_layers", "n_heads", "n_denoiser_hidden",
    "n_denoiser_layers", "n_denoiser_heads", "n_timesteps", "n_draws",
)  # fmt: skip


def seed_or_default(seed: int | None) -> int:
    """Seed, or else that of scvi-tools.

    Raises
    ------
    ValueError
        If it is not a whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        return int(settings.seed or 0)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
    return int(seed)


def spots_at(adata: AnnData, indices: Sequence[int] | None) -> np.ndarray:
    """Rows of the chosen spots."""
    if indices is None:
        return np.arange(adata.n_obs)
    given, indices = indices, np.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(f"indices must be a list of positions of spots, or a bool mask, got {given!r}")
    if indices.dtype == bool:
        if len(indices) != adata.n_obs:
            raise ValueError(f"indices is a mask of {len(indices):,} values for {adata.n_obs:,} spots")
        return np.flatnonzero(indices)
    if indices.dtype.kind not in "iu" and len(indices):
        raise ValueError(
            "indices must be positions of spots or a bool mask; adata.obs_names.get_indexer(names) gives them"
        )
    indices = indices.astype(np.int64)
    if len(indices) and (indices.min() < -adata.n_obs or indices.max() >= adata.n_obs):
        raise ValueError(f"indices reach beyond the {adata.n_obs:,} spots")
    return indices % max(adata.n_obs, 1)


def check_question(n_samples: int, observed: str, fill: str) -> None:
    """Refuse arguments that no completion can have."""
    check_positive_int(n_samples, "n_samples")
    check_choice("observed", observed, ("keep", "model"))
    check_choice("fill", fill, ("zeros", "masked"))


def check_interval(level: float, n_samples: int) -> None:
    """Refuse arguments that no interval can have."""
    if isinstance(level, bool) or not isinstance(level, Real):
        raise ValueError(f"level must be a number, such as 0.9, got {type(level).__name__}")
    if not 0 < level <= LEVELS[-1]:
        raise ValueError(f"level must lie between 0 and {LEVELS[-1]}, got {level}")
    if n_samples < 2:
        raise ValueError(f"an interval needs n_samples of at least 2, got {n_samples}")


def check_library_size(library_size: float | str) -> None:
    """Refuse what rates cannot be multiplied by."""
    if isinstance(library_size, str) and library_size == "latent":
        return
    if isinstance(library_size, bool) or not isinstance(library_size, Real) or not 0 < library_size < np.inf:
        raise ValueError(f'library_size must be a positive number or "latent", got {library_size!r}')


def check_sizes(arguments: Mapping[str, Any]) -> None:
    """Refuse numbers that no model can have; `arguments` are those of :class:`~lgdist_scvi.LGDiST`."""
    for name in _SIZES:
        check_positive_int(arguments[name], name)
    for width, heads in (("n_hidden", "n_heads"), ("n_denoiser_hidden", "n_denoiser_heads")):
        if arguments[width] % arguments[heads]:
            raise ValueError(f"{width}={arguments[width]} must be a multiple of {heads}={arguments[heads]}")
    if arguments["n_denoiser_hidden"] % 2:
        raise ValueError(f"n_denoiser_hidden={arguments['n_denoiser_hidden']} must be even")
    if not 0 < arguments["set_aside_fraction"] < 0.5:
        raise ValueError(f"set_aside_fraction must lie between 0 and 0.5, got {arguments['set_aside_fraction']}")
    for name in ("dropout_rate", "hide_up_to", "hide_spot", "keep_at_least"):
        if not 0 <= arguments[name] <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {arguments[name]}")
    for name in ("visible_weight", "decoded_weight", "kl_weight"):
        if not 0 <= arguments[name] < np.inf:
            raise ValueError(f"{name} must be at least 0, got {arguments[name]}")
