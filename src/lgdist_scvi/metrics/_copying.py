"""Whether generated patches are copies of those that a generator was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from lgdist_scvi.metrics._image_features import features_of

_CLOSE = 0.05  # quantile of the real patches' distances below which a generated patch counts as close


def image_copying(
    generated: np.ndarray,
    real: np.ndarray,
    training: np.ndarray,
    *,
    encoder: str | Callable[[Any], Any] = "efficientnet-lite0",
) -> dict[str, float]:
    """Compare distances to the nearest training patch: of generated patches, and of real ones that nothing was trained on.

    A generator that copies has patches that are nearer to a training patch than new tissue ever is. One whose patches are all
    alike and plain may have that too: look at the nearest pairs.

    Parameters
    ----------
    generated, real, training
        Patches, uint8 (n, size, size, 3), or their features, (n, d).
    encoder
        As in :func:`~lgdist_scvi.pp.image_features`.

    Returns
    -------
    - `generated`, `real`: median distance to the nearest training patch;
    - `ratio`: the first over the second;
    - `share_close`: share of generated patches that are nearer to a training patch than 95 % of the real ones; .05 without copying;
    - `p_value`: of distances of generated patches being no smaller than those of real ones (Mann-Whitney, one-sided).

    Raises
    ------
    ValueError
        If real patches are among those of the training, or patches are mixed with features.
    """
    features = features_of({"generated": generated, "real": real, "training": training}, encoder)
    nearest = {name: _nearest(features[name], features["training"]) for name in ("generated", "real")}
    if (same := nearest["real"] == 0).any():
        raise ValueError(
            f"{int(same.sum()):,} of {len(same):,} real patches are training patches; real must hold patches that nothing was trained on"
        )
    medians = {name: float(np.median(distances)) for name, distances in nearest.items()}
    return {
        **medians,
        "ratio": medians["generated"] / medians["real"],
        "share_close": float((nearest["generated"] < np.quantile(nearest["real"], _CLOSE)).mean()),
        "p_value": float(mannwhitneyu(nearest["generated"], nearest["real"], alternative="less").pvalue),
    }


def _nearest(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance to the nearest of others, (n,)."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(values, others)[1]
