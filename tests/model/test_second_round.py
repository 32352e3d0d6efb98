"""Two rounds of training: completed values of the first stand in for what neighbours lack in the second."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST
from lgdist_scvi import _keys as keys
from lgdist_scvi.inference import CompletedRows, _predictor
from lgdist_scvi.inference import _compact as compact
from lgdist_scvi.inference import _parts as parts
from lgdist_scvi.model.base._predictor import with_prefill
from lgdist_scvi.model.base._query import Query

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def model(fit, tissue) -> LGDiST:
    return fit(tissue.copy(), 2, {"mask_layer": "known"}, {"n_rounds": 2})


def test_history_of_both_rounds(model):
    for stage in ("vae", "diffusion", "vae_round2", "diffusion_round2"):
        assert len(model.history_[f"{stage}/train_loss"]) == 2


def test_measured_values_are_kept(model, tissue, cp10k):
    completed = model.get_completed_expression(return_numpy=True)
    kept = np.asarray(tissue.layers["known"]) & (tissue.X.toarray() > 0)
    np.testing.assert_array_equal(completed[kept].view(np.uint32), cp10k(tissue)[kept].view(np.uint32))
    assert np.isfinite(completed).all()


def test_the_second_round_uses_the_first(model):
    """Without what the first round completed, the answers are others."""
    expected = model.get_completed_expression(observed="model", return_numpy=True)
    bias = model.module.first_round.autoencoder.decode_gene.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias += torch.linspace(0, 5, len(bias))
        changed = model.get_completed_expression(observed="model", return_numpy=True)
        bias.copy_(before)
    assert not np.allclose(changed, expected)
    np.testing.assert_array_equal(model.get_completed_expression(observed="model", return_numpy=True), expected)


def test_the_true_value_of_a_masked_entry_changes_no_bit(fit, tissue, model):
    adata = tissue.copy()
    counts = adata.X.toarray()
    counts[~np.asarray(adata.layers["known"])] = 33
    adata.X = counts
    other = fit(adata, 2, {"mask_layer": "known"}, {"n_rounds": 2})
    for key, value in other.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[key]), key


def test_saved_and_loaded(model, tmp_path):
    expected = model.get_completed_expression(return_numpy=True)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=model.adata.copy(), accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_completed_expression(return_numpy=True), expected)
    loaded = LGDiST.load(tmp_path / "model", adata=False, accelerator="cpu")
    adata = model.adata.copy()
    del adata.uns["_scvi_uuid"]
    np.testing.assert_array_equal(loaded.get_completed_expression(adata, return_numpy=True), expected)
    # and trained on
    loaded = LGDiST.load(tmp_path / "model", adata=model.adata.copy(), accelerator="cpu")
    loaded.train(max_epochs=1, stage="diffusion", **QUICK)
    assert np.isfinite(loaded.get_completed_expression(return_numpy=True)).all()
    loaded.train(max_epochs=1, **QUICK)  # one round anew
    assert loaded.module.first_round is None
    assert np.isfinite(loaded.get_completed_expression(return_numpy=True)).all()


def test_changed_counts_are_completed_again(model):
    adata, fresh = model.adata.copy(), model.adata.copy()
    model.get_completed_expression(adata)
    for changed in (adata, fresh):
        changed.X = changed.X * 2
    np.testing.assert_array_equal(
        model.get_completed_expression(adata, return_numpy=True),
        model.get_completed_expression(fresh, return_numpy=True),
    )


def test_what_is_set_aside_does_not_reach_training_by_way_of_the_neighbours(model):
    """The first round completes the training data without looking at the entries that calibrate."""
    prefills = []
    for change in (0, 40):
        adata = model.adata.copy()
        aside = model.module.set_aside(torch.arange(adata.n_obs)).numpy() & np.asarray(adata.layers["known"])
        adata.X = adata.X.toarray() + change * aside
        dataset = Query(model, adata, region_effects=False).dataset
        prefills.append([with_prefill(model, dataset, hide).fields[keys.PREFILL] for hide in ("set_aside", "nothing")])
    (before, seen), (after, seen_after) = prefills
    assert aside.sum() > 50
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(seen, seen_after)  # of all that is observed


def test_of_large_data_it_is_computed_for_some_spots_at_a_time(model, monkeypatch):
    """And not held of all; the answers are the same."""
    dataset = Query(model, region_effects=False).dataset
    whole = with_prefill(model, dataset).fields[keys.PREFILL]
    expected = model.get_completed_expression(return_numpy=True)
    monkeypatch.setattr(compact, "MAX_ENTRIES", 1)
    monkeypatch.setattr(_predictor, "_BATCH_ENTRIES", 16 * dataset.counts.shape[1])
    for name, value in (("spots_at_a_time", lambda n: 64), ("_CACHE_COMPLETED", 2 * 16 * 60 * 3)):
        monkeypatch.setattr(parts, name, value)
    prefill = with_prefill(model, dataset).fields[keys.PREFILL]
    assert isinstance(prefill, CompletedRows)
    for spots in (np.array([70, 3, 199, 3]), np.arange(len(dataset))):
        np.testing.assert_allclose(prefill[spots], whole[spots], rtol=2e-3, atol=1e-3)
        assert prefill[spots].dtype == np.float16
    some = np.array([5, 100])
    assert 1 <= len(prefill._kept) <= prefill.n_kept < len(prefill.parts)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(prefill))[some], prefill[some])
    model._remembered_effects = None
    np.testing.assert_allclose(model.get_completed_expression(return_numpy=True), expected, rtol=2e-3, atol=2e-3)
    model._remembered_effects = None
    assert isinstance(with_prefill(model, dataset, "set_aside").fields[keys.PREFILL], np.ndarray)  # of training
