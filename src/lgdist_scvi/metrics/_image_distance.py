"""How far generated patches are from real ones, beside what real ones reach and what wrong conditions do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import sqrtm

from lgdist_scvi.metrics._image_features import features_of

_N_GROUPS = 20  # of the jackknife


def image_distance(
    real: np.ndarray,
    generated: np.ndarray,
    floor: np.ndarray,
    permuted: np.ndarray | None = None,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    encoder: str | Callable[[Any], Any] = "efficientnet-lite0",
    n_components: int = 32,
) -> pd.DataFrame:
    r"""Compare generated patches with real ones, in the features of an encoder.

    KID is the unbiased squared maximum mean discrepancy under the kernel :math:`(x \cdot y / d + 1)^3` (Binkowski et al. 2018). The
    Frechet distance is that of two Gaussians, in principal components of the floor's features: in all features a few hundred patches
    would leave their covariance singular. A distance alone says nothing: compare it with the floor, and with the controls.

    Distances are of collections: patches generated for permuted spots of the same slide are about as far as those in the right order.
    Whether a patch shows the expression of its own spot is seen in scores of pairs: a predictor that was trained on real patches, or
    the correlation of :func:`patch_composition` over spots.

    Parameters
    ----------
    real
        Patches that nothing was trained on, such as those of a section held out: uint8 (n, size, size, 3), or their features, (n, d).
    generated
        Patches generated for the expression of the same spots, in the same order.
    floor
        Real patches that the generator was trained on, such as those of the other sections: a generator cannot be
        expected to come closer to `real`.
    permuted
        Patches generated for the same expression, permuted among the spots.
    others
        Further patches to compare with `real`, by the name of their row, such as those of the central model alone.
    encoder
        As in :func:`~lgdist_scvi.pp.image_features`.
    n_components
        Principal components for the Frechet distance.

    Returns
    -------
    Rows ``"generated"``, ``"floor"``, ``"permuted"`` and those of `others`, with

    - `kid`, `frechet`: the distances; KID may be below 0, as an unbiased estimate of a small number;
    - `kid_se`, `frechet_se`: standard errors, by a jackknife over 20 groups of patches;
    - `kid_excess`, `kid_excess_se` and the same for `frechet`: distance minus that of ``"generated"``, with its standard error, which
      accounts for the real patches being the same;
    - `n`: number of patches.

    Raises
    ------
    ValueError
        If there are fewer than 20 patches of a kind, or patches are mixed with features.
    """
    images = {"real": real, "generated": generated, "floor": floor}
    images |= {} if permuted is None else {"permuted": permuted}
    images |= dict(others or {})
    for name, values in images.items():
        if len(values) < _N_GROUPS:
            raise ValueError(f"{name} holds {len(values)} patches; a distance needs at least {_N_GROUPS}")
    features = features_of(images, encoder)
    real_features = features.pop("real")
    components = _components(features["floor"], n_components)
    estimates = {}
    for name, values in features.items():
        kid = _kid(values, real_features)
        frechet = _jackknifed(_frechet, components(values), components(real_features))
        estimates[name] = {"kid": kid, "frechet": frechet}
    rows = {}
    for name, found in estimates.items():
        rows[name] = {"n": len(features[name])}
        for score, (value, left_out) in found.items():
            reference, its_left_out = estimates["generated"][score]
            rows[name] |= {
                score: value,
                f"{score}_se": _standard_error(left_out),
                f"{score}_excess": value - reference,
                f"{score}_excess_se": _standard_error(left_out - its_left_out),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _groups(n: int) -> np.ndarray:
    """Group of each patch: neighbours in the order are together, as they are on the tissue."""
    return np.arange(n) * _N_GROUPS // n


def _standard_error(left_out: np.ndarray) -> float:
    """Of an estimate, from its values without each group."""
    return float(np.sqrt((_N_GROUPS - 1) * left_out.var()))


def _jackknifed(
    distance: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Distance, and distances without each group of both."""
    x_group, y_group = _groups(len(x)), _groups(len(y))
    left_out = [distance(x[x_group != group], y[y_group != group]) for group in range(_N_GROUPS)]
    return distance(x, y), np.array(left_out)


def _kid(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Squared maximum mean discrepancy, and that without each group: sums of the kernel over pairs of groups are made once."""
    parts = {}
    for name, one, other in (("xx", x, x), ("yy", y, y), ("xy", x, y)):
        kernel = (one @ other.T / one.shape[1] + 1) ** 3
        if one is other:
            np.fill_diagonal(kernel, 0)
        rows, columns = (np.eye(_N_GROUPS)[_groups(len(part))] for part in (one, other))
        parts[name] = rows.T @ kernel @ columns
    sizes = {name: np.bincount(_groups(len(part)), minlength=_N_GROUPS) for name, part in (("x", x), ("y", y))}

    def estimate(left: np.ndarray) -> float:
        n, m = sizes["x"][left].sum(), sizes["y"][left].sum()
        within = {name: parts[name][np.ix_(left, left)].sum() for name in parts}
        return within["xx"] / (n * (n - 1)) + within["yy"] / (m * (m - 1)) - 2 * within["xy"] / (n * m)

    groups = np.arange(_N_GROUPS)
    return float(estimate(groups)), np.array([estimate(groups[groups != group]) for group in groups])


def _components(features: np.ndarray, n_components: int) -> Callable[[np.ndarray], np.ndarray]:
    """Principal components of some features, for others."""
    mean = features.mean(axis=0)
    axes = np.linalg.svd(features - mean, full_matrices=False)[2][:n_components].T
    return lambda values: (values - mean) @ axes


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians with the moments of two samples."""
    x_covariance, y_covariance = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    middle = np.real(sqrtm(x_covariance @ y_covariance))
    apart = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(apart + np.trace(x_covariance + y_covariance - 2 * middle))
