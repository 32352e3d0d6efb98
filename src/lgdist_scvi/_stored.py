"""Matrices that stay on disk: their rows come into memory when they are asked for."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

import numpy as np
from scipy import sparse

_ROWS = 2048  # read in one go; fewer of wide dense matrices
_ENTRIES = 1 << 22  # of a dense matrix, read in one go
_KEPT = 1 << 25  # bytes of the rows that were read last
_N_SAMPLED, _SAMPLED_ROWS = 16, 64  # runs of rows that tell one matrix from another
_BY_GENES = 1 << 29  # bytes of a matrix stored by genes (csc) that is turned in memory


def in_memory(x: Any) -> Any:
    """Bring a backed or lazy matrix into memory; leave others as they are."""
    if hasattr(x, "to_memory"):  # anndata's backed sparse matrices, and rows of stored ones
        return x.to_memory()
    if hasattr(x, "compute"):  # dask
        # a task on a cluster that waited for further tasks might wait for ever
        return x.compute(scheduler="threads") if _is_task() else x.compute()
    if sparse.issparse(x):
        return x
    return np.asarray(x)


def _is_task() -> bool:
    """Whether a worker of a Dask cluster runs this."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def as_csr(x: sparse.spmatrix | sparse.sparray) -> sparse.csr_matrix:
    """Give any scipy sparse matrix or array as `csr_matrix`: sorted, without duplicates or stored zeros.

    Shares memory with `x` where nothing had to change, and never modifies `x`.
    """
    # built from the buffers, so that views and subclasses come out as plain csr_matrix
    same = isinstance(x, sparse.csr_matrix | sparse.csr_array)
    csr = x if same else x.tocsr()
    csr = sparse.csr_matrix((np.asarray(csr.data), csr.indices, csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format or np.count_nonzero(csr.data) < csr.nnz:
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def is_stored(x: Any) -> bool:
    """Whether a matrix is on disk, or computed when asked for (h5ad, zarr, Dask), and not an array in memory."""
    return hasattr(x, "chunks") or hasattr(x, "backend")  # arrays of h5py, zarr and Dask; sparse matrices of anndata


class StoredRows:
    """A matrix on disk, (n_obs, n_vars), of which rows can be taken; sparse rows are csr_matrix as :func:`as_csr` gives it.

    A sparse matrix that is stored by genes (csc), of which no row can be read without all the rest, comes into memory
    with the first row, once, if it takes at most 512 MiB there, and is refused else (ValueError).

    `where` names the matrix for the message (``"adata.X"``).
    """

    def __init__(self, matrix: Any, where: str):
        self._matrix, self._where = matrix, where
        self._by_genes = _is_by_genes(matrix)
        self._columns: np.ndarray | None = None
        self._n_rows, self._n_columns = map(int, matrix.shape)
        dense = not hasattr(matrix, "to_memory") and not sparse.issparse(getattr(matrix, "_meta", None))
        self._step = min(_ROWS, max(1, _ENTRIES // max(1, self._n_columns))) if dense else _ROWS
        self._forget()

    def _forget(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()  # blocks by their numbers; those used last are the last
        self._lock = Lock()  # a worker's threads share the data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    @property
    def shape(self) -> tuple[int, int]:
        return self._n_rows, self._n_columns if self._columns is None else len(self._columns)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._matrix.dtype)

    def with_columns(self, columns: np.ndarray) -> StoredRows:
        """The same rows of some columns, given by their positions."""
        other = object.__new__(StoredRows)
        other.__setstate__(self.__getstate__())
        other._columns = columns if self._columns is None else self._columns[columns]
        return other

    def __getitem__(self, rows: Any) -> sparse.csr_matrix | np.ndarray:
        """Some rows in memory, in any order."""
        rows = np.atleast_1d(np.arange(self._n_rows)[rows])
        if not len(rows):
            return self._block(0)[:0]
        unique, place = np.unique(rows, return_inverse=True)
        parts = []
        for inside in np.split(unique, np.flatnonzero(np.diff(unique // self._step)) + 1):
            block = self._block(int(inside[0]) // self._step)
            parts.append(block if len(inside) == block.shape[0] else block[inside % self._step])
        if len(parts) == 1:
            found = parts[0]
        else:
            found = sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
        return found if len(rows) == len(unique) and (place[1:] > place[:-1]).all() else found[place]

    def _block(self, number: int) -> sparse.csr_matrix | np.ndarray:
        """A block of rows; those that were asked for last are kept, since neighbours lie in few of them."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            block = self.read(number * self._step, min((number + 1) * self._step, self._n_rows))
            self._kept[number] = block
            while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > _KEPT:
                self._kept.popitem(last=False)
            return block

    def read(self, start: int, stop: int) -> sparse.csr_matrix | np.ndarray:
        """Rows that follow each other, from where they are stored."""
        if self._by_genes:
            self._matrix, self._by_genes = _by_spots(self._matrix, self._where), False
        block = in_memory(self._matrix[start:stop])
        block = as_csr(block) if sparse.issparse(block) else np.asarray(block)
        return block if self._columns is None else block[:, self._columns]

    def blocks(self) -> Iterator[sparse.csr_matrix | np.ndarray]:
        """All rows in order, in blocks that fit in memory."""
        for start in range(0, self._n_rows, self._step):
            yield self.read(start, min(start + self._step, self._n_rows))

    def to_memory(self) -> sparse.csr_matrix | np.ndarray:
        """All rows, in memory."""
        return self[:]


def row_blocks(matrix: Any) -> Iterator[Any]:
    """All rows of a matrix: one in memory as it is, :class:`StoredRows` in blocks."""
    if isinstance(matrix, StoredRows):
        yield from matrix.blocks()
    else:
        yield matrix


def _size(block: sparse.csr_matrix | np.ndarray) -> int:
    """Bytes that a block takes in memory."""
    return block.data.nbytes + block.indices.nbytes + block.indptr.nbytes if sparse.issparse(block) else block.nbytes


def _is_by_genes(matrix: Any) -> bool:
    """Whether a matrix on disk is stored by genes (csc)."""
    return getattr(getattr(matrix, "_meta", matrix), "format", None) == "csc"  # of Dask arrays, as of backed ones


def _by_spots(matrix: Any, where: str) -> sparse.csr_matrix:
    """A matrix stored by genes, turned in memory."""
    parts, size = [], 0
    for start in range(0, matrix.shape[1], _ROWS):
        parts.append(in_memory(matrix[:, start : start + _ROWS]).tocsc())
        size += parts[-1].nnz * (parts[-1].dtype.itemsize + 4)
        if size > _BY_GENES:
            raise ValueError(
                f"{where} is stored by genes (csc) and too large to be turned in memory; store it by spots: read it on a machine "
                "that holds it, adata = adata.to_memory(), adata.X = adata.X.tocsr(), and write it again"
            )
    return as_csr(sparse.hstack(parts, format="csr"))


def update_digest(digest: Any, value: Any) -> None:
    """Add to a hash what is cheap to know of a matrix or array, so that a change of it shows.

    All of what is in memory; of a matrix on disk shape, dtype and 16 runs of 64 rows (of genes, if it is stored by genes), spread
    evenly: the whole of a small one, and of a large one enough to tell another file, order or set of spots, not a change of a few entries.
    """
    if is_stored(value) and len(value.shape) == 2:
        stored, by_genes = StoredRows(value, ""), _is_by_genes(value)
        digest.update(repr((stored.shape, str(stored.dtype))).encode())
        n = stored.shape[by_genes]
        for start in np.unique(np.linspace(0, max(0, n - _SAMPLED_ROWS), _N_SAMPLED).astype(int)):
            stop = int(min(start + _SAMPLED_ROWS, n))
            update_digest(digest, in_memory(value[:, start:stop]) if by_genes else stored.read(int(start), stop))
        return
    if sparse.issparse(value):
        value = value if value.format in ("csr", "csc") else value.tocsr()
        parts = (value.data, value.indices, value.indptr)
        digest.update(repr((value.format, value.shape)).encode())
    else:
        value = np.asarray(in_memory(value))
        parts = (value.T if value.flags.f_contiguous else value,)
    for part in parts:
        digest.update(repr((part.shape, str(part.dtype))).encode())
        digest.update(repr(part.tolist()).encode() if part.dtype.kind == "O" else np.ascontiguousarray(part))


def new_digest() -> Any:
    """An empty hash."""
    return hashlib.sha256()
