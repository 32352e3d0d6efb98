"""Low-rank baselines: soft-impute and PCA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from lgdist_scvi.metrics.baselines._baseline import NEEDS_EVERY_ENTRY, baseline
from lgdist_scvi.metrics.baselines._data import CountData, LogData, grid, last, tuned
from lgdist_scvi.metrics.baselines._embedding import pearson_residuals, rates_from_residuals, truncated_svd

_PATH = tuple(0.5 * 0.7**step for step in range(11))  # shrinkage, as a part of the largest singular value
_RANKS = (10, 20, 30)
_PCA_RANKS = (2, 5, 10, 20, 30, 40)
_FLOORS = (0.02, 0.1, 0.2, 0.3, 0.5)  # smallest rate, as a part of the gene's mean rate
_MAX_STEPS = 15  # per shrinkage; each starts where the last one ended


@baseline()
def soft_impute(
    data: LogData | CountData,
    seed: int,
    rank: int | None = None,
    shrinkage: float | None = None,
) -> np.ndarray:
    """Complete the matrix with low rank and a nuclear-norm penalty (soft-impute).

    Missing entries are filled with the current estimate, the filled matrix is reduced to its leading singular vectors,
    whose singular values shrink by a constant, and so on; the path goes from strong to weak shrinkage, each start being
    the last result (Mazumder, Hastie & Tibshirani, JMLR 2010, algorithm 1; one step of subspace iteration in place of a
    full SVD, as in Hastie et al., JMLR 2015). Values are residuals from the gene mean. Where zeros are data nothing is
    missing, and one shrunken SVD of Pearson residuals remains.

    Parameters
    ----------
    rank
        Largest rank; ``None``: chosen on an inner hold-out.
    shrinkage
        Penalty, as a part of the largest singular value; ``None``: chosen on an inner hold-out.
    """
    if isinstance(data, CountData):
        grids = grid(rank, (max(_PCA_RANKS),)), grid(shrinkage, (0.0, *_PATH)), _FLOORS
        return tuned(data, seed, partial(_spectral, seed=seed), *grids)
    ranks = grid(rank, _RANKS)
    if rank is None or shrinkage is None:
        fit, loss = data.split(seed)
        rank, shrinkage = _choose(fit, loss, ranks, shrinkage, seed)
    _, prediction = last(_soft_impute(data, rank, _path_to(shrinkage), seed))
    return prediction


def _path_to(shrinkage: float) -> tuple[float, ...]:
    return (*(step for step in _PATH if step > shrinkage * 1.001), shrinkage)


def _choose(
    fit: LogData, loss: Callable[[np.ndarray], float], ranks: Sequence[int], shrinkage: float | None, seed: int
) -> tuple[int, float]:
    """Walk the path for every rank; stop a path, and the larger ranks, where the error rises again."""
    chosen, smallest = (ranks[0], shrinkage or _PATH[0]), np.inf
    for rank in ranks:
        errors = []
        path = _PATH if shrinkage is None else _path_to(shrinkage)
        for strength, prediction in _soft_impute(fit, rank, path, seed):
            errors.append((loss(prediction), strength))
            if shrinkage is None and len(errors) > 2 and errors[-1][0] > min(errors)[0] * 1.005:
                break
        error, strength = min(errors) if shrinkage is None else errors[-1]
        if error >= smallest:
            break
        chosen, smallest = (rank, strength), error
    return chosen


def _soft_impute(data: LogData, rank: int, path: Sequence[float], seed: int) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each shrinkage of the path with its prediction, (n_obs, columns)."""
    residuals = data.residuals
    u, s, vt = truncated_svd(residuals, rank, seed)
    largest = s[0]
    filled = residuals.copy()
    left, loadings = u, vt
    shrunk = np.zeros_like(s)
    for strength in path:
        for _ in range(_MAX_STEPS):
            basis, _ = np.linalg.qr(filled @ loadings.T)
            u, s, vt = np.linalg.svd(basis.T @ filled, full_matrices=False)
            previous, (left, shrunk, loadings) = (
                (left, shrunk, loadings),
                (basis @ u, np.maximum(s - strength * largest, 0), vt),
            )
            np.matmul(left * shrunk, loadings, out=filled)
            np.copyto(filled, residuals, where=data.mask)
            if _relative_change(previous, (left, shrunk, loadings)) < 1e-3:
                break
        yield strength, data.mean[data.columns] + (left * shrunk) @ loadings[:, data.columns]


def _relative_change(old: tuple[np.ndarray, ...], new: tuple[np.ndarray, ...]) -> float:
    """Frobenius norm of the change of a low-rank matrix relative to the new one, without forming either."""
    (u0, s0, v0), (u1, s1, v1) = old, new
    cross = float(((u0 * s0).T @ (u1 * s1) * (v0 @ v1.T)).sum())
    change = float((s0**2).sum() + (s1**2).sum()) - 2 * cross
    return np.sqrt(max(change, 0.0) / max(float((s1**2).sum()), 1e-12))


@baseline(with_mask=NEEDS_EVERY_ENTRY)
def pca(
    data: CountData,
    seed: int,
    rank: int | None = None,
    floor: float | None = None,
) -> np.ndarray:
    """Predict rates by PCA of Pearson residuals, mapped back.

    The residuals (count - library * gene rate) / sqrt(library * gene rate) have equal variance under Poisson noise, which
    log1p values of small counts have not. Needs every entry: zeros are data.

    Parameters
    ----------
    rank
        Number of components; ``None``: chosen on an inner thinning.
    floor
        Smallest rate, as a part of the gene's mean rate; ``None``: chosen likewise.
    """
    return tuned(data, seed, partial(_spectral, seed=seed), grid(rank, _PCA_RANKS), (0.0,), grid(floor, _FLOORS))


def _spectral(
    data: CountData, ranks: Sequence[int], strengths: Sequence[float], floors: Sequence[float], seed: int
) -> Iterator[tuple[tuple[int, float, float], np.ndarray]]:
    """Yield shrunken SVDs of Pearson residuals, as rates, (n_obs, columns)."""
    u, s, vt = truncated_svd(pearson_residuals(data), max(ranks), seed)
    for rank in ranks:
        for strength in strengths:
            kept = np.maximum(s[:rank] - strength * s[0], 0)
            for floor in floors:
                yield (rank, strength, floor), rates_from_residuals(data, u[:, :rank] * kept, vt[:rank], floor)
