"""Surroundings of spots, wider than their neighbourhoods."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

N_AROUND = 168  # spots, seven rings of a hexagonal grid
_SAME = 1e-6  # relative difference of distances that are the same


def surroundings(graph: sparse.csr_matrix, coordinates: np.ndarray, n_around: int = N_AROUND) -> sparse.csr_matrix:
    """Weights of the nearest spots of the same piece of tissue, falling with the distance.

    Parameters
    ----------
    graph
        Neighbourhood graph, (n_obs, n_obs); its connected components are the pieces.
    coordinates
        (n_obs, n_dimensions).
    n_around
        Number of spots around each.

    Returns
    -------
    (n_obs, n_obs), with at most `n_around` weights in each row: Gaussian, with half the distance of the last of these spots as
    standard deviation. None of a spot for itself. Of spots at one distance, as on a grid, there are all or none.
    """
    n_obs = len(coordinates)
    _, piece = connected_components(graph, directed=False)
    n_around = min(n_around, int(np.bincount(piece, minlength=1).max()) - 1)
    if n_around < 1:
        return sparse.csr_matrix((n_obs, n_obs), dtype=np.float32)
    # a further dimension holds the pieces far apart
    extent = 1.0 + np.ptp(coordinates, axis=0).sum()
    tree = cKDTree(np.column_stack([coordinates, 2.0 * extent * piece]))
    distance, spot = tree.query(tree.data, n_around + 2, distance_upper_bound=extent)
    # spots as far as the first one beyond are left out with it: which come first would depend on the order of rows
    found = (distance < (1.0 - _SAME) * distance[:, -1:]) & (spot != np.arange(n_obs)[:, None])
    farthest = np.where(found, distance, 0.0).max(axis=1, keepdims=True)
    weights = np.exp(-2.0 * (distance / np.maximum(farthest, 1e-12)) ** 2, where=found, out=np.zeros_like(distance))
    rows = np.nonzero(found)[0]
    return sparse.csr_matrix((weights[found].astype(np.float32), (rows, spot[found])), shape=(n_obs, n_obs))
