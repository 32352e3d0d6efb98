"""Completing on the workers of a Dask cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from lgdist_scvi.inference import EstimatedEffects
from lgdist_scvi.inference import _compact as compact
from lgdist_scvi.model.base import _cluster as cluster

distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr")
pytestmark = pytest.mark.filterwarnings("ignore")

ASKED = {"n_samples": 3, "seed": 3, "silent": True, "block_size": 20}


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


@pytest.fixture
def streamed(monkeypatch, trained):
    """Region effects of slides and surroundings, as of data that are too large for arrays of all spots and genes."""
    monkeypatch.setattr(compact, "MAX_ENTRIES", 1)
    before = trained.module.region_shrinkage.clone()
    trained.module.region_shrinkage[:] = before.new_tensor([64.0, 16.0])
    trained._remembered_effects = None
    yield
    trained.module.region_shrinkage.copy_(before)
    trained._remembered_effects = None


def same(first: Path, second: Path) -> None:
    ours, theirs = ad.read_zarr(first), ad.read_zarr(second)
    assert set(ours.layers) == set(theirs.layers) and len(ours.layers) == 5
    for name in ours.layers:
        np.testing.assert_array_equal(ours.layers[name], theirs.layers[name])


@pytest.mark.usefixtures("streamed")
def test_two_workers_give_the_bits_of_one_process_and_a_dead_worker_is_made_good(trained, client, tmp_path):
    alone, together = tmp_path / "alone.zarr", tmp_path / "together.zarr"
    with client.as_current():
        assert cluster.active_client() is client
    trained.complete(store=together, client=client, **ASKED)
    assert isinstance(trained._remembered_effects[1], EstimatedEffects)
    assert len({worker["id"] for worker in client.scheduler_info()["workers"].values()}) == 2
    trained._remembered_effects = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgdist_scvi.model.base._stream.active_client", lambda: None)
        trained.complete(store=alone, **ASKED)
    same(alone, together)
    # one of them is killed while it works
    victim = next(iter(client.run(os.getpid).values()))
    path, journal = tmp_path / "killed.zarr", tmp_path / "killed.zarr.unfinished" / "journal.jsonl"
    watch = f"while [ $(cat {journal} 2>/dev/null | wc -l) -lt 4 ]; do sleep 0.01; done; kill -{signal.SIGKILL.value} {victim}"
    watcher = subprocess.Popen(["bash", "-c", watch])
    trained.complete(store=path, client=client, **ASKED)
    assert watcher.wait(timeout=10) == 0
    same(alone, path)


def test_what_is_no_client_is_refused(trained, tmp_path):
    with pytest.raises(TypeError, match="client must be a dask.distributed.Client, got str"):
        trained.complete(store=tmp_path / "out.zarr", client="tcp://127.0.0.1:8786", **ASKED)
    with pytest.raises(ValueError, match="client and block_size are of a store"):
        trained.complete(trained.adata.copy(), client="tcp://127.0.0.1:8786", silent=True)


def test_an_active_client_is_used(trained, client, tmp_path):
    """Its workers, and not this process, read the question."""
    cluster._received.cache_clear()
    with client.as_current():
        trained.complete(store=tmp_path / "out.zarr", **ASKED)
    assert cluster._received.cache_info().misses == 0
    assert sum(client.run(lambda: cluster._received.cache_info().misses).values()) >= 1
    assert ad.read_zarr(tmp_path / "out.zarr").n_obs == trained.adata.n_obs


def test_data_on_disk(trained, client, tmp_path):
    """A zarr store is read by the workers; an open .h5ad file cannot be sent to them."""
    pytest.importorskip("xarray")
    trained.adata.write_zarr(tmp_path / "data.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "data.zarr")
    trained.complete(lazy, store=tmp_path / "lazy.zarr", client=client, **ASKED)
    trained.complete(trained.adata.copy(), store=tmp_path / "loaded.zarr", client=client, **ASKED)
    same(tmp_path / "lazy.zarr", tmp_path / "loaded.zarr")
    trained.adata.copy().write_h5ad(tmp_path / "data.h5ad")
    backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    with pytest.raises(TypeError, match="cannot be sent to workers.*write a zarr store once"):
        trained.complete(backed, store=tmp_path / "backed.zarr", client=client, **ASKED)
