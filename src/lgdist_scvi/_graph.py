"""Geometry of spots: regular lattices, and numbers of edges between spots of a graph."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

_SHELL_TOLERANCE = 0.12  # relative; printed arrays (100 um Spatial Transcriptomics) scatter by about 5 %
_SHELL_TOLERANCE_SMALL = 0.03  # few distances fall near a shell by chance
_SMALL = 50  # spots
_MIN_DISTANCES = 10


def lattice(coordinates: np.ndarray) -> tuple[str, float]:
    """Recognise a regular lattice by the distances between neighbours.

    On a lattice they fall into shells: 1 and sqrt(3) times the pitch on a hexagonal one, 1 and sqrt(2) on a square one,
    and next to nothing in between. Spots lie in rows: pairs of spots, as two shifted lattices form them, are no lattice.

    Parameters
    ----------
    coordinates
        Of one slide, (n_spots, 2) or (n_spots, 3).

    Returns
    -------
    ``"hexagonal"``, ``"square"`` or ``"irregular"``, and the pitch in the units of the coordinates (NaN if irregular).
    """
    n_spots = len(coordinates)
    if n_spots < 3 or (np.ptp(coordinates, axis=0) > 0).sum() > 2:
        return "irregular", np.nan
    lengths = cKDTree(coordinates).query(coordinates, np.arange(2, min(8, n_spots - 1) + 2))[0]
    nearest = lengths[:, 0]
    pitch = np.median(nearest)
    if pitch == 0:
        return "irregular", np.nan
    pitch = np.median(lengths[lengths < 1.2 * pitch])
    in_rows = np.mean((lengths < 1.2 * pitch).sum(axis=1) > 1) >= 0.05
    if not in_rows or np.mean(np.abs(nearest / pitch - 1) < 0.2) < 0.5:
        return "irregular", np.nan
    tolerance = _SHELL_TOLERANCE if n_spots >= _SMALL else _SHELL_TOLERANCE_SMALL
    # a square lattice fails as a hexagonal one by its diagonals; a hexagonal one has nothing at sqrt(2) to fail with
    for kind, second in (("hexagonal", np.sqrt(3)), ("square", np.sqrt(2))):
        ratios = lengths[lengths < 1.15 * second * pitch] / pitch
        off = np.minimum(np.abs(ratios - 1), np.abs(ratios / second - 1))
        if len(ratios) >= _MIN_DISTANCES and np.mean(off < tolerance) >= 0.85:
            return kind, float(pitch)
    return "irregular", np.nan


def hops_from(graph: sparse.csr_matrix, sources: np.ndarray, limit: float = np.inf) -> np.ndarray:
    """Count the edges between each spot and the nearest source.

    Parameters
    ----------
    graph
        Neighbourhood graph, (n_obs, n_obs); edges lead both ways.
    sources
        Rows of the spots to start from.
    limit
        Number of edges after which to stop.

    Returns
    -------
    Number of edges, float64, (n_obs,): 0 for sources, infinite for spots out of reach.
    """
    if not len(sources):
        return np.full(graph.shape[0], np.inf)
    return dijkstra(graph, directed=False, indices=sources, unweighted=True, min_only=True, limit=limit)
