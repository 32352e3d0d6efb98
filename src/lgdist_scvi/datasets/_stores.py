"""Slides whose counts stay on disk: opened without reading them, checked and written block by block."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts

_ROWS = 4096
_IN_MEMORY = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def open_lazily(path: Path, group: str = "/") -> AnnData:
    """Open an AnnData in a zarr store or an .h5ad file; `X` and layers become Dask arrays, all else is read, but for `raw`.

    Raises ValueError if a matrix is stored by genes (csc).
    """
    import h5py
    import zarr
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    def matrix(element: Any, where: str) -> Any:
        if dict(element.attrs).get("encoding-type") == "csc_matrix":
            raise ValueError(
                f"{where} of {path.name!r} is stored by genes (csc), so that a few spots cannot be read alone; write it by spots: "
                f"{where} = {where}.tocsr()"
            )
        return read_elem_lazy(element)

    root = h5py.File(path) if path.is_file() else zarr.open_group(str(path), mode="r")
    try:
        store = root[group] if group != "/" else root
        x = matrix(store["X"], "adata.X") if "X" in store else None
        layers = {key: matrix(store["layers"][key], f"adata.layers[{key!r}]") for key in store.get("layers", ())}
        return AnnData(x, layers=layers, **{key: read_elem(store[key]) for key in _IN_MEMORY if key in store})
    finally:
        if path.is_file():
            root.close()


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
    for start in range(0, max(1, adata.n_obs), _ROWS):
        get_counts(adata[start : start + _ROWS], layer)
