"""Count matrices of Cell Ranger and Space Ranger (.h5, of version 3 and later), whole or a block of spots at a time."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

_ROWS = 4096  # spots in a block; 4 million counts of a rich slide
_NAMES = {"id": "gene_ids", "feature_type": "feature_types"}  # as scanpy calls them


def read_count_matrix(path: Path, lazy: bool) -> AnnData:
    """Read the gene expression of all barcodes: `X` is CSR float32, (n_obs, n_vars), or `lazy` a Dask array of such blocks.

    The file holds features x barcodes by barcodes (csc), which is spots x genes by spots (csr).

    Raises ValueError if the file is none of these, or not whole.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            matrix = file["matrix"]
            barcodes = pd.Index(matrix["barcodes"].asstr()[:])
            features = {
                name: values.asstr()[:] if values.dtype.kind in "SO" else values[:]
                for name, values in matrix["features"].items()
                if not name.startswith("_") and values.shape == matrix["features/id"].shape
            }
            n_genes, n_spots = (int(n) for n in matrix["shape"][:])
            if matrix["indptr"].shape != (n_spots + 1,) or matrix["data"].shape != (int(matrix["indptr"][-1]),):
                raise ValueError("matrix/indptr does not fit the shape")
        var = pd.DataFrame(features).set_index("name").rename(columns=_NAMES).rename_axis(None)
        genes = np.flatnonzero(var["feature_types"] == "Gene Expression")
        read = partial(_rows, path, None if len(genes) == n_genes else genes)
        x = _blockwise(read, n_spots, len(genes)) if lazy else read(0, n_spots)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")  # said once, by datasets.read
            return AnnData(x, obs=pd.DataFrame(index=barcodes), var=var.iloc[genes])
    except Exception as error:  # h5py raises any kind
        raise ValueError(f"{str(path)!r} is no count matrix of Space Ranger, or not a whole one") from error


def _blockwise(read: partial, n_spots: int, n_genes: int) -> Any:
    import dask.array as da

    rows = tuple(min(_ROWS, n_spots - start) for start in range(0, n_spots, _ROWS)) or (0,)
    return da.map_blocks(
        partial(_block, read),
        chunks=(rows, (n_genes,)),
        dtype=np.float32,
        meta=sparse.csr_matrix((0, 0), dtype=np.float32),
    )


def _block(read: partial, block_info: dict[None, dict[str, Any]]) -> sparse.csr_matrix:
    return read(*block_info[None]["array-location"][0])


def _rows(path: Path, genes: np.ndarray | None, start: int, stop: int) -> sparse.csr_matrix:
    """Counts of the spots from `start` to `stop`; the file is opened for it, so that other processes can."""
    import h5py

    with h5py.File(path) as file:
        matrix = file["matrix"]
        indptr = matrix["indptr"][start : stop + 1].astype(np.int64)
        here = slice(int(indptr[0]), int(indptr[-1]))
        parts = (matrix["data"].astype(np.float32)[here], matrix["indices"][here], indptr - indptr[0])
        rows = sparse.csr_matrix(parts, shape=(stop - start, int(matrix["shape"][0])))
    return rows if genes is None else rows[:, genes]
