"""The neighbourhood dataset: batches of spots with their neighbours, gathered by index."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.spatial import cKDTree
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import Subset

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import as_csr, get_coordinates, get_counts, get_mask, get_samples
from lgdist_scvi._checks import list_names
from lgdist_scvi._units import library_size
from lgdist_scvi.data._fields import find_sample_key

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 2048  # spots


class NeighborhoodManager(AnnDataManager):
    """An :class:`~scvi.data.AnnDataManager` whose batches carry the neighbours of their spots.

    Attributes
    ----------
    fill
        Completed log1p(CP10K) of a first round, float16, (n_obs, n_genes), that stands in for missing entries of
        neighbours; ``None`` in the first round.
    regional
        Factors of the rates, or what is added to captured values, (n_obs, n_genes): by how much genes stray over the slide and
        around each spot; ``None`` where nothing is known of it.
    """

    fill: np.ndarray | None = None
    regional: np.ndarray | None = None

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """Create a :class:`NeighborhoodDataset`, restricted to `indices` if given.

        `data_and_attributes` and `load_sparse_tensor` are part of scvi-tools' signature; a neighbourhood is always
        loaded whole and dense.
        """
        dataset = NeighborhoodDataset(self)
        return dataset if indices is None else Subset(dataset, np.asarray(indices))


class NeighborhoodDataset(AnnTorchDataset):
    """Spots and their neighbours.

    Counts stay sparse; a batch gathers the rows of its spots and, once each, of their neighbours. Neighbours in which
    nothing is observed are left out; a spot that had some gets the nearest spots in which something is, along the graph. A spot
    of which nothing is observed, in a piece of tissue of which nothing is, gets the nearest of its slide. Others may have none.

    Parameters
    ----------
    adata_manager
        Manager with registered data.

    Raises
    ------
    ValueError
        If registered genes are gone, or nothing at all is observed of a slide, so that nothing predicts its spots.
    """

    def __init__(self, adata_manager: AnnDataManager):
        super().__init__(adata_manager)
        adata = adata_manager.adata
        registry = adata_manager.data_registry
        self.genes = np.asarray(adata_manager.get_state_registry(keys.COUNTS)["column_names"])
        self._columns = _columns(adata, self.genes)

        self.counts = _take_columns(get_counts(adata, registry[keys.COUNTS].attr_key), self._columns)
        self.mask = None
        if keys.MASK in registry:
            self.mask = _take_columns(get_mask(adata, registry[keys.MASK].attr_key), self._columns)
        self.library = self._library(adata, registry)
        self.has_content = self._has_content()
        self._set_neighbors()

    def _library(self, adata: AnnData, registry: dict) -> np.ndarray:
        summed = library_size(self.counts, self.mask)
        if keys.LIBRARY not in registry:
            return summed
        key = registry[keys.LIBRARY].attr_key
        library = np.asarray(adata.obs[key], dtype=np.float64)
        # half a count of slack for totals that were stored as float32
        if n_small := int((library < summed * (1 - 1e-6) - 0.5).sum()):
            raise ValueError(
                f"{n_small:,} of {len(library):,} library sizes in adata.obs[{key!r}] are smaller than the counts of the "
                "registered genes; give total counts per spot (pp.select_genes writes 'total_counts'), or None"
            )
        return library

    def _has_content(self) -> np.ndarray:
        """Whether anything is known of a spot; a spot without counts says nothing about expression."""
        content = self.library > 0
        return content if self.mask is None else content & self.mask.any(axis=1)

    def shows_zeros(self) -> bool:
        """Whether some known entry is a zero."""
        stored = sparse.csr_matrix(self.counts)
        if self.mask is None:
            return stored.nnz < np.prod(stored.shape)
        rows = np.repeat(np.arange(stored.shape[0]), np.diff(stored.indptr))
        return int(self.mask.sum()) > int(self.mask[rows, stored.indices].sum())

    def hides_every_zero(self) -> bool:
        """Whether there are zeros, and a mask calls all of them missing."""
        if self.mask is None or self.shows_zeros():
            return False
        n_positive = self.counts.nnz if sparse.issparse(self.counts) else np.count_nonzero(self.counts)
        return n_positive < np.prod(self.counts.shape)

    def without(self, spots: np.ndarray) -> NeighborhoodDataset:
        """The same data as if nothing were observed of some spots."""
        other = copy.copy(self)
        other.has_content = self.has_content.copy()
        other.has_content[spots] = False
        other._set_neighbors()
        return other

    @property
    def graph(self) -> sparse.csr_matrix:
        """The registered graph, (n_obs, n_obs)."""
        return as_csr(self.adata_manager.adata.obsp[self.adata_manager.data_registry[keys.GRAPH].attr_key])

    def _set_neighbors(self) -> None:
        adata, registry, graph = self.adata_manager.adata, self.adata_manager.data_registry, self.graph
        # a model of one slide may be asked about several
        sample_key = find_sample_key(adata, registry[keys.SAMPLE].attr_key if keys.SAMPLE in registry else None)
        self.samples = samples = get_samples(adata, sample_key)
        self.coordinates = coordinates = get_coordinates(adata, registry[keys.COORDINATES].attr_key, sample_key)
        rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
        lengths = np.linalg.norm(coordinates[rows] - coordinates[graph.indices], axis=1)
        pitch = spot_pitch(rows, lengths, samples, coordinates)
        useful = self.has_content[graph.indices]
        edges = pd.DataFrame({"spot": rows[useful], "neighbor": graph.indices[useful]})
        n_left = np.bincount(edges["spot"], minlength=graph.shape[0])
        self.far = n_left == 0
        n_slots = max(1, int(np.diff(graph.indptr).max(initial=0)))
        reached = _reach_further(graph, np.flatnonzero((n_left == 0) & (np.diff(graph.indptr) > 0)), self.has_content)
        stranded = ~self.has_content & (n_left == 0)
        stranded[reached["spot"]] = False
        nearest = _nearest(coordinates, samples, np.flatnonzero(stranded), self.has_content, n_slots)
        edges = pd.concat([edges, reached, nearest])
        edges["distance"] = (
            np.linalg.norm(coordinates[edges["spot"]] - coordinates[edges["neighbor"]], axis=1)
            / pitch[samples[edges["spot"]]]
        )
        edges = edges.sort_values(["spot", "distance"], kind="stable")
        edges["slot"] = edges.groupby("spot").cumcount()
        # a far ring may hold many spots: the nearest suffice
        edges = edges[edges["slot"] < n_slots]
        self.neighbors = np.full((graph.shape[0], n_slots), -1, dtype=np.int64)
        self.distances = np.zeros((graph.shape[0], n_slots), dtype=np.float32)
        self.neighbors[edges["spot"], edges["slot"]] = edges["neighbor"]
        self.distances[edges["spot"], edges["slot"]] = edges["distance"]

        lost = np.flatnonzero(~self.has_content & (self.neighbors[:, 0] < 0))
        if len(lost):
            raise ValueError(
                f"{len(lost):,} of {adata.n_obs:,} spots ({list_names(adata.obs_names[lost])}) lie on a slide of which no count "
                "is observed, so nothing predicts them; drop that slide"
            )

    def along_graph(self, spots: np.ndarray) -> np.ndarray:
        """Positions in `spots` in an order in which neighbours follow each other, so that batches share them."""
        valid = self.neighbors >= 0
        shape = (len(self.neighbors),) * 2
        graph = sparse.csr_matrix((valid[valid], (np.nonzero(valid)[0], self.neighbors[valid])), shape=shape)
        rank = np.empty(len(self.neighbors), dtype=np.int64)
        rank[reverse_cuthill_mckee(graph)] = np.arange(len(rank))
        return np.argsort(rank[spots], kind="stable")

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows of all spots, as many at a time as are well held dense."""
        for start in range(0, len(self), _BLOCK):
            yield np.arange(start, min(start + _BLOCK, len(self)))

    def rows(self, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts, mask and library of some spots, dense float32."""
        counts = self.counts[spots]
        counts = (counts.toarray() if sparse.issparse(counts) else counts).astype(np.float32)
        known = np.broadcast_to(self.has_content[spots, None], counts.shape)
        mask = (known if self.mask is None else known & self.mask[spots]).astype(np.float32)
        # a hidden entry must not reach the network, whatever its value
        counts *= mask
        return counts, mask, self.library[spots, None].astype(np.float32)

    def __getitem__(self, indexes: int | list[int] | slice) -> dict[str, np.ndarray]:
        """Load spots with their neighbours; the keys are those of `_keys`."""
        spots = np.atleast_1d(np.arange(len(self))[indexes])
        counts, mask, library = self.rows(spots)
        neighbors = self.neighbors[spots]
        valid = neighbors >= 0
        unique, inverse = np.unique(neighbors[valid], return_inverse=True)
        if len(unique) == 0:  # only isolated spots: any row does, none is valid
            unique = spots[:1]
        index = np.zeros(neighbors.shape, dtype=np.int64)
        index[valid] = inverse
        neighbor_counts, neighbor_mask, neighbor_library = self.rows(unique)
        batch = {
            keys.SPOT: spots[:, None],
            keys.COUNTS: counts,
            keys.MASK: mask,
            keys.LIBRARY: library,
            keys.NEIGHBOR_SPOT: unique[:, None],
            keys.NEIGHBOR_COUNTS: neighbor_counts,
            keys.NEIGHBOR_MASK: neighbor_mask,
            keys.NEIGHBOR_LIBRARY: neighbor_library,
            keys.NEIGHBOR_INDEX: index,
            keys.NEIGHBOR_DISTANCE: self.distances[spots],
            keys.NEIGHBOR_VALID: valid,
            keys.NEIGHBORS_FAR: self.far[spots, None],
        }
        if self.adata_manager.fill is not None:
            batch[keys.NEIGHBOR_FILL] = self.adata_manager.fill[unique].astype(np.float32)
        if self.adata_manager.regional is not None:
            batch[keys.REGIONAL] = self.adata_manager.regional[spots]
        return batch


def spot_pitch(rows: np.ndarray, lengths: np.ndarray, samples: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Distance between neighbouring spots of each slide: the median over spots of the nearest neighbour's, (n_slides,).

    `rows` and `lengths` are those of the graph's edges; on a slide without edges the nearest spot is the neighbour.
    """
    nearest = pd.Series(lengths).groupby(rows).min()
    medians = nearest.groupby(samples[nearest.index]).median()
    pitch = np.ones(samples.max(initial=0) + 1)
    pitch[medians.index] = medians.to_numpy()
    for sample in np.setdiff1d(samples, medians.index):
        spots = coordinates[samples == sample]
        if len(spots) > 1:
            pitch[sample] = np.median(cKDTree(spots).query(spots, [2])[0])
    return pitch


def _reach_further(graph: sparse.csr_matrix, spots: np.ndarray, has_content: np.ndarray) -> pd.DataFrame:
    """Walk the graph from spots without useful neighbours to the first ring that has some."""
    parts = [_walk(graph, spots[has_content[spots]], has_content)]
    known, asking = has_content.copy(), np.isin(np.arange(len(has_content)), spots)
    found = useful = np.flatnonzero(has_content)
    while len(found) and (asking & ~known).any():
        # what is nearest to neighbours that are one step less away
        reached = sparse.csr_matrix((np.ones(len(found), dtype=bool), (found, useful)), shape=graph.shape)
        found, useful = (graph.astype(bool) @ reached).nonzero()
        found, useful = found[~known[found]], useful[~known[found]]
        known[found] = True
        parts.append(pd.DataFrame({"spot": found, "neighbor": useful})[asking[found]])
    return pd.concat(parts).astype(np.int64)


def _walk(graph: sparse.csr_matrix, spots: np.ndarray, has_content: np.ndarray) -> pd.DataFrame:
    """The same, spot by spot: for spots that have content themselves, which are no way for others to pass."""
    found_spots, found = [], []
    for spot in spots:
        seen = {int(spot)}
        ring = set(graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]].tolist())
        while ring:
            useful = [other for other in ring if has_content[other]]
            if useful:
                found += useful
                found_spots += [spot] * len(useful)
                break
            seen |= ring
            ring = {
                int(n) for other in ring for n in graph.indices[graph.indptr[other] : graph.indptr[other + 1]]
            } - seen
    return pd.DataFrame(
        {"spot": np.asarray(found_spots, dtype=np.int64), "neighbor": np.asarray(found, dtype=np.int64)}
    )


