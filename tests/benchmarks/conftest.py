from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import lgdist_scvi
from lgdist_scvi import pp

if TYPE_CHECKING:
    from anndata import AnnData

REPOSITORY = Path(__file__).resolve().parents[2]
if not (REPOSITORY / "benchmarks").is_dir():
    collect_ignore_glob = ["*"]  # a source distribution has the tests but not the benchmarks
elif str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))  # plain `pytest` does not put the working directory there


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One thread for this process and those it starts: more would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        yield
    torch.set_num_threads(before)


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
