"""Which expression a patch goes with, by the model that generates patches."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

from lgdist_scvi import C2LST, datasets
from lgdist_scvi.model._c2lst_posterior import ExpressionPosterior
from lgdist_scvi.module.c2lst import new_scheduler
from lgdist_scvi.module.c2lst._noise import levels_between, noise_error

N, SIZE = 24, 8


@pytest.fixture(scope="module")
def pictured() -> ad.AnnData:
    """Spots whose patches are light or dark, as leading components of their expression have it."""
    adata = datasets.simulated_visium(n_spots=150, n_genes=40, seed=0)
    values = np.log1p(np.asarray(adata.layers["rate"]))
    scores = np.linalg.svd(values - values.mean(0), full_matrices=False)[0][:, :3]
    shade = 128 + 60 * np.clip(scores / scores.std(0), -1.5, 1.5)
    grain = np.random.default_rng(0).normal(0, 12, (adata.n_obs, SIZE, SIZE, 3))
    adata.obsm["patches"] = (shade[:, None, None] + grain).round().clip(0, 255).astype(np.uint8)
    return adata


@pytest.fixture(scope="module")
def model(pictured) -> C2LST:
    """Trained until patches follow expression. Tests must not change it."""
    how = {"size": SIZE, "channels": (16,), "fold": 2, "batch_size": 16, "silent": True, "accelerator": "cpu"}
    central = C2LST.pretrain(pictured.obsm["patches"], 150, seed=0, **how)
    scvi.settings.seed = 0
    C2LST.setup_anndata(adata := pictured.copy(), "patches", sample_key="sample")
    model = C2LST(adata, central=central, n_scores=8, n_hidden=32)
    quick = {"accelerator": "cpu", "enable_progress_bar": False, "early_stopping": False}
    model.train(max_epochs=40, ema_decay=None, plan_kwargs={"lr": 5e-3}, **quick)
    scvi.settings.seed = None
    return model


@pytest.fixture(scope="module")
def made_for(pictured) -> ad.AnnData:
    return pictured[np.random.default_rng(0).permutation(pictured.n_obs)[:N]].copy()


@pytest.fixture(scope="module")
def patches(model, made_for) -> np.ndarray:
    return model.generate(made_for, n_steps=10, seed=3)


def test_generated_patches_go_with_the_profile_that_they_were_made_for(model, made_for, patches):
    posterior = model.get_expression_posterior(patches, made_for, seed=0)
    probability, own = posterior.probability.to_numpy(), np.arange(N)
    assert list(posterior.probability.columns) == list(made_for.obs_names)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert posterior.rank(own).mean() > 0.75 and probability[own, own].mean() > 2 / N
    # and with no other, nor do patches for other spots
    order = np.random.default_rng(1).permutation(N)
    assert 0.3 < posterior.rank(order).mean() < 0.6
    permuted = model.get_expression_posterior(patches[order], made_for, seed=0)
    assert 0.3 < permuted.rank(own).mean() < 0.6
    pd.testing.assert_frame_equal(permuted.probability, posterior.probability.iloc[order].reset_index(drop=True))
    # rates are found back, though no spot's own profile is among the candidates
    others = model.adata[~model.adata.obs_names.isin(made_for.obs_names)].copy()
    found = model.get_expression_posterior(patches, others[:60], seed=0).expression
    values, _ = model._profiles(made_for)
    assert list(found.columns) == list(model._genes) and found.shape == values.shape
    centred = [part - part.mean(axis=0) for part in (found.to_numpy(), values)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.2
    assert abs(np.corrcoef(centred[0][order].ravel(), centred[1].ravel())[0, 1]) < 0.2


def test_the_posterior_is_a_function_of_seed_patch_and_candidates(model, made_for, patches):
    some, how = made_for[:6], {"n_levels": 3, "seed": 0}
    expected = model.get_expression_posterior(patches[:4], some, **how)
    for found in (
        model.get_expression_posterior(patches[:4], some, **how),
        model.get_expression_posterior(
            patches[:4], pd.DataFrame(model._profiles(some)[0], columns=model._genes), **how
        ),
    ):
        np.testing.assert_array_equal(found.probability, expected.probability)
        np.testing.assert_array_equal(found.expression, expected.expression)
    # but for rounding
    for found in (
        model.get_expression_posterior(patches[:4], some, **how, batch_size=5),
        model.get_expression_posterior(patches, some, **how),
    ):
        np.testing.assert_allclose(found.probability[:4], expected.probability, atol=1e-3)
    other = model.get_expression_posterior(patches[:4], some, n_levels=3, seed=1)
    assert np.abs(other.probability - expected.probability).max().max() > 1e-3
    drawn = model.get_expression_posterior(patches[:2], n_candidates=7, n_levels=1, seed=0).probability
    assert drawn.shape == (2, 7) and drawn.columns.isin(model.adata.obs_names).all() and drawn.columns.is_unique


def test_bayes_rule(model, made_for, patches):
    some, how = made_for[:5], {"n_levels": 2, "seed": 0}
    alike = model.get_expression_posterior(patches[:3], some, **how, temperature=1.0).probability.to_numpy()
    prior = np.array([2.0, 1, 0, 1, 4])
    weighted = model.get_expression_posterior(patches[:3], some, prior, **how, temperature=1.0)
    expected = alike * prior
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weighted.probability, expected, rtol=1e-6)
    rates = np.expm1(model._profiles(some)[0].astype(np.float64))
    np.testing.assert_allclose(weighted.expression, np.log1p(expected @ rates), rtol=1e-6)
    warmer = model.get_expression_posterior(patches[:3], some, **how, temperature=2.0).probability.to_numpy()
    expected = np.sqrt(alike)
    np.testing.assert_allclose(warmer, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)


def test_rates_of_unknown_genes_are_unknown(model, made_for, patches):
    found = model.get_expression_posterior(patches[:2], made_for[:3, :25], n_levels=1, seed=0).expression
    known = found.columns.isin(made_for.var_names[:25])
    assert found.loc[:, known].notna().all(axis=None) and found.loc[:, ~known].isna().all(axis=None)


def test_the_likelihood_is_the_bound_between_two_levels(model, patches, monkeypatch):
    """Of a network that predicts one colour it has a closed form."""
    module, seen = model.module, torch.from_numpy(patches[:3])
    colour = torch.tensor([-0.5, 0.0, 0.9])[:, None, None, None]
    monkeypatch.setattr(module, "predict", lambda x, t, condition: colour.expand_as(x))
    found = module.log_likelihood(seen, torch.zeros(3, module.scores.n_condition), torch.randn(400, 12, 4, 4))
    error = ((seen / 127.5 - 1 - colour) ** 2).sum((1, 2, 3))
    # the integral over half the signal-to-noise ratio, from a tenth to nine tenths of noise
    torch.testing.assert_close(found, (-0.5 * error * (9 - 1 / 9)).double(), rtol=0.02, atol=0.0)


def test_the_error_of_noise_does_not_depend_on_what_a_network_predicts():
    scheduler = new_scheduler()
    timestep, length = levels_between(scheduler, 5)
    signal = scheduler.alphas_cumprod[timestep]
    assert (signal[:-1] > signal[1:]).all()
    torch.testing.assert_close(torch.logit(signal).diff(), torch.full((4,), -length), rtol=0.05, atol=0.0)
    images, noise, wrong = (torch.randn(5, 3, 4, 4) for _ in range(3))
    a, b = (value.sqrt()[:, None, None, None] for value in (signal, 1 - signal))
    guessed = noise + 0.1 * wrong
    image = (a * images + b * noise - b * guessed) / a
    for kind, answer in {"epsilon": guessed, "sample": image, "v_prediction": a * guessed - b * image}.items():
        scheduler.register_to_config(prediction_type=kind)
        error = noise_error(lambda x, t, answer=answer: answer, scheduler, images, timestep, noise)
        torch.testing.assert_close(error, 0.01 * (wrong**2).flatten(1).mean(1), rtol=1e-3, atol=1e-6)


def test_ranks():
    likelihood = np.log([[0.5, 0.3, 0.1, 0.1], [0.25] * 4])
    prior, values, names = np.full(4, 0.25), np.zeros((4, 1)), pd.RangeIndex(4)
    posterior = ExpressionPosterior.of(likelihood, prior, values, names, np.array(["gene"]))
    np.testing.assert_allclose(posterior.rank([0, 2]), [1, 0.5])
    np.testing.assert_allclose(posterior.rank(np.array([2, 0])), [1 / 6, 0.5])
    for wrong in ([0], [0, 4], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="for each of 2 patches, from 0 to 3"):
            posterior.rank(wrong)
    far = np.array([[0.0, -3000.0, -2500.0, -4000.0]])  # whose probabilities are 0
    ranks = [ExpressionPosterior.of(far, prior, values, names, np.array(["gene"])).rank([one])[0] for one in range(4)]
    np.testing.assert_allclose(ranks, [1, 1 / 3, 2 / 3, 0])


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"patches": np.zeros((2, 16, 16, 3))}, ValueError, "square patches"),
        ({"patches": np.zeros((0, 16, 16, 3), np.uint8)}, ValueError, "no patch"),
        ({"expression": [1, 2]}, TypeError, "must be an AnnData"),
        ({"expression": np.zeros((0, 40))}, ValueError, "no profile"),
        ({"expression": np.zeros((2, 3))}, ValueError, "40 registered genes"),
        ({"prior": [1.0, 2.0]}, ValueError, "for each of 5 candidates"),
        ({"prior": np.zeros(5)}, ValueError, "not all 0"),
        ({"prior": [1, 1, 1, 1, -1]}, ValueError, "at least 0"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"n_levels": 0}, ValueError, "n_levels"),
        ({"n_candidates": 0}, ValueError, "n_candidates"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_what_cannot_be_asked(model, patches, keywords, error, match):
    with pytest.raises(error, match=match):
        model.get_expression_posterior(**{"patches": patches[:2], "n_candidates": 5, **keywords})


def test_a_model_must_be_trained_and_have_candidates(model, pictured, patches, tmp_path):
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    with pytest.raises(ValueError, match="not trained"):
        C2LST(adata, central=model.central).get_expression_posterior(patches)
    model.save(tmp_path / "model")
    alone = C2LST.load(tmp_path / "model", False, central=model.central)
    for ask in (alone.get_expression_posterior, lambda patches: alone.generate()):
        with pytest.raises(ValueError, match="without data; pass expression"):
            ask(patches[:1])
    found = alone.get_expression_posterior(patches[:1], pictured[:3], n_levels=2, seed=0)
    expected = model.get_expression_posterior(patches[:1], pictured[:3], n_levels=2, seed=0)
    np.testing.assert_array_equal(found.probability, expected.probability)
