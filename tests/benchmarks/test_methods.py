from __future__ import annotations

import numpy as np
import pytest
from benchmarks import _methods
from benchmarks._methods import ABLATIONS, METHODS
from benchmarks._protocols import task
from benchmarks._spread import LEVELS, THIRDS, spread_scores
from benchmarks._transformer import _Slide, masked_transformer

SMALL = {"n_hidden": 32, "n_latent": 8, "n_denoiser_hidden": 32}


@pytest.mark.parametrize(("protocol", "score", "sign"), [("entry", "mse", -1), ("thinning", "d2", 1)])
def test_transformer_beats_the_gene_mean(tissue, protocol, score, sign):
    tissue.X = tissue.X * 3  # what a poor slide cannot teach is not the question
    tissue.obs["total_counts"] *= 3
    given = task(tissue, None, protocol, 0)
    prediction = masked_transformer(given.adata, given.mask_layer, given.size_factor_key, n_steps=100, n_hidden=32)
    mean, _ = METHODS["gene_mean"].run(given, 0)
    assert np.isfinite(prediction).all()
    assert sign * given.score(prediction)[score] > sign * given.score(mean)[score] + 0.02


def test_transformer_does_not_look_behind_the_mask(tissue):
    given = task(tissue, None, "entry", 0)
    arguments = {"mask_layer": "observed", "size_factor_key": "total_counts", "n_steps": 3, "n_hidden": 32}
    before = masked_transformer(given.adata, **arguments)
    counts = given.adata.X.toarray()
    counts[~given.adata.layers["observed"]] = 1000
    given.adata.X = counts
    assert np.array_equal(masked_transformer(given.adata, **arguments), before)


def test_transformer_answers_for_spots_without_neighbors(tissue):
    given = task(tissue, None, "block", 0)
    given.adata.obsp["spatial_connectivities"] *= 0
    given.adata.obsp["spatial_connectivities"].eliminate_zeros()
    prediction = masked_transformer(given.adata, given.mask_layer, given.size_factor_key, n_steps=3, n_hidden=32)
    assert np.isfinite(prediction).all()


def test_transformer_looks_at_the_rim_from_inside_a_hole(tissue):
    graph = tissue.obsp["spatial_connectivities"]

    def neighbors(observed):
        tissue.layers["observed"] = np.broadcast_to(observed[:, None], tissue.shape)
        return _Slide(tissue, "observed", "total_counts", "spatial_connectivities", "cpu").neighbors

    middle = int(np.argmax(np.diff(graph.indptr)))
    ring = graph.indices[graph.indptr[middle] : graph.indptr[middle + 1]]
    whole = neighbors(np.ones(tissue.n_obs, bool))
    observed = np.ones(tissue.n_obs, bool)
    observed[[middle, *ring]] = False
    holed = neighbors(observed)
    second_ring = np.flatnonzero((graph @ graph)[[middle]].toarray()[0])
    reached = holed[middle][holed[middle] >= 0]
    assert len(reached) and observed[reached].all() and set(reached) <= set(second_ring)
    others = np.flatnonzero(graph @ observed)
    np.testing.assert_array_equal(holed[others], whole[others])


@pytest.mark.parametrize("protocol", ["entry", "thinning"])
def test_scvi_answers_in_the_units_of_the_task(tissue, monkeypatch, protocol):
    import scvi

    train = scvi.model.SCVI.train
    monkeypatch.setattr(scvi.model.SCVI, "train", lambda self, **kw: train(self, **{**kw, "max_epochs": 5}))
    tissue.obs["total_counts"] *= 2  # as if half of the counts were of other genes
    given = task(tissue, None, protocol, 0)
    prediction, _ = METHODS["scvi"].run(given, 0)
    sums = 1e4 * np.asarray(given.adata.X.sum(axis=1)).ravel() / given.library
    assert np.allclose(np.expm1(prediction.astype(np.float64)).sum(axis=1), sums, rtol=1e-3)
    assert all(np.isfinite(value) for value in given.score(prediction).values())


@pytest.mark.parametrize("method", ["lgdist_vae", "lgdist", *ABLATIONS])
def test_lgdist_and_its_ablations_run(tissue, monkeypatch, method):
    trained = _methods.trained

    def small(task, seed, stage="all", train_kwargs=None, **kwargs):
        sizes = {**SMALL, **kwargs}
        return trained(task, seed, stage, {**(train_kwargs or {}), "max_epochs": 1}, **sizes)

    monkeypatch.setattr(_methods, "trained", small)
    given = task(tissue, None, "entry", 0)
    prediction, model = METHODS[method].run(given, 0)
    assert np.isfinite(prediction[given.scored]).all()
    assert np.isfinite(given.score(prediction)["mse"])
    if method == "lgdist_no_neighbors":
        assert model.summary_stats["n_edges"] == 0


@pytest.mark.parametrize("protocol", ["entry", "spot", "shallow"])
def test_samples_and_intervals_are_scored(tissue, protocol):
    given = task(tissue, None, protocol, 0)
    model = _methods.trained(given, 0, train_kwargs={"max_epochs": 2}, **SMALL)
    scores = spread_scores(model, given, 0)
    assert 0 < scores["crps"] < scores["energy"]
    # a latent has no noise of measurement, a mean has no spread at all
    assert scores["variance_mean"] < scores["variance_sample"]
    assert scores["variance_latent"] < scores["variance_sample"]
    levels = [f"{100 * level:.0f}" for level in LEVELS]
    assert 0.6 < scores["coverage_90"] and scores["coverage_50"] < scores["coverage_95"] <= 1
    for level in levels:
        thirds = [scores[f"coverage_{level}_{third}"] for third in THIRDS]
        assert min(thirds) <= scores[f"coverage_{level}"] <= max(thirds)
    widths = [scores[f"width_{level}"] for level in levels]
    assert widths == sorted(widths)
    assert all(isinstance(value, float) for value in scores.values())  # each a column of the table
