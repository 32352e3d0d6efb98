"""Completed and normalised expression: what is kept, what is filled, in which shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgdist_scvi import LGDiST


def known(adata):
    return np.asarray(adata.layers["known"])


def test_observed_entries_are_kept_bit_for_bit(trained, tissue, cp10k):
    completed = trained.get_completed_expression(return_numpy=True)
    kept = known(tissue) & (tissue.X.toarray() > 0)
    assert completed.dtype == np.float32
    assert kept.sum() > 1000
    np.testing.assert_array_equal(completed[kept].view(np.uint32), cp10k(tissue)[kept].view(np.uint32))
    # and only those: everything else is the model's
    model = trained.get_completed_expression(observed="model", return_numpy=True)
    np.testing.assert_array_equal(completed[~kept], model[~kept])
    assert (completed[kept] != model[kept]).mean() > 0.99


def test_fill_masked_keeps_observed_zeros(trained, tissue, cp10k):
    completed = trained.get_completed_expression(fill="masked", return_numpy=True)
    mask = known(tissue)
    np.testing.assert_array_equal(completed[mask].view(np.uint32), cp10k(tissue)[mask].view(np.uint32))
    assert (completed[mask & (tissue.X.toarray() == 0)] == 0).all()
    model = trained.get_completed_expression(observed="model", return_numpy=True)
    np.testing.assert_array_equal(completed[~mask], model[~mask])
    assert (completed[~mask] > 0).all()


def test_fill_zeros_fills_observed_zeros_and_masked_entries(trained, tissue):
    completed = trained.get_completed_expression(return_numpy=True)
    filled = (tissue.X.toarray() == 0) | ~known(tissue)
    assert (completed[filled] > 0).all()
    assert np.isfinite(completed).all()


def test_captured_model_keeps_and_fills(captured, cp10k):
    adata = captured.adata
    completed = captured.get_completed_expression(return_numpy=True)
    mask = known(adata)
    np.testing.assert_array_equal(completed[mask].view(np.uint32), cp10k(adata)[mask].view(np.uint32))
    # a captured value is at least that of a single count
    library = (adata.X.toarray() * mask).sum(axis=1)
    one = np.log1p(1e4 / np.where(library > 0, library, np.median(library[library > 0])))
    assert (completed >= one[:, None] - 1e-4).all()


@given(data=st.data())
def test_observed_entries_never_change(trained, tissue, cp10k, data):
    """Whatever is asked, whatever the mask: a measured value comes back as it was measured."""
    adata = tissue[:40].copy()
    fraction = data.draw(st.sampled_from([0.1, 0.5, 0.95]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    adata.layers["known"] = rng.random(adata.shape) < fraction
    adata.layers["known"][np.arange(40), adata.X.toarray().argmax(axis=1)] = (
        True  # so that something predicts every spot
    )
    indices = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=20))
    genes = data.draw(st.lists(st.sampled_from(list(adata.var_names)), min_size=1, max_size=8))
    fill = data.draw(st.sampled_from(["zeros", "masked"]))
    samples = data.draw(st.sampled_from([{}, {"n_samples": 2}, {"n_samples": 2, "return_mean": False}]))
    estimand = data.draw(st.sampled_from(["rate", "captured"]))
    before = adata.X.copy()
    completed = trained.get_completed_expression(
        adata, indices, genes, fill=fill, estimand=estimand, return_numpy=True, batch_size=7, **samples
    )
    columns = adata.var_names.get_indexer(genes)
    mask, counts = known(adata)[indices][:, columns], adata.X.toarray()[indices][:, columns]
    kept = mask & ((counts > 0) | (fill == "masked"))
    expected = cp10k(adata)[indices][:, columns]
    for values in completed if completed.ndim == 3 else completed[None]:
        np.testing.assert_array_equal(values[kept].view(np.uint32), expected[kept].view(np.uint32))
        assert np.isfinite(values).all()
    assert (adata.X != before).nnz == 0


def test_data_frame_has_the_names(trained, tissue):
    genes = list(tissue.var_names[[5, 2, 9]])
    indices = [30, 4, 4, -1]
    frame = trained.get_completed_expression(indices=indices, gene_list=genes)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == genes
    assert list(frame.index) == list(tissue.obs_names[indices])
    whole = trained.get_completed_expression()
    np.testing.assert_allclose(frame.to_numpy(), whole.iloc[indices][genes].to_numpy(), rtol=1e-5, atol=1e-6)
    values = trained.get_completed_expression(indices=indices, gene_list=genes, return_numpy=True)
    assert isinstance(values, np.ndarray)
    np.testing.assert_array_equal(values, frame.to_numpy())


def test_one_gene_by_name(trained, tissue):
    frame = trained.get_completed_expression(gene_list=tissue.var_names[3])
    assert list(frame.columns) == [tissue.var_names[3]]


def test_bool_indices(trained, tissue):
    chosen = np.arange(tissue.n_obs) % 50 == 7
    frame = trained.get_completed_expression(indices=chosen)
    assert list(frame.index) == list(tissue.obs_names[chosen])


def test_no_spots_asked(trained, tissue):
    assert trained.get_completed_expression(indices=[]).shape == (0, tissue.n_vars)


@pytest.mark.parametrize(
    "method",
    ["get_completed_expression", "get_normalized_expression", "get_latent_representation", "get_prediction_interval"],
)
@pytest.mark.parametrize("batch_size", [1, 37, 10_000])
def test_batch_size_and_order_of_spots_do_not_matter(trained, tissue, method, batch_size):
    order = np.random.default_rng(0).permutation(tissue.n_obs)[:60]
    kwargs = {} if method == "get_latent_representation" else {"return_numpy": True}
    if method == "get_prediction_interval":
        whole = np.stack(trained.get_prediction_interval(seed=3, **kwargs))
        part = np.stack(trained.get_prediction_interval(indices=order, seed=3, batch_size=batch_size, **kwargs))
        # ends are whole counts: a rounding error may move one by a count
        assert np.isclose(part, whole[:, order], rtol=1e-5, atol=1e-5).mean() > 0.999
        return
    whole = getattr(trained, method)(**kwargs)
    part = getattr(trained, method)(indices=order, batch_size=batch_size, **kwargs)
    np.testing.assert_allclose(part, whole[order], rtol=1e-5, atol=1e-5)


def test_normalised_expression_sums_to_the_library_size(trained, tissue):
    rates = trained.get_normalized_expression()
    assert list(rates.columns) == list(tissue.var_names)
    assert list(rates.index) == list(tissue.obs_names)
    np.testing.assert_allclose(rates.sum(axis=1), 1.0, rtol=1e-4)
    assert (rates.to_numpy() >= 0).all()
    np.testing.assert_allclose(trained.get_normalized_expression(library_size=1e4), rates * 1e4, rtol=1e-5)
    samples = trained.get_normalized_expression(n_samples=3, return_mean=False, library_size=10)
    assert samples.shape == (3, *tissue.shape)
    np.testing.assert_allclose(samples.sum(axis=-1), 10.0, rtol=1e-4)
    np.testing.assert_allclose(
        trained.get_normalized_expression(n_samples=3, library_size=10), samples.mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_normalised_expression_with_the_spots_own_library(trained, tissue):
    counts = trained.get_normalized_expression(library_size="latent", return_numpy=True)
    library = (tissue.X.toarray() * known(tissue)).sum(axis=1)
    assert (library == 0).any()
    typical = float(trained.module.likelihood.typical_library)
    np.testing.assert_allclose(counts.sum(axis=1), np.where(library > 0, library, typical), rtol=1e-4)


def test_rate_is_the_logarithm_of_normalised_expression(fit, slide):
    """Without a mask the completed value of an entry is log1p(1e4 * rate)."""
    model = fit(slide)
    rates = model.get_normalized_expression(library_size=1e4, return_numpy=True)
    completed = model.get_completed_expression(observed="model", return_numpy=True)
    np.testing.assert_allclose(completed, np.log1p(rates), rtol=1e-4, atol=1e-5)


def test_captured_is_above_the_rate_and_at_least_one_count(trained, tissue):
    """Given that something was captured, the expected value is higher; of a sure thing it is the same."""
    rate = trained.get_completed_expression(observed="model", estimand="rate", return_numpy=True)
    captured = trained.get_completed_expression(observed="model", estimand="captured", return_numpy=True)
    library = (tissue.X.toarray() * known(tissue)).sum(axis=1)
    seen = library > 0
    assert (captured[seen] >= np.log1p(1e4 / library[seen])[:, None] - 1e-3).all()
    assert (captured - rate)[rate < 3].min() > 0


def test_estimand_none_is_rate_for_counts_and_captured_for_values(trained, captured):
    for model, estimand in ((trained, "rate"), (captured, "captured")):
        default = model.get_completed_expression(indices=range(10), return_numpy=True)
        named = model.get_completed_expression(indices=range(10), estimand=estimand, return_numpy=True)
        np.testing.assert_array_equal(default, named)


def test_standard_deviation(trained, tissue, monkeypatch):
    values, spread = trained.get_completed_expression(return_std=True)
    assert list(spread.columns) == list(tissue.var_names)
    kept = known(tissue) & (tissue.X.toarray() > 0)
    assert (spread.to_numpy()[kept] == 0).all()
    assert (spread.to_numpy()[~kept] > 0).all()
    np.testing.assert_array_equal(values, trained.get_completed_expression())
    # before it is calibrated: of samples on the same scale, and of what no sample of the latent holds
    assert set(trained.calibration_.kinds) == {"visible", "hidden", "hidden_spots", "holes"}
    for kind in trained.calibration_.kinds.values():
        monkeypatch.setattr(kind, "std_factor", 1.0)
    samples = trained.get_completed_expression(n_samples=200, return_mean=False, observed="model")
    arguments = {"n_samples": 200, "return_std": True, "observed": "model", "return_numpy": True}
    _, spread = trained.get_completed_expression(**arguments)
    monkeypatch.setattr(trained.module.likelihood, "own_variance", lambda decoded, own: torch.zeros_like(decoded))
    _, of_latents = trained.get_completed_expression(**arguments)
    assert 0.9 < np.median(of_latents / samples.std(axis=0)) < 1.1
    assert (spread >= of_latents).all() and (spread > of_latents).any()


def test_standard_deviation_of_rates_is_not_cut_off_at_zero(trained, tissue, monkeypatch):
    """A gene may stray by far more than its rate."""
    assert set(trained.calibration_.kinds) == {"visible", "hidden", "hidden_spots", "holes"}
    for kind in trained.calibration_.kinds.values():
        monkeypatch.setattr(kind, "std_factor", 1.0)
    arguments = {"return_std": True, "observed": "model", "return_numpy": True, "n_samples": 5}
    spreads = []
    for size in (0.0, 1.0, 4.0):
        variance = lambda decoded, own, size=size: (size * decoded) ** 2  # noqa: E731
        monkeypatch.setattr(trained.module.likelihood, "own_variance", variance)
        spreads.append(trained.get_completed_expression(**arguments)[1] ** 2)
    of_latents, once, fourfold = spreads
    np.testing.assert_allclose(fourfold - of_latents, 16 * (once - of_latents), rtol=2e-3, atol=1e-6)


def test_latent_has_one_row_per_spot(trained, tissue):
    latent = trained.get_latent_representation()
    assert latent.shape == (tissue.n_obs, trained.module.config.n_latent)
    assert np.isfinite(latent).all()
    assert not np.allclose(latent[1], latent[2])
    sample = trained.get_latent_representation(give_mean=False, seed=1)
    assert not np.allclose(sample, latent)


def test_spots_without_a_count_are_predicted_from_their_neighbours(trained, tissue):
    """Spots 17, 60 and 61 are masked throughout; 60 and 61 are neighbours of each other."""
    completed = trained.get_completed_expression(indices=[17, 60, 61], return_numpy=True)
    assert np.isfinite(completed).all()
    assert (completed > 0).all()
    assert np.abs(completed[0] - completed[1]).max() > 1e-4


def test_nothing_is_touched(fit, tissue, snapshot):
    adata = tissue.copy()
    before = snapshot(adata)
    model = fit(adata, 1, {"mask_layer": "known"})
    model.get_completed_expression(n_samples=2)
    model.get_normalized_expression()
    model.get_prediction_interval(0.9)
    model.get_latent_representation()
    assert snapshot(adata) == before
    model.complete(silent=True)
    after = snapshot(adata)
    assert {key: after[key] for key in before} == before
    assert {key for key in after if key not in before and "/type" not in key} == {
        f"layers/completed{suffix}" for suffix in ("", "_std", "_lower", "_upper", "_provenance")
    }


@pytest.mark.parametrize("kwargs", [{"conditioning": "neighborhood"}, {"gene_likelihood": "poisson"}])
def test_other_models_run_the_same_path(fit, tissue, kwargs, cp10k):
    model = fit(tissue.copy(), 2, {"mask_layer": "known"}, **kwargs)
    completed = model.get_completed_expression(return_numpy=True)
    kept = known(tissue) & (tissue.X.toarray() > 0)
    np.testing.assert_array_equal(completed[kept], cp10k(tissue)[kept])
    assert np.isfinite(completed).all()
    assert np.isfinite(model.get_completed_expression(n_samples=2, observed="model", return_numpy=True)).all()


def test_library_size_from_obs(fit, tissue):
    """Values are per registered library size, not per sum of the registered genes."""
    adata = tissue.copy()
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 2 + 5
    model = fit(adata, 2, {"size_factor_key": "total"})
    completed = model.get_completed_expression(return_numpy=True)
    counts = adata.X.toarray().astype(np.float64)
    expected = np.log1p(counts / adata.obs["total"].to_numpy()[:, None] * 1e4).astype(np.float32)
    np.testing.assert_array_equal(completed[counts > 0].view(np.uint32), expected[counts > 0].view(np.uint32))
    # the registered genes are a part of the library
    rates = model.get_normalized_expression(return_numpy=True).sum(axis=1)
    assert 0.3 < np.median(rates) < 0.7


def test_paper_preset_are_arguments_of_the_constructor():
    import inspect

    assert set(LGDiST.paper_preset()) <= set(inspect.signature(LGDiST.__init__).parameters)
    assert LGDiST.paper_preset()["conditioning"] == "neighborhood"
