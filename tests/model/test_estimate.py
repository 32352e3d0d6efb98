"""What a question takes, told before it is asked."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from lgdist_scvi.inference import EstimatedEffects, _parts
from lgdist_scvi.inference import _compact as compact
from lgdist_scvi.model.base import _memory as memory

pytestmark = pytest.mark.filterwarnings("ignore")


def test_bytes_are_those_of_the_answer(trained, tmp_path):
    pytest.importorskip("zarr")
    n_obs, n_genes = trained.adata.shape
    assert trained.estimate().memory == n_obs * n_genes * (4 * 4 + 1)
    assert trained.estimate(level=None, dtype="float16").memory == n_obs * n_genes * (2 * 2 + 1)
    values = trained.get_completed_expression(return_numpy=True)
    assert trained.estimate("get_completed_expression").memory == values.nbytes
    some = {"indices": range(30), "gene_list": trained.adata.var_names[:7]}
    lower, upper = trained.get_prediction_interval(return_numpy=True, **some)
    assert trained.estimate("get_prediction_interval", **some).memory == lower.nbytes + upper.nbytes
    told = trained.estimate(store=True, block_size=50)
    trained.complete(store=tmp_path / "out.zarr", block_size=50, n_samples=2, silent=True)
    assert told.disk == sum(np.asarray(layer).nbytes for layer in ad.read_zarr(tmp_path / "out.zarr").layers.values())
    assert told.memory < told.disk / 4
    assert 0 < told.seconds and "of memory, at most" in str(told) and "on disk" in str(told)
    with pytest.raises(ValueError, match="question"):
        trained.estimate("train")


def test_samples_take_time(trained):
    mean = trained.estimate("get_completed_expression").seconds
    assert trained.estimate("get_prediction_interval", n_samples=50).seconds > 2 * mean


def test_sums_over_slides_are_timed_and_not_told(trained, monkeypatch):
    monkeypatch.setattr(compact, "MAX_ENTRIES", 1)
    monkeypatch.setattr(_parts, "spots_at_a_time", lambda n_genes: 60)  # several parts, one of which is timed
    before = trained.module.region_shrinkage.clone()
    trained.module.region_shrinkage[:] = before.new_tensor([64.0, 16.0])
    trained._remembered_effects = None
    try:
        trained.estimate(store=True)
        effects = trained._remembered_effects[1]
        assert isinstance(effects, EstimatedEffects) and effects.effects.evidence.needs_sums
        expected = trained.get_completed_expression(observed="model", return_numpy=True)
        trained._remembered_effects = None
        np.testing.assert_array_equal(trained.get_completed_expression(observed="model", return_numpy=True), expected)
    finally:
        trained.module.region_shrinkage.copy_(before)
        trained._remembered_effects = None


def test_what_does_not_fit_in_memory_is_refused_before_it_begins(trained, monkeypatch, snapshot):
    n_obs, n_genes = trained.adata.shape
    size = n_obs * n_genes * 4
    monkeypatch.setattr(memory, "free_memory", lambda: 2.0 * size - 1)
    for ask in (
        trained.get_completed_expression,
        trained.get_normalized_expression,
        trained.posterior_predictive_sample,
    ):
        with pytest.raises(
            MemoryError, match=rf"the answer, {n_obs} x {n_genes}.* complete\(store=...\) writes.* and indices= and"
        ):
            ask()
    with pytest.raises(MemoryError, match="takes 60 kB, more than half of the 60 kB"):
        trained.get_prediction_interval()
    assert trained.get_completed_expression(indices=range(n_obs - 1)).shape == (n_obs - 1, n_genes)
    adata = trained.adata.copy()
    before = snapshot(adata)
    with pytest.raises(MemoryError, match="pp.select_genes chooses genes"):
        trained.complete(adata, silent=True)
    assert snapshot(adata) == before


def test_free_memory():
    assert 2**20 < memory.free_memory() < 2**50
    assert [memory.as_text(size) for size in (12, 1300, 9.8e9)] == ["12 bytes", "1 kB", "9.8 GB"]
