"""The neighbourhood dataset: batches with every registered field of spots and of their neighbours, gathered by index."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import Subset

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import (
    get_coordinates,
    get_graph,
    get_library,
    get_samples,
    open_counts,
    open_mask,
    refuse_counts,
)
from lgdist_scvi._checks import list_names, require_key
from lgdist_scvi._stored import StoredRows, as_csr, is_stored, new_digest
from lgdist_scvi.data._graph import distances, drawn_patches, nearest, reach_further, spot_pitch
from lgdist_scvi.data._totals import Totals, totals_of

_BLOCK, _BLOCK_ENTRIES = 2048, 1 << 22  # spots, and entries where all of them are dense
_N_CALIBRATION, _N_TRAINING = 16_384, 65_536  # spots of larger data that training looks at
_MASK_ENTRIES = 1 << 28  # of a mask, held dense in training
# fields that are read and checked in a way of their own; any other one flows into the batch as it is
_KNOWN_FIELDS = (keys.COUNTS, keys.MASK, keys.GRAPH, keys.COORDINATES, keys.SAMPLE, keys.LIBRARY)


def registered_anndata(adata_manager: AnnDataManager) -> AnnData:
    """The AnnData that holds the registered fields: of a MuData, the modality that was named."""
    modality = getattr(adata_manager.data_registry[keys.COUNTS], "mod_key", None)
    return adata_manager.adata if modality is None else adata_manager.adata.mod[modality]


class NeighborhoodDataset(AnnTorchDataset):
    """Spots and their neighbours.

    Counts stay sparse; a batch gathers the rows of its spots and, once each, of their neighbours. Neighbours that tell
    nothing (`informative`: here those of which nothing is observed) are dropped. If none is left, the nearest
    informative spots along the graph replace them. A spot that is not informative itself, in a connected component
    without any that is, falls back to the nearest informative spots of its slide. Isolated informative spots keep an
    empty neighbourhood.

    Attributes
    ----------
    fields
        Further fields by name, (n_obs, ...) each: those registered, and those that :meth:`with_fields` adds. A batch
        holds their rows under the name, and those of the neighbours under ``"neighbor_" + name``.

    spots
        Rows in the AnnData of the spots of a :meth:`part`, (n_obs,); ``None`` of the whole.

    Raises ValueError if registered genes are gone, or nothing at all is observed of a slide, so that nothing predicts
    its spots.
    """

    spots: np.ndarray | None = None

    def __init__(self, adata_manager: AnnDataManager):
        super().__init__(adata_manager)
        self.adata = registered_anndata(adata_manager)
        registry = adata_manager.data_registry
        self.genes = np.asarray(adata_manager.get_state_registry(keys.COUNTS)["column_names"])
        self.counts, self.mask = self._measured(registry)
        self.totals = self._totals(registry)
        if self.totals.all_observed:
            self.mask = None
        self.library = self._library(registry)
        self.has_content = self._has_content()
        self.fields = {name: self._field(name) for name in registry if name not in _KNOWN_FIELDS}
        self._registered_fields = tuple(self.fields)
        # a model of one slide may be asked about several
        sample_key = adata_manager.get_state_registry(keys.COORDINATES)["sample_key"]
        self.samples = get_samples(self.adata, sample_key)
        self.coordinates = get_coordinates(self.adata, registry[keys.COORDINATES].attr_key, sample_key)
        self.graph = get_graph(self.adata, registry[keys.GRAPH].attr_key)
        self._set_neighbors()
        self._refuse_lost(np.flatnonzero(~self.informative & (self.neighbors[:, 0] < 0)))

    def __len__(self) -> int:
        return len(self.library)

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """Stand in for the manager in scvi-tools' data loaders, so that they do not read and check the data again."""
        return self if indices is None else Subset(self, np.asarray(indices))

    def _measured(self, registry: dict) -> tuple[Any, Any]:
        """Counts, (n_obs, n_genes), and what is observed of them, ``None`` if all is; in memory, or where they are stored."""
        self._columns = _columns(self.adata, self.genes)
        counts = _take_columns(open_counts(self.adata, registry[keys.COUNTS].attr_key), self._columns)
        mask = None
        if keys.MASK in registry:
            mask = _take_columns(open_mask(self.adata, registry[keys.MASK].attr_key), self._columns)
        return counts, mask

    def _totals(self, registry: dict) -> Totals:
        """Sums from one pass, in which counts on disk are checked."""
        totals, n_bad = totals_of(self.counts, self.mask, self._blocks(self.counts.shape[0]))
        refuse_counts(self.adata, registry[keys.COUNTS].attr_key, n_bad)
        return totals

    def _library(self, registry: dict) -> np.ndarray:
        summed = self.totals.observed
        if keys.LIBRARY not in registry:
            return summed
        key = registry[keys.LIBRARY].attr_key
        library = get_library(self.adata, key)
        # half a count of slack for totals that were stored as float32
        if n_small := int((library < summed * (1 - 1e-6) - 0.5).sum()):
            raise ValueError(
                f"{n_small:,} of {len(library):,} library sizes in adata.obs[{key!r}] are smaller than the counts of the "
                "registered genes; give total counts per spot (pp.select_genes writes 'total_counts'), or None"
            )
        return library

    def _field(self, name: str) -> Any:
        """A registered field: an array or a sparse matrix, (n_obs, ...)."""
        field, state = self.adata_manager.data_registry[name], self.adata_manager.get_state_registry(name)
        if state.get("absent"):  # other data may lack it
            return np.full((self.adata.n_obs, state["n_features"]), np.nan, dtype=np.float32)
        if field.attr_key is not None:
            require_key(getattr(self.adata, field.attr_name), field.attr_key, f"adata.{field.attr_name}")
        values = self.adata_manager.get_from_registry(name)
        if is_stored(values) and len(values.shape) == 2:
            values = StoredRows(values, f"adata.{field.attr_name}[{field.attr_key!r}]")
        if field.attr_name in ("X", "layers"):
            values = _take_columns(values, self._columns)
        if isinstance(values, StoredRows):
            return values
        return as_csr(values) if sparse.issparse(values) else np.asarray(values)

    def _has_content(self) -> np.ndarray:
        """Whether anything is observed of a spot; a spot without counts says nothing about expression."""
        content = self.library > 0
        return content if self.mask is None else content & (self.totals.n_observed > 0)

    @property
    def informative(self) -> np.ndarray:
        """Spots that tell their neighbours something, bool, (n_obs,)."""
        return self.has_content

    def shows_zeros(self) -> bool:
        """Whether some observed entry is a zero."""
        return self.totals.n_observed_positive < int(self.totals.n_observed.sum())

    def hides_every_zero(self) -> bool:
        """Whether there are zeros, and a mask calls all of them missing."""
        return not self.shows_zeros() and self.totals.n_positive < np.prod(self.counts.shape)

    def without(self, spots: np.ndarray) -> NeighborhoodDataset:
        """The same data as if nothing were observed of some spots."""
        other = self._changed()
        other.has_content = self.has_content.copy()
        other.has_content[spots] = False
        other._set_neighbors()
        return other

    def with_library(self, library: np.ndarray) -> NeighborhoodDataset:
        """The same data with other library sizes, (n_obs,): what is predicted is for these."""
        other = self._changed()
        other.library = np.asarray(library, dtype=np.float64)
        return other

    def with_fields(self, **fields: np.ndarray | None) -> NeighborhoodDataset:
        """The same data with further fields, (n_obs, ...) each; ``None`` is left out."""
        other = copy.copy(self)
        other.__dict__.pop("for_training", None)
        other.fields = self.fields | {name: values for name, values in fields.items() if values is not None}
        return other

    def _changed(self) -> NeighborhoodDataset:
        """A copy for a change, which does not know what was computed of this data set."""
        other = copy.copy(self)
        for name in ("fingerprint", "for_training"):
            other.__dict__.pop(name, None)
        return other

    def part(self, spots: np.ndarray) -> NeighborhoodDataset:
        """Some spots alone, in memory and numbered anew in the given order; neighbours are those among them."""
        other = self._changed()
        counts, mask = self.counts[spots], None if self.mask is None else self.mask[spots]
        other.counts, other.mask = counts, mask
        for name in ("library", "has_content", "samples", "coordinates"):
            setattr(other, name, getattr(self, name)[spots])
        other.graph = self.graph[spots][:, spots]
        other.fields = {name: values[spots] for name, values in self.fields.items()}
        # what scvi-tools' loaders ask
        other.adata = SimpleNamespace(n_obs=len(spots), shape=counts.shape)
        other.spots = spots if self.spots is None else self.spots[spots]
        other._set_neighbors()
        return other

    @cached_property
    def for_training(self) -> NeighborhoodDataset:
        """What training looks at: these data, or, of more than 16,384 spots, up to 65,536 in patches drawn at random, in memory."""
        if len(self) <= _N_CALIBRATION:
            return self
        n = _N_TRAINING if self.mask is None else min(_N_TRAINING, _MASK_ENTRIES // len(self.genes))
        return self.part(drawn_patches(self.coordinates, self.samples, n, _N_CALIBRATION))

    @property
    def for_calibration(self) -> NeighborhoodDataset:
        """The first 16,384 spots of those that training looks at, with the same numbers."""
        trained = self.for_training
        return trained if len(trained) <= _N_CALIBRATION else trained.part(np.arange(_N_CALIBRATION))

    def _set_neighbors(self) -> None:
        graph, informative, samples, coordinates = self.graph, self.informative, self.samples, self.coordinates
        n_edges = np.diff(graph.indptr)
        rows = np.repeat(np.arange(graph.shape[0], dtype=np.int32), n_edges)
        pitch = spot_pitch(rows, distances(coordinates, rows, graph.indices), samples, coordinates)
        useful = informative[graph.indices]
        spot, neighbor = rows[useful], graph.indices[useful]
        n_left = np.bincount(spot, minlength=graph.shape[0])
        self.far = n_left == 0
        n_slots = max(1, int(n_edges.max(initial=0)))
        reached = reach_further(graph, np.flatnonzero((n_left == 0) & (n_edges > 0)), informative)
        stranded = ~informative & (n_left == 0)
        stranded[reached["spot"]] = False
        others = nearest(coordinates, samples, np.flatnonzero(stranded), informative, n_slots)
        spot = np.concatenate([spot, reached["spot"], others["spot"]])
        neighbor = np.concatenate([neighbor, reached["neighbor"], others["neighbor"]])
        distance = distances(coordinates, spot, neighbor) / pitch[samples[spot]]
        order = np.lexsort((distance, spot))
        spot, neighbor, distance = spot[order], neighbor[order], distance[order]
        slot = np.arange(len(spot)) - np.searchsorted(spot, spot)
        # a far ring may hold many spots: the nearest suffice
        near = slot < n_slots
        self.neighbors = np.full((graph.shape[0], n_slots), -1, dtype=np.int64)
        self.distances = np.zeros((graph.shape[0], n_slots), dtype=np.float32)
        self.neighbors[spot[near], slot[near]] = neighbor[near]
        self.distances[spot[near], slot[near]] = distance[near]

    def _refuse_lost(self, lost: np.ndarray) -> None:
        """Refuse data with spots of which nothing tells anything."""
        if len(lost):
            raise ValueError(
                f"{len(lost):,} of {self.adata.n_obs:,} spots ({list_names(self.adata.obs_names[lost])}) lie on a slide of which "
                "no count is observed, so nothing predicts them; drop that slide"
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
        """Rows of all spots, in blocks that fit in memory dense."""
        return self._blocks(len(self), min(_BLOCK, max(1, _BLOCK_ENTRIES // len(self.genes))))

    @staticmethod
    def _blocks(n_obs: int, size: int = _BLOCK) -> Iterator[np.ndarray]:
        for start in range(0, n_obs, size):
            yield np.arange(start, min(start + size, n_obs))

    def _known(self, spots: np.ndarray) -> np.ndarray:
        """What is observed of some spots, bool, (n, n_genes)."""
        known = np.broadcast_to(self.has_content[spots, None], (len(spots), len(self.genes)))
        if self.mask is None:
            return known
        mask = self.mask[spots]
        return known & (mask.toarray() if sparse.issparse(mask) else mask).astype(bool, copy=False)

    def rows(self, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts, mask and library of some spots, dense float32."""
        counts = self.counts[spots]
        counts = (counts.toarray() if sparse.issparse(counts) else counts).astype(np.float32)
        mask = self._known(spots).astype(np.float32)
        # a hidden entry must not reach the network, whatever its value
        counts *= mask
        return counts, mask, self.library[spots, None].astype(np.float32)

    def __getitem__(self, indexes: int | list[int] | slice) -> dict[str, np.ndarray]:
        """Load spots with their neighbours; the names are those of `_keys`."""
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
        for name, values in self.fields.items():
            batch[name], batch[keys.NEIGHBOR + name] = _dense(values, spots), _dense(values, unique)
        return batch

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a model sees of the data: genes, known counts, libraries, slides, neighbours, places, fields.

        It does not depend on the storage format of the counts, nor on the values of masked entries.
        """
        digest = new_digest()
        digest.update("\n".join(map(str, self.genes)).encode())
        for spots in self._blocks(len(self)):
            known, counts = self._known(spots), as_csr(sparse.csr_matrix(self.counts[spots]))
            rows = np.repeat(np.arange(len(spots)), np.diff(counts.indptr))
            seen = known[rows, counts.indices]
            positions = (rows * len(self.genes) + counts.indices)[seen]
            for part in (positions, counts.data[seen].astype(np.float32), np.packbits(known), self.library[spots]):
                digest.update(np.ascontiguousarray(part))
        for part in (self.neighbors, self.distances, self.samples, self.coordinates):
            digest.update(np.ascontiguousarray(part))
        for name in self._registered_fields:
            digest.update(name.encode())
            for spots in self.blocks():
                digest.update(np.ascontiguousarray(_dense(self.fields[name], spots)).tobytes())
        return digest.hexdigest()


def _dense(values: Any, spots: np.ndarray) -> np.ndarray:
    """Rows of a field, float32 if they are floats, (len(spots), ...)."""
    rows = values[spots]
    rows = rows.toarray() if sparse.issparse(rows) else rows
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows


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


def _take_columns(matrix: Any, columns: np.ndarray | None) -> Any:
    if columns is None:
        return matrix
    return matrix.with_columns(columns) if isinstance(matrix, StoredRows) else matrix[:, columns]
