"""Region effects of data that are too large for arrays of all spots and genes, against those of data that are not."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from lgdist_scvi.inference import (
    EstimatedEffects,
    Prediction,
    Predictor,
    _predictor,
    estimate_region_effects,
    fit_region_effects,
)
from lgdist_scvi.inference import _compact as compact
from lgdist_scvi.inference import _parts as parts
from lgdist_scvi.inference import _region_effects as regions
from lgdist_scvi.inference import _region_evidence as evidence


@pytest.fixture(params=["trained", "captured"])
def predictor(request) -> Predictor:
    model = request.getfixturevalue(request.param)
    return Predictor(model.module, model.adata_manager.create_torch_dataset())


@pytest.fixture
def shrinkage(predictor):
    before = predictor.module.region_shrinkage.clone()
    predictor.module.region_shrinkage.copy_(torch.tensor([64.0, 16.0]))
    yield
    predictor.module.region_shrinkage.copy_(before)


def streamed(monkeypatch, entries_at_a_time: int = 2560, cache: int = 2**20) -> None:
    """As if nothing fitted in memory: parts of 16 spots, in runs of 64, a few of which are kept."""
    monkeypatch.setattr(compact, "MAX_ENTRIES", 1)
    if cache < 2**20:  # too little to go through all spots without computing parts again
        monkeypatch.setattr(regions, "_keep_enough", lambda effects: None)
    monkeypatch.setattr(evidence, "_CACHE", cache)
    monkeypatch.setattr(parts, "spots_at_a_time", lambda n: entries_at_a_time // n)
    monkeypatch.setattr(_predictor, "BATCH_SIZE", 16)


@pytest.mark.usefixtures("shrinkage")
@pytest.mark.parametrize("hide", ["nothing", "set_aside"])
def test_the_same_as_in_memory(predictor, monkeypatch, hide):
    rows, left_out = np.arange(len(predictor.dataset)), np.array([3, 90, 91])
    whole = estimate_region_effects(predictor, hide)
    streamed(monkeypatch)
    ours = estimate_region_effects(predictor, hide)
    assert isinstance(whole, np.ndarray) and isinstance(ours, EstimatedEffects)
    assert np.abs(whole - 1.0 * (predictor.module.likelihood.modelled == "rate")).max() > 0.01
    np.testing.assert_allclose(ours[rows], whole, rtol=1e-5, atol=1e-6)
    # those of some spots are bit by bit what they are among others, whatever was kept before
    some = np.array([200, 7, 8, 150])
    np.testing.assert_array_equal(ours[some], ours[rows][some])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours))[some], ours[rows][some])
    streamed(monkeypatch, cache=1)
    np.testing.assert_array_equal(estimate_region_effects(predictor, hide)[some], ours[rows][some])
    streamed(monkeypatch, entries_at_a_time=6000)
    np.testing.assert_allclose(estimate_region_effects(predictor, hide)[some], ours[some], rtol=1e-5, atol=1e-6)
    monkeypatch.undo()
    kept = regions._region_effects(predictor, _kept(predictor, hide)).without(left_out)
    gone = ours.effects.without(left_out)
    given = predictor.module.region_shrinkage.numpy()
    np.testing.assert_allclose(gone.estimate(given)[some], kept.estimate(given)[some], rtol=1e-5, atol=1e-6)


def _kept(predictor, hide):
    kept = regions._empty(predictor)
    for _ in regions._looked_at(predictor, hide, kept):
        pass
    return kept


@pytest.mark.usefixtures("shrinkage")
def test_no_array_of_all_spots_and_genes(predictor, monkeypatch):
    """Neither what is asked for together, nor what is kept."""
    streamed(monkeypatch, cache=1)
    effects = estimate_region_effects(predictor)
    effects.effects.evidence.n_kept = 3
    for start in range(0, len(predictor.dataset), 20):
        effects[np.arange(start, min(start + 20, len(predictor.dataset)))]
    assert len(effects.effects.evidence._kept) == 3
    assert max(len(shared) for _, _, shared in effects.effects.evidence._kept.values()) <= 16


@pytest.mark.usefixtures("shrinkage")
def test_parts_are_predicted_from_what_their_effects_were_computed_from(predictor, monkeypatch):
    streamed(monkeypatch)
    predictor = predictor.with_region_effects(estimate_region_effects(predictor))
    estimand, reused = predictor.module.likelihood.estimands[0], 0
    rows = predictor.region_effects.effects.evidence.parts[3]
    with torch.inference_mode():
        for spots in (rows, rows[:-1]):
            for place, prediction in predictor.predictions(spots, 16):
                reused += prediction._shared is not None
                again = Prediction(predictor.module, prediction.batch)
                np.testing.assert_array_equal(prediction.mean_value(estimand), again.mean_value(estimand))
                assert len(place) == len(spots)
    assert reused == 1


@pytest.mark.usefixtures("shrinkage")
def test_the_same_shrinkage_is_chosen(predictor, monkeypatch):
    fit_region_effects(predictor)
    whole = predictor.module.region_shrinkage.clone()
    streamed(monkeypatch)
    fit_region_effects(predictor)
    torch.testing.assert_close(predictor.module.region_shrinkage, whole)


@pytest.mark.usefixtures("shrinkage")
def test_scattered_spots_are_told_how_to_be_ordered(trained, monkeypatch):
    predictor = Predictor(trained.module, trained.adata_manager.create_torch_dataset())
    streamed(monkeypatch)
    effects = estimate_region_effects(predictor).effects
    # no more than there are
    of_part = effects.evidence.part_bytes
    assert 8 * 12 * predictor.n_genes < of_part <= 12 * 16 * predictor.n_genes
    assert 3 < effects.evidence.n_kept <= len(effects.evidence.parts) < 2**20 // of_part
    monkeypatch.setattr(evidence, "_CACHE", of_part * 5)
    with pytest.raises(
        ValueError, match=r"lie far apart: 75 of them need .*order them once, adata = adata\[np.argsort"
    ):
        estimate_region_effects(predictor)


def test_parts_are_compact_and_of_one_slide():
    rng = np.random.default_rng(0)
    samples = rng.permutation(np.repeat([0, 1, 2], [500, 300, 201]))
    coordinates = rng.random((1001, 2))
    parts = compact.compact_parts(coordinates, samples, 64)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1001))
    assert max(map(len, parts)) == 64 and len(parts) <= 17
    assert all(len(np.unique(samples[part])) == 1 for part in parts)
    across = [pdist(coordinates[np.flatnonzero(samples == 0)[:64]]).max() for _ in parts]
    assert np.mean([pdist(coordinates[part]).max() for part in parts]) < 0.6 * np.mean(across)
    # many small slides are taken together
    assert len(compact.compact_parts(coordinates, np.arange(1001) // 10, 64)) <= 17
    assert compact.compact_parts(coordinates[:0], samples[:0], 64) == []
