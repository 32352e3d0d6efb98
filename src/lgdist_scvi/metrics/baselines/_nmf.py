"""Poisson non-negative matrix factorisation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from lgdist_scvi.metrics.baselines._baseline import NEEDS_EVERY_ENTRY, baseline
from lgdist_scvi.metrics.baselines._data import CountData, grid, last

_RANKS = (5, 10, 20, 30)
_STEPS = (20, 40, 80, 160, 320)  # early stopping is part of the regularisation
_SHRINKAGES = (0.001, 0.02, 0.05, 0.1, 0.2, 0.3)


@baseline(with_mask=NEEDS_EVERY_ENTRY)
def poisson_nmf(
    data: CountData,
    seed: int,
    rank: int | None = None,
    n_steps: int | None = None,
    shrinkage: float | None = None,
) -> np.ndarray:
    """Predict rates by Poisson (Kullback-Leibler) non-negative matrix factorisation.

    counts ~ Poisson(W H), multiplicative updates of scikit-learn (Lee & Seung, NIPS 2000); the rate is W H divided by the
    library and mixed with the gene's mean rate. Needs every entry: zeros are data.

    Parameters
    ----------
    rank
        Number of factors; ``None``: chosen on an inner thinning.
    n_steps
        Number of updates; ``None``: chosen likewise.
    shrinkage
        Weight of the gene's mean rate, between 0 and 1; ``None``: chosen likewise.
    """
    if shrinkage is not None and shrinkage > 1:
        raise ValueError(f"shrinkage must be between 0 and 1, got {shrinkage}")
    ranks = [min(r, *data.counts.shape) for r in grid(rank, _RANKS)]
    checkpoints, shrinkages = grid(n_steps, _STEPS), grid(shrinkage, _SHRINKAGES)
    chosen = (ranks[0], checkpoints[0], shrinkages[0])
    if len(ranks) * len(checkpoints) * len(shrinkages) > 1:
        chosen = _choose(data, ranks, checkpoints, shrinkages, seed)
    rank, n_steps, shrinkage = chosen
    _, rate = last(_updates(data, rank, (n_steps,), seed))
    return _mix(data, rate, shrinkage)


def _choose(
    data: CountData, ranks: Sequence[int], checkpoints: Sequence[int], shrinkages: Sequence[float], seed: int
) -> tuple[int, int, float]:
    """Stop the updates, and the larger ranks, where the inner loss rises."""
    fit, loss = data.split(seed)
    chosen, smallest = (ranks[0], checkpoints[0], shrinkages[0]), np.inf
    for rank in ranks:
        best_of_rank = (np.inf, chosen)
        for n_steps, rate in _updates(fit, rank, checkpoints, seed):
            step = min((loss(_mix(fit, rate, weight)), (rank, n_steps, weight)) for weight in shrinkages)
            if step[0] > best_of_rank[0]:
                break
            best_of_rank = step
        if best_of_rank[0] >= smallest:
            break
        smallest, chosen = best_of_rank
    return chosen


def _updates(data: CountData, rank: int, checkpoints: Sequence[int], seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of updates done and the rates, (n_obs, columns), at each checkpoint."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    library = np.where(data.library > 0, data.library, np.inf).astype(np.float32)[:, None]
    start, done = {}, 0
    for n_steps in checkpoints:
        model = NMF(
            n_components=rank,
            solver="mu",
            beta_loss="kullback-leibler",
            init="custom" if start else "nndsvda",
            max_iter=n_steps - done,
            tol=0,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is intended
            weights = model.fit_transform(data.counts, **start)
        start, done = {"W": weights, "H": model.components_}, n_steps
        yield n_steps, (weights / library) @ model.components_[:, data.columns]


def _mix(data: CountData, rate: np.ndarray, weight: float) -> np.ndarray:
    return (1 - weight) * rate + weight * data.gene_rate[data.columns]
