"""Nearest neighbours in expression space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from scipy import sparse

from lgdist_scvi._poisson import MOLECULES
from lgdist_scvi.metrics.baselines._baseline import baseline
from lgdist_scvi.metrics.baselines._data import CountData, LogData, grid, tuned
from lgdist_scvi.metrics.baselines._embedding import pearson_residuals, spot_features, truncated_svd
from lgdist_scvi.metrics.baselines._means import smooth

_NEIGHBORS = (10, 20, 30, 50, 100, 200)
_ENTRIES = (0.1, 1.0)


@baseline()
def knn(
    data: LogData | CountData,
    seed: int,
    n_neighbors: int | None = None,
    shrinkage: float | None = None,
    n_components: int = 20,
) -> np.ndarray:
    """Predict the mean over the spots most alike in expression, shrunk toward the gene mean.

    Spots are compared in a PCA space: of values and detection with a mask, of Pearson residuals where zeros are data. The
    averages are those of :func:`~lgdist_scvi.metrics.baselines.neighbor_mean`, over these spots.

    Parameters
    ----------
    n_neighbors
        Number of spots; ``None``: chosen on an inner hold-out.
    shrinkage
        Weight of the gene mean: in observed entries with a mask, else in molecules. ``None``: chosen likewise.
    n_components
        Dimensions of the PCA space.
    """
    n_obs = len(data.has_content)
    if n_neighbors is not None and n_neighbors >= n_obs:
        raise ValueError(f"n_neighbors must be below the number of spots, {n_obs:,}; got {n_neighbors}")
    numbers = grid(n_neighbors, [k for k in _NEIGHBORS if k < n_obs] or [n_obs - 1])
    strengths = grid(shrinkage, _ENTRIES if isinstance(data, LogData) else MOLECULES)
    return tuned(data, seed, partial(_candidates, n_components=n_components, seed=seed), numbers, strengths)


def _candidates(
    data: LogData | CountData, numbers: Sequence[int], strengths: Sequence[float], n_components: int, seed: int
) -> Iterator[tuple[tuple[int, float], np.ndarray]]:
    from sklearn.neighbors import NearestNeighbors

    features = np.hstack(spot_features(data)) if isinstance(data, LogData) else pearson_residuals(data)
    u, s, _ = truncated_svd(features, n_components, seed)
    index = NearestNeighbors(n_neighbors=max(numbers)).fit(u * s)
    neighbors = index.kneighbors(return_distance=False)  # without the spot itself
    n_obs = len(neighbors)
    own = sparse.identity(n_obs, dtype=np.float32, format="csr")
    for k in numbers:
        indices = neighbors[:, :k].ravel()
        graph = sparse.csr_matrix(
            (np.ones(n_obs * k, dtype=np.float32), indices, np.arange(0, n_obs * k + 1, k)), shape=(n_obs, n_obs)
        )
        if isinstance(data, CountData):
            graph = graph + own
        for strength in strengths:
            yield (k, strength), smooth(graph, data, strength)
