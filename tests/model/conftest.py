from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scvi
from anndata import AnnData


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same seed and leaves none behind."""
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture(scope="session")
def snapshot() -> Callable:
    """Function that gives the bytes of everything that a completion may not touch."""

    def snapshot(adata: AnnData) -> dict[str, bytes]:
        matrices = {"X": adata.X} | {f"layers/{key}": value for key, value in adata.layers.items() if key is not None}
        matrices |= {f"obsm/{key}": value for key, value in adata.obsm.items()}
        matrices |= {f"obsp/{key}": value for key, value in adata.obsp.items()}
        taken = {}
        for key, matrix in matrices.items():
            parts = [matrix.data, matrix.indices, matrix.indptr] if hasattr(matrix, "indptr") else [np.asarray(matrix)]
            taken[key] = b"|".join(np.ascontiguousarray(part).tobytes() for part in parts)
            taken[f"{key}/type"] = f"{type(matrix)} {matrix.dtype}".encode()
        return taken

    return snapshot
