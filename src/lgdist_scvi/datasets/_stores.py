"""Slides whose counts stay on disk: opened without reading them, checked and written block by block."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts

_ENTRIES = 1 << 25  # of a matrix stored by genes, turned in one go: 400 MB
_IN_MEMORY = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def open_lazily(path: Path, group: str = "/", turn: bool = False) -> AnnData:
    """Open an AnnData in a zarr store or an .h5ad file; `X` and layers become Dask arrays, all else is read, but for `raw`.

    A matrix that is stored by genes (csc) gives no few spots without a pass over all of it: it is refused (ValueError), unless
    `turn`, for a reader that goes once through large blocks of it.
    """
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    def matrix(key: str, where: str) -> Any:
        if dict(store[key].attrs).get("encoding-type") != "csc_matrix":
            return read_elem_lazy(store[key])
        if not turn:
            raise ValueError(
                f"{where} of {path.name!r} is stored by genes (csc), so that a few spots cannot be read alone; "
                'datasets.read(path, store="slide.zarr") writes it by spots'
            )
        return _by_spots(path, f"{group}/{key}", store[key])

    with _opened(path) as root:
        store = root[group] if group != "/" else root
        x = matrix("X", "adata.X") if "X" in store else None
        layers = {key: matrix(f"layers/{key}", f"adata.layers[{key!r}]") for key in store.get("layers", ())}
        return AnnData(x, layers=layers, **{key: read_elem(store[key]) for key in _IN_MEMORY if key in store})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py
    import zarr

    if not path.is_file():
        yield zarr.open_group(str(path), mode="r")
        return
    with h5py.File(path) as file:
        yield file


def _by_spots(path: Path, key: str, element: Any) -> Any:
    """A csc matrix as a Dask array of csr blocks, each of which takes a pass over the matrix."""
    import dask.array as da

    n_obs, n_vars = map(int, element.attrs["shape"])
    share = _ENTRIES / max(_ENTRIES, element["data"].shape[0])
    step, n_genes = max(1, int(n_obs * share)), max(1, int(n_vars * share / 8))
    return da.map_blocks(
        partial(_turned, path, key, n_genes),
        chunks=(tuple(min(step, n_obs - start) for start in range(0, n_obs, step)) or (0,), (n_vars,)),
        dtype=element["data"].dtype,
        meta=sparse.csr_matrix((0, 0), dtype=element["data"].dtype),
    )


def _turned(path: Path, key: str, n_genes: int, block_info: dict[None, dict[str, Any]]) -> sparse.csr_matrix:
    from anndata.io import sparse_dataset

    start, stop = block_info[None]["array-location"][0]
    with _opened(path) as root:
        matrix = sparse_dataset(root[key])
        parts = [matrix[:, gene : gene + n_genes][start:stop] for gene in range(0, matrix.shape[1], n_genes)]
    return sparse.csr_matrix(sparse.hstack(parts, format="csr"))


def new_store(store: str | PathLike[str]) -> Path:
    """Path of a store to write (FileExistsError if something is there)."""
    store = Path(store)
    if store.exists():
        raise FileExistsError(
            f"{str(store)!r} exists; read it with datasets.read({str(store)!r}, lazy=True), or delete it"
        )
    return store


def write_store(adata: AnnData, store: Path) -> AnnData:
    """Write a slide into a zarr store, a block of spots at a time, and open it; an interrupted one leaves no store."""
    if sparse.issparse(adata.X):
        adata.X = adata.X.tocsr()
    for key, layer in list(adata.layers.items()):
        if sparse.issparse(layer):
            adata.layers[key] = layer.tocsr()
    unfinished = store.with_name(f"{store.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    adata.write_zarr(unfinished)
    unfinished.replace(store)
    return open_lazily(store)


def blocks(x: Any) -> Iterator[Any]:
    """The rows of a matrix, in memory, a block at a time if it is on disk."""
    if not hasattr(x, "dask"):
        yield x
        return
    for number in range(x.numblocks[0]):
        yield x.blocks[number].compute()


def check_stored_counts(adata: AnnData, layer: str | None) -> None:
    """Check counts as :func:`~lgdist_scvi._anndata.get_counts` does, a block of spots at a time."""
    x = adata.X if layer is None else adata.layers.get(layer)
    ends = list(accumulate(x.chunks[0])) if hasattr(x, "dask") else [adata.n_obs]
    for start, stop in pairwise([0, *ends]):
        get_counts(adata[start:stop], layer)
