"""Arguments that the questions to a trained model share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scvi import settings

if TYPE_CHECKING:
    from anndata import AnnData


def seed_or_default(seed: int | None) -> int:
    """Seed, or else that of scvi-tools."""
    return int(settings.seed or 0) if seed is None else int(seed)


def spots_at(adata: AnnData, indices: Sequence[int] | None) -> np.ndarray:
    """Rows of the chosen spots."""
    if indices is None:
        return np.arange(adata.n_obs)
    indices = np.asarray(indices)
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


def check_choices(n_samples: int, observed: str, fill: str) -> None:
    """Refuse arguments that no completion can have."""
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    if observed not in ("keep", "model"):
        raise ValueError(f"observed must be 'keep' or 'model', got {observed!r}")
    if fill not in ("zeros", "masked"):
        raise ValueError(f"fill must be 'zeros' or 'masked', got {fill!r}")


def check_interval(level: float, n_samples: int) -> None:
    """Refuse arguments that no interval can have."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n_samples < 2:
        raise ValueError(f"an interval needs n_samples of at least 2, got {n_samples}")