def _nearest(
    coordinates: np.ndarray, samples: np.ndarray, spots: np.ndarray, has_content: np.ndarray, n: int
) -> pd.DataFrame:
    """Join spots to the `n` nearest of their slide that have content."""
    found = [pd.DataFrame({"spot": [], "neighbor": []}, dtype=np.int64)]
    for sample in np.unique(samples[spots]):
        asking = spots[samples[spots] == sample]
        useful = np.flatnonzero(has_content & (samples == sample))
        if len(useful):
            rank = np.arange(1, min(n, len(useful)) + 1)
            _, place = cKDTree(coordinates[useful]).query(coordinates[asking], rank)
            found.append(pd.DataFrame({"spot": np.repeat(asking, len(rank)), "neighbor": useful[place].ravel()}))
    return pd.concat(found)


def _columns(adata: AnnData, genes: np.ndarray) -> np.ndarray | None:
    """Positions of the registered genes in `adata`; ``None`` if they are simply all of them in order."""
    if adata.n_vars == len(genes) and np.array_equal(np.asarray(adata.var_names), genes):
        return None
    columns = adata.var_names.get_indexer(genes)
    if (lost := columns < 0).any():
        raise ValueError(
            f"{int(lost.sum()):,} of the {len(genes):,} registered genes ({list_names(genes[lost])}) are no longer in "
            "adata.var_names; restore them, or call setup_anndata again and train a new model"
        )
    return columns


def _take_columns(matrix, columns: np.ndarray | None):
    return matrix if columns is None else matrix[:, columns]
