from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import lgdist_scvi
from lgdist_scvi import pp

if TYPE_CHECKING:
    from anndata import AnnData

REPOSITORY = Path(__file__).resolve().parents[2]
if not (REPOSITORY / "benchmarks").is_dir():
    collect_ignore_glob = ["*"]  # a source distribution has the tests but not the benchmarks
elif str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))  # plain `pytest` does not put the working directory there


@pytest.fixture(scope="session")
def _tissue() -> AnnData:
    adata = lgdist_scvi.datasets.simulated_visium(n_spots=200, n_genes=64, seed=1)
    adata = adata[:, np.asarray((adata.X > 0).mean(axis=0)).ravel() > 0.1].copy()  # genes that survive any hold-out
    detection = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    adata.var["target_gene"] = detection >= np.sort(detection)[-24]
    adata.var["context_gene"] = ~adata.var["target_gene"]
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    pp.spatial_neighbors(adata)
    return adata


@pytest.fixture
def tissue(_tissue: AnnData) -> AnnData:
    """A small simulated slide as `read` prepares real ones, with the true rates in a layer."""
    return _tissue.copy()
