"""Nothing that is hidden reaches a model, its statistics or its answers."""

from __future__ import annotations

from dataclasses import asdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict

from lgdist_scvi import pp


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
@pytest.mark.parametrize("to_format", [sparse.csr_matrix, np.asarray])
def test_the_true_value_of_a_masked_entry_changes_no_bit(fit, tissue, likelihood, to_format):
    """Trained on both with the same seed: weights, statistics, history and every answer are the same."""
    first = tissue.copy()
    if likelihood == "normal":
        first.layers["known"] &= first.X.toarray() > 0
    mask = np.asarray(first.layers["known"])
    second = first.copy()
    counts = first.X.toarray()
    noise = np.random.default_rng(5).integers(0, 50, counts.shape).astype(np.float32)
    changed = np.where(mask, counts, noise)
    assert (changed != counts).sum() > 500
    first.X, second.X = to_format(counts), to_format(changed)
    models = [fit(adata, 2, {"mask_layer": "known"}) for adata in (first, second)]
    assert models[0].gene_likelihood_ == models[1].gene_likelihood_ == likelihood
    assert torch.isfinite(models[0].module.region_shrinkage).any()  # region effects are used
    states = [model.module.state_dict() for model in models]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    for key, frame in models[0].history_.items():
        if not key.endswith("/seconds"):
            pd.testing.assert_frame_equal(frame, models[1].history_[key])
    np.testing.assert_equal(*(asdict(model.calibration_) for model in models))
    for model, adata in zip(models, (first, second), strict=True):
        model.complete(adata, n_samples=2, silent=True)
    for suffix in ("", "_std", "_lower", "_upper", "_provenance"):
        np.testing.assert_array_equal(first.layers[f"completed{suffix}"], second.layers[f"completed{suffix}"])
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in models))
    np.testing.assert_array_equal(
        *(model.get_completed_expression(observed="model", n_samples=2, return_mean=False) for model in models)
    )


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_training_knows_nothing_of_the_spots_that_calibrate(fit, tissue, likelihood):
    """Whole spots are set aside: with other counts in them, the trained networks are the same, and the calibration is not."""
    first = tissue.copy()
    if likelihood == "normal":
        first.layers["known"] &= first.X.toarray() > 0
    counts = first.X.toarray()
    first.obs["total"] = counts.sum(axis=1) + 100
    whole = fit(first, 1, {"mask_layer": "known", "size_factor_key": "total"}).module.spots_set_aside(first.n_obs)
    assert len(whole) >= 8
    second = first.copy()
    counts[whole] = np.where(counts[whole] > 0, counts[whole][:, ::-1].clip(1), 0)
    second.X = sparse.csr_matrix(counts)
    models = [fit(adata, 3, {"mask_layer": "known", "size_factor_key": "total"}) for adata in (first, second)]
    states = [model.module.state_dict() for model in models]
    # the size of the noise is fitted after training
    after_training = [key for key in states[0] if key.endswith(("log_theta", "log_sigma", "lasting_share"))]
    for key, value in states[0].items():
        assert key in after_training or torch.equal(value, states[1][key]), key
    thresholds = [model.calibration_.kinds["hidden_spots"].intervals.thresholds["captured"] for model in models]
    assert not np.array_equal(*thresholds)


def test_the_true_value_of_a_masked_entry_does_not_change_an_answer_about_other_data(trained):
    adata = trained.adata.copy()
    expected = trained.get_completed_expression(adata, return_numpy=True)
    counts = adata.X.toarray()
    hidden = ~np.asarray(adata.layers["known"])
    counts[hidden] += 7
    adata.X = sparse.csr_matrix(counts)
    np.testing.assert_array_equal(expected, trained.get_completed_expression(adata, return_numpy=True))
    # the control: a visible entry does change answers
    adata.layers["known"] = np.ones(adata.shape, bool)
    assert not np.array_equal(expected, trained.get_completed_expression(adata, return_numpy=True))


def probe(features: np.ndarray, values: np.ndarray) -> float:
    """Cross-validated R2, over all entries, of a linear probe of `values` from the leading directions of `features`."""
    features = features - features.mean(axis=0)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    scores = left[:, :25] * singular[:25]
    scores = scores / scores.std(axis=0).clip(1e-9)
    predicted = cross_val_predict(RidgeCV(np.logspace(0, 4, 9)), scores, values, cv=5)
    return 1 - ((values - predicted) ** 2).sum() / ((values - values.mean(axis=0)) ** 2).sum()


def test_without_spatial_structure_nothing_about_a_hidden_centre_can_be_read(fit):
    """Counts are independent draws. Half of the spots are hidden as a whole; the condition knows nothing about them."""
    rng = np.random.default_rng(0)
    n_spots, n_genes = 480, 20
    # cell types without a place: within a spot genes go together, between spots nothing does
    kind = rng.integers(4, size=n_spots)
    mean = rng.lognormal(1.0, 0.8, (4, n_genes))[kind]
    counts = rng.poisson(mean).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts))
    side = int(np.ceil(np.sqrt(n_spots)))
    adata.obsm["spatial"] = np.array([[i % side, i // side] for i in range(n_spots)], dtype=float)
    hidden = rng.permutation(n_spots) < n_spots // 2
    adata.layers["known"] = np.repeat(~hidden[:, None], n_genes, axis=1)
    pp.spatial_neighbors(adata)
    model = fit(adata, 15, {"mask_layer": "known"})
    dataset = model.adata_manager.create_torch_dataset()
    batch = {key: torch.from_numpy(np.array(value)) for key, value in dataset[np.arange(n_spots)].items()}
    with torch.no_grad():
        condition = model.module.condition(batch)
    tokens = (condition.tokens * condition.valid[..., None]).flatten(1).numpy()
    posterior = torch.cat([condition.mean, condition.log_variance], dim=1).numpy()
    values = np.log1p(counts)
    for features in (tokens, posterior):
        assert probe(features[hidden], values[hidden]) < 0.02
    # the control: of spots that are visible, the same probe reads most of what there is to know
    assert probe(tokens[~hidden], values[~hidden]) > 0.3
    assert probe(posterior[~hidden], values[~hidden]) > 0.3
    # and the answers about hidden spots do not follow the truth either
    completed = model.get_completed_expression(observed="model", return_numpy=True)
    deviation = lambda x: (x - x.mean(axis=0)).ravel()  # noqa: E731
    assert abs(np.corrcoef(deviation(completed[hidden]), deviation(values[hidden]))[0, 1]) < 0.06
    assert np.corrcoef(deviation(completed[~hidden]), deviation(values[~hidden]))[0, 1] > 0.4


def test_held_out_entries_are_predicted_without_having_been_seen(fit, slide):
    """The path of the benchmarks: hide raw counts, mask them, train, predict; the truth layer does not matter."""
    results = []
    for change in (False, True):
        hidden = pp.hold_out(slide, fraction=0.2, seed=1)
        if change:
            hidden.layers["truth"] = hidden.layers["truth"] * 3
        pp.observed_mask(hidden, method="held_out", key_added="known")
        model = fit(hidden, 1, {"mask_layer": "known"})
        results.append(model.get_completed_expression(return_numpy=True))
    np.testing.assert_array_equal(*results)
