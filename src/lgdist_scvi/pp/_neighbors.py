"""Spatial neighbourhood graphs, one slide at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_coordinates, get_obs, get_samples
from lgdist_scvi._checks import check_new_key, check_positive_int
from lgdist_scvi._lattice import array_rows, in_plane, lattice
from lgdist_scvi._slides import choose_sample_key
from lgdist_scvi._squidpy import squidpy

_MIN_SCALE = 6  # neighbours that tell how far apart spots are; a single nearest one is too random
_FAR = 10.0  # 10 times the usual distance means 100 times fewer spots per area: no tissue in between


def spatial_neighbors(
    adata: AnnData,
    n_neighbors: int = 6,
    sample_key: str | None = None,
    spatial_key: str = "spatial",
    key_added: str = "spatial",
    *,
    max_distance: float | None = None,
) -> None:
    """Connect every spot with its nearest neighbours on the same slide.

    The neighbours of a spot are its exact `n_neighbors` nearest spots (squidpy's kNN builder), cut at a distance, so that
    a spot at a border, at a hole or alone has fewer of them rather than wrong ones. Where to cut follows from the
    slide's geometry, which is recognised from the distances between spots:

    - hexagonal (Visium) or square (Visium HD, 100 um Spatial Transcriptomics) lattice: cut behind the ring in which the
      last neighbour of an inner spot lies. 6 on a hexagonal lattice is the first ring, 18 the first and second; on a
      square lattice 4 is the first ring, 8 includes the diagonals and 6 takes the two nearest diagonals. If a ring does
      not fit as a whole, ties are resolved by direction, not by the order of spots.
    - anything else (beads, cells): a bead far from the tissue is left alone; edges are cut that are 10 times longer than
      those of the neighbours themselves (the median of their longest).

    squidpy's grid builder also takes the nearest spots and cuts, at 1.3 times their median distance. That is the first
    ring of a whole slide; in fragmented tissue the median exceeds the pitch and the cut lets second rings in.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars), with spot coordinates in `obsm[spatial_key]`. Coordinates of different slides
        may overlap.
    n_neighbors
        Largest number of neighbours of a spot.
    sample_key
        Column of `adata.obs` with the slide; there is never an edge between slides. ``None``: a column that clearly names
        several slides, with a warning, as in :meth:`lgdist_scvi.LGDiST.setup_anndata`; else one slide.
    spatial_key
        Key of `adata.obsm` with the coordinates, (n_obs, 2) or (n_obs, 3). Rows and columns of a Visium array are taken for
        places on a hexagonal lattice, with a warning; distances are then in half the distance of two spots.
    key_added
        Prefix of the keys written; no "/".
    max_distance
        Longest edge, in the units of the coordinates, instead of the cuts described above.

    Returns
    -------
    Nothing; writes

    - `obsp[key_added + "_connectivities"]`: CSR, float32, 1 where column j is a neighbour of row i, empty diagonal;
    - `obsp[key_added + "_distances"]`: CSR, float32, Euclidean distances in the units of the coordinates;
    - `uns[key_added + "_neighbors"]`: the parameters, as squidpy does, and each slide's geometry.

    Warns
    -----
    UserWarning
        If slides were found, or may be mixed; if coordinates are rows and columns of an array.

    Raises
    ------
    KeyError
        If `spatial_key` or `sample_key` is absent.
    ValueError
        If there are no spots; if `n_neighbors` or `max_distance` is not positive, or `key_added` cannot stand in a file; if
        coordinates are NaN, infinite or duplicated on a slide, of more than 3 dimensions, or count sections.
    """
    check_positive_int(n_neighbors, "n_neighbors")
    check_new_key(key_added, "key_added")
    if max_distance is not None and not max_distance > 0:
        raise ValueError(f"max_distance must be positive, got {max_distance!r}")
    sample_key = choose_sample_key(adata, sample_key, spatial_key)
    coordinates = get_coordinates(adata, spatial_key, sample_key)
    rows = array_rows(in_plane(np.asarray(adata.obsm[spatial_key], dtype=np.float64)), get_obs(adata))
    if rows is not None:
        warnings.warn(
            f"adata.obsm[{spatial_key!r}] holds rows and columns of the array, no pixels: column {rows} is taken for the rows, which "
            "lie sqrt(3) times as far apart; figures over an image need pixels there",
            stacklevel=2,
        )
    samples = get_samples(adata, sample_key)
    distances, geometry = build_distances(coordinates, samples, int(n_neighbors), max_distance)
    connectivities = distances.copy()
    connectivities.data = np.ones_like(distances.data)

    params = {
        "n_neighbors": int(n_neighbors),
        "coord_type": "generic" if "irregular" in geometry else "grid",
        "spatial_key": spatial_key,
        "geometry": np.array(geometry),
    }
    if sample_key is not None:
        params["sample_key"] = sample_key
        params["samples"] = np.asarray(pd.unique(get_obs(adata)[sample_key]), dtype=str)
    if max_distance is not None:
        params["max_distance"] = float(max_distance)
    adata.obsp[f"{key_added}_connectivities"] = connectivities
    adata.obsp[f"{key_added}_distances"] = distances
    adata.uns[f"{key_added}_neighbors"] = {
        "connectivities_key": f"{key_added}_connectivities",
        "distances_key": f"{key_added}_distances",
        "params": params,
    }


def build_distances(
    coordinates: np.ndarray, samples: np.ndarray, n_neighbors: int, max_distance: float | None = None
) -> tuple[sparse.csr_matrix, list[str]]:
    """Build the graph of all slides, from coordinates, (n_obs, 2) or more columns, and slide codes 0, 1, ..., (n_obs,).

    Edges are `max_distance` long at most; ``None`` chooses that for each slide.

    Returns
    -------
    Distances to the neighbours of each spot, CSR float32 (n_obs, n_obs), and the geometry of each slide
    (``"hexagonal"``, ``"square"`` or ``"irregular"``) in the order of the codes.
    """
    n_obs = len(coordinates)
    parts, geometry = [], []
    order = np.argsort(samples, kind="stable")
    for spots in np.split(order, np.flatnonzero(np.diff(samples[order])) + 1) if n_obs else []:
        rows, columns, lengths, kind = _slide_edges(coordinates[spots], n_neighbors, max_distance)
        parts.append((spots[rows], spots[columns], lengths))
        geometry.append(kind)
    if not parts:
        return sparse.csr_matrix((n_obs, n_obs), dtype=np.float32), geometry
    rows, columns, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    distances = sparse.csr_matrix((lengths.astype(np.float32), (rows, columns)), shape=(n_obs, n_obs))
    distances.sort_indices()
    return distances, geometry


def _slide_edges(
    coordinates: np.ndarray, n_neighbors: int, max_distance: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Find the edges (row, column, length) of one slide, and name its geometry."""
    n_spots = len(coordinates)
    if n_spots < 2:
        return np.empty(0, int), np.empty(0, int), np.empty(0), "irregular"
    kind, pitch = lattice(coordinates)
    if kind == "irregular":
        n_candidates = min(max(n_neighbors, _MIN_SCALE), n_spots - 1)
        rows, columns, lengths = _nearest(coordinates, n_candidates)
        # measured where the neighbours are, so that sparse tissue beside dense tissue keeps its neighbours
        longest = lengths.reshape(n_spots, -1).max(axis=1)
        cut = _FAR * np.median(longest[columns.reshape(n_spots, -1)], axis=1)[rows]
        unit = np.median(lengths)
    else:
        n_candidates, radius = _rings(kind, n_neighbors)
        rows, columns, lengths = _nearest(coordinates, min(n_candidates, n_spots - 1))
        cut, unit = radius * pitch, pitch
    near = lengths <= (cut if max_distance is None else max_distance)
    rows, columns, lengths = rows[near], columns[near], lengths[near]
    if n_candidates > n_neighbors:
        # x * y is the same for opposite directions: of equal distances, opposite pairs are kept together
        step = (coordinates[columns, :2] - coordinates[rows, :2]) / unit
        order = np.lexsort((step[:, 0], -step.prod(axis=1).round(6), (lengths / unit).round(6), rows))
        rows, columns, lengths = rows[order], columns[order], lengths[order]
        kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < n_neighbors
        rows, columns, lengths = rows[kept], columns[kept], lengths[kept]
    return rows, columns, lengths, kind


def _nearest(coordinates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the exact `k` nearest spots of every spot, as edges (row, column, length) in the order of rows."""
    # the builder behind sq.gr.spatial_neighbors_knn, which would log two lines for every slide
    edges = squidpy().gr.neighbors.KNNBuilder(n_neighs=k).build(coordinates)[1].tocoo()
    return edges.row, edges.col, edges.data


def _rings(kind: str, n_neighbors: int) -> tuple[int, float]:
    """Give the number of spots within the ring of the last neighbour, and a radius (in pitches) just behind that ring."""
    reach = int(np.ceil(np.sqrt(n_neighbors))) + 2
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squared = i**2 + j**2 + (i * j if kind == "hexagonal" else 0)  # whole numbers on both lattices
    rings, sizes = np.unique(squared[squared > 0], return_counts=True)
    within = np.cumsum(sizes)
    last = int(np.searchsorted(within, n_neighbors))
    return int(within[last]), float((np.sqrt(rings[last]) + np.sqrt(rings[last + 1])) / 2)
