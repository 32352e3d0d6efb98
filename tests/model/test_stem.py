"""Stem: expression from image features, on slides that were never seen."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

from lgdist_scvi import LGDiST, Stem, datasets
from lgdist_scvi import _keys as keys
from lgdist_scvi.inference import Predictor
from lgdist_scvi.metrics import poisson_deviance_explained
from lgdist_scvi.model._stages import DiffusionStage, VAEStage
from lgdist_scvi.model._stem_synthetic import synthetic_components
from lgdist_scvi.model._stem_targets import targets_of

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
SIZES = {
    "n_components": 16, "n_latent": 6, "n_hidden": 32, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1,
    "n_denoiser_heads": 2, "n_timesteps": 50,
}  # fmt: skip
SETUP = {"sample_key": "sample", "size_factor_key": "total", "target_layer": "expected"}


def slides(n_spots: int = 240, n_samples: int = 4, shuffled: bool = False) -> AnnData:
    """Slides whose image features are a noisy function of what is expressed, stained in a way of their own."""
    adata = datasets.simulated_visium(n_spots=n_spots, n_genes=40, n_samples=n_samples, seed=0)
    rng = np.random.default_rng(1)
    score = np.log(adata.layers["rate"])
    features = np.tanh((score - score.mean(0)) @ rng.normal(size=(40, 24)) / 6) + 0.3 * rng.normal(size=(n_spots, 24))
    codes = adata.obs["sample"].cat.codes.to_numpy()
    if shuffled:
        features = features[rng.permutation(n_spots)]
    adata.obsm["X_image"] = (
        features * rng.uniform(0.7, 1.4, (n_samples, 24))[codes] + rng.normal(size=(n_samples, 24))[codes]
    ).astype(np.float32)
    adata.obs["total"] = np.asarray(adata.X.sum(1)).ravel()
    adata.layers["expected"] = np.log1p(adata.layers["rate"] * 1e4)
    return adata


def parts(adata: AnnData) -> tuple[AnnData, AnnData]:
    """All slides but the last, and that."""
    last = (adata.obs["sample"] == adata.obs["sample"].cat.categories[-1]).to_numpy()
    return adata[~last].copy(), adata[last].copy()


def pictures(adata: AnnData, genes: bool = False) -> AnnData:
    """What is known of a slide that was never sequenced."""
    var = pd.DataFrame(index=adata.var_names if genes else [])
    return AnnData(
        obs=adata.obs[["sample"]].copy(), var=var, obsm={k: adata.obsm[k].copy() for k in ("spatial", "X_image")}
    )


def fitted(adata: AnnData, setup: dict = SETUP, train: dict | None = None, **kwargs) -> Stem:
    before, scvi.settings.seed = scvi.settings.seed, 0
    Stem.setup_anndata(adata, **setup)
    model = Stem(adata, **{**SIZES, **kwargs})
    model.train(max_epochs=4, **QUICK, **(train or {}))
    scvi.settings.seed = before
    return model


def explained(train: AnnData, test: AnnData, prediction: pd.DataFrame) -> float:
    mean = np.asarray(train.X.sum(0)).ravel() / train.obs["total"].sum()
    return poisson_deviance_explained(test.X, np.expm1(prediction.to_numpy()) / 1e4, test.obs["total"].to_numpy(), mean)


@pytest.fixture(scope="module")
def data() -> tuple[AnnData, AnnData]:
    return parts(slides())


@pytest.fixture(scope="module")
def model(data) -> Stem:
    return fitted(data[0])


def test_a_slide_without_counts_is_predicted(model, data):
    """From features and coordinates alone, nearly as well as the noise of the features allows."""
    train, test = data
    prediction = model.get_predicted_expression(pictures(test))
    assert prediction.shape == test.shape and list(prediction.columns) == list(train.var_names)
    best = explained(train, test, pd.DataFrame(np.log1p(test.layers["rate"] * 1e4)))
    assert explained(train, test, prediction) > 0.3 * best > 0.1
    rates = model.get_normalized_expression(pictures(test), return_numpy=True)
    np.testing.assert_allclose(np.log1p(rates * 1e4), prediction, rtol=1e-4)


def test_shuffled_features_tell_nothing(data):
    train, test = parts(slides(shuffled=True))
    assert abs(explained(train, test, fitted(train).get_predicted_expression(pictures(test)))) < 0.03


def test_counts_of_the_slide_asked_about_change_nothing(model, data):
    test = data[1]
    changed = test.copy()
    changed.X = changed.X[:, ::-1].copy()  # of the same totals
    answers = [model.get_predicted_expression(one, return_numpy=True) for one in (pictures(test), test, changed)]
    for one in answers[1:]:
        np.testing.assert_allclose(one, answers[0], atol=1e-6)


def test_spots_without_an_image(model, data):
    """They are predicted from the patches around them, and change nothing but their neighbours."""
    test = pictures(data[1])
    test.obsm["X_image"][[3, 17]] = np.nan
    prediction = model.get_predicted_expression(test, return_numpy=True)
    assert np.isfinite(prediction).all()
    means = model.get_predicted_expression(pictures(data[1]), return_numpy=True)
    assert not np.allclose(prediction[3], means[3])
    train = data[0].copy()
    train.obsm["X_image"][::7] = np.nan
    assert np.isfinite(fitted(train).get_predicted_expression(test, return_numpy=True)).all()


def test_samples_differ_and_repeat(model, data):
    test = pictures(data[1])
    kwargs = {"n_samples": 3, "return_mean": False}
    samples = model.get_predicted_expression(test, seed=1, **kwargs)
    assert samples.shape == (3, *data[1].shape) and (samples.std(axis=0) > 0).all()
    np.testing.assert_array_equal(samples, model.get_predicted_expression(test, seed=1, **kwargs))
    in_parts = model.get_predicted_expression(test, seed=1, batch_size=13, **kwargs)
    np.testing.assert_allclose(samples, in_parts, atol=1e-4)
    assert not np.allclose(samples, model.get_predicted_expression(test, seed=2, **kwargs))
    mean, std = model.get_predicted_expression(test, return_std=True)
    assert (std.to_numpy() > 0).all() and mean.shape == std.shape


def test_intervals_cover_the_counts_of_an_unseen_slide(model, data):
    test = data[1]
    lower, upper = model.get_prediction_interval(0.9, test, return_numpy=True)
    measured = np.log1p(test.X.toarray() / test.obs["total"].to_numpy()[:, None] * 1e4)
    inside = ((measured >= lower) & (measured <= upper)).mean()
    assert 0.85 < inside < 0.97
    assert set(model.calibration_.std_factors) == {"unseen_slide"}


def test_intervals_are_for_the_depth_that_is_asked_about(model, data):
    """Of slides without counts, and in place of that of counts."""
    test, bare = data[1], pictures(data[1])
    depth = test.obs["total"].to_numpy()
    kwargs = {"n_samples": 8, "seed": 1, "return_numpy": True}
    own = model.get_prediction_interval(0.9, test, **kwargs)
    for given in (depth, list(depth)):
        for one, other in zip(own, model.get_prediction_interval(0.9, bare, library_size=given, **kwargs), strict=True):
            np.testing.assert_array_equal(one, other)
    shallow, deep = (model.get_prediction_interval(0.9, test, library_size=size, **kwargs) for size in (100, 1e4))
    assert (deep[1] - deep[0]).mean() < 0.7 * (shallow[1] - shallow[0]).mean()
    for wrong in (0, -5, np.nan, "deep", depth[:3]):
        with pytest.raises(ValueError, match="library_size"):
            model.get_prediction_interval(0.9, bare, library_size=wrong)


def test_a_model_that_looks_at_counts_takes_no_other_depth():
    adata = datasets.simulated_visium(n_spots=80, n_genes=20, seed=0)
    LGDiST.setup_anndata(adata)
    with pytest.raises(TypeError, match="library_size"):
        LGDiST(adata).get_prediction_interval(0.9, library_size=100)


def test_predict_writes_layers_skill_and_record(model, data):
    test = pictures(data[1], genes=True)
    model.predict(test, silent=True)
    for suffix in ("", "_std", "_lower", "_upper"):
        assert np.isfinite(test.layers[f"predicted{suffix}"]).all()
    assert (test.layers["predicted_provenance"] == 2).all()  # nothing was measured
    np.testing.assert_array_equal(test.layers["predicted"], model.get_predicted_expression(test, return_numpy=True))
    assert test.var["predicted_skill"].median() > 0 and test.uns["predicted"]["level"] == 0.9
    assert test.X is None


def test_predict_says_where_genes_are_missing(model, data):
    with pytest.raises(ValueError, match=r"40 of the 40 predicted genes have no place in adata\.var_names"):
        model.predict(pictures(data[1]), silent=True)


def test_slides_of_the_training_are_predicted_by_networks_that_did_not_see_them(model, data):
    train = data[0]
    honest = model.get_predicted_expression(return_numpy=True)
    for network in model.module.networks[1:]:
        assert any(parameter.abs().sum() > 0 for parameter in network.parameters())
    first = (train.obs["sample"] == train.obs["sample"].cat.categories[0]).to_numpy()
    others = model.module.networks[1:]
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in others]
    for one in others:
        for parameter in one.parameters():
            parameter.data.zero_()
    changed = model.get_predicted_expression(return_numpy=True)
    for one, state in zip(others, before, strict=True):
        one.load_state_dict(state)
    np.testing.assert_array_equal(changed[first], honest[first])


def test_save_and_load(model, data, tmp_path):
    test = pictures(data[1])
    model.save(tmp_path / "stem")
    loaded = Stem.load(tmp_path / "stem", adata=data[0])
    np.testing.assert_array_equal(
        loaded.get_predicted_expression(test, return_numpy=True),
        model.get_predicted_expression(test, return_numpy=True),
    )
    elsewhere = Stem.load(tmp_path / "stem", adata=test)
    np.testing.assert_array_equal(
        elsewhere.get_predicted_expression(return_numpy=True), model.get_predicted_expression(test, return_numpy=True)
    )


def test_one_slide(data):
    """Strips of it are left out in turn."""
    train = data[0][data[0].obs["sample"] == data[0].obs["sample"].cat.categories[0]].copy()
    stem = fitted(train, {"target_layer": "expected"})
    assert stem.module.n_folds == 4
    assert np.isfinite(stem.get_predicted_expression(pictures(data[1]), return_numpy=True)).all()


def test_targets(data, monkeypatch):
    """Counts, the rates of an LGDiST that is at hand, and those of one that training fits itself."""
    monkeypatch.setattr(VAEStage, "n_steps", 40)
    monkeypatch.setattr(DiffusionStage, "n_steps", 10)
    train, test = data
    setup = {"sample_key": "sample", "size_factor_key": "total"}
    completed = train.copy()
    LGDiST.setup_anndata(completed, **setup)
    lgdist = LGDiST(completed)
    lgdist.train(**QUICK)
    rates = lgdist.get_normalized_expression(return_numpy=True)
    for targets in ("expected", "counts", lgdist):
        model = fitted(train.copy(), setup, {"targets": targets})
        learnt = targets_of(model, targets, stage="diffusion", **QUICK)
        assert learnt.latents.shape == (train.n_obs, 1 if targets == "counts" else 8, SIZES["n_latent"])
        if targets is lgdist:
            np.testing.assert_allclose(learnt.rate, rates)
        # of 26 counts a spot
        assert explained(train, train, pd.DataFrame(np.log1p(learnt.rate * 1e4))) > 0.05
        assert explained(train, test, model.get_predicted_expression(pictures(test))) > -0.01
    with pytest.raises(ValueError, match="same spots in the same order"):
        fitted(train[:-1].copy(), setup, {"targets": lgdist})


# ---- synthetic pairs


def pairs_of(train: AnnData, n_of_spot: int = 2, noise: float = 0.3, shuffled: bool = False) -> AnnData:
    """Pairs as C2LST.synthetic_pairs gives them, whose features tell the true rates of their spots, but for noise."""
    rng = np.random.default_rng(5)
    rows = np.tile(np.arange(train.n_obs), n_of_spot)
    score = np.log(train.layers["rate"])
    telling = np.tanh((score - score.mean(0)) @ np.random.default_rng(1).normal(size=(40, 24)) / 6)
    shown = rng.permutation(rows) if shuffled else rows
    pairs = AnnData(
        train.X[rows],
        var=train.var[[]],
        obsm={"X_image": (telling[shown] + noise * rng.normal(size=(len(rows), 24))).astype(np.float32)},
    )
    pairs.obs_names = [f"synthetic_{number}" for number in range(len(rows))]
    pairs.obs["synthetic"], pairs.obs["source"] = True, np.asarray(train.obs_names[rows])
    pairs.obs["sample"] = train.obs["sample"].to_numpy()[rows]
    pairs.uns["synthetic"] = {"model": "C2LST", "seed": 0}
    return pairs


def trained(train: AnnData, pairs: AnnData | None) -> Stem:
    torch.manual_seed(0)
    return fitted(train.copy(), train={"synthetic": pairs})


def test_pairs_that_tell_more_are_learnt_from(data):
    """Real patches tell half as much here; the record says how much the pairs count and where they are from."""
    train, test = data[0].copy(), data[1]
    rng = np.random.default_rng(2)
    train.obsm["X_image"] = train.obsm["X_image"] + rng.normal(size=train.obsm["X_image"].shape).astype(np.float32)
    without, pairs = trained(train, None), pairs_of(train, 4, 0.05)
    model = trained(train, pairs)
    weight = float(model.module.synthetic_weight)
    told = model.history_["experts/synthetic"].iloc[0]
    assert weight > 0 and told["weight"] == weight and told[f"gain_{weight}"] > 2 * told[f"se_{weight}"]
    scores = [explained(train, test, one.get_predicted_expression(pictures(test))) for one in (without, model)]
    assert scores[1] > scores[0] + 0.002
    call = model.training_[-1]
    assert call["left_out"] == ["synthetic"] and call["synthetic"] == {
        "n": pairs.n_obs, "weight": weight, "made": {"model": "C2LST", "seed": 0}
    }  # fmt: skip
    shown = pictures(test, genes=True)
    model.predict(shown, silent=True)
    assert f'"weight": {weight}' in shown.uns["predicted"]["recipe"]
    assert without.module.synthetic_weight == 0 and "experts/synthetic" not in without.history_


def test_pairs_that_tell_nothing_change_nothing(data):
    """Not a bit of the model; nor do they calibrate, or count for genes."""
    train = data[0]
    without, model = trained(train, None), trained(train, pairs_of(train, shuffled=True))
    assert model.module.synthetic_weight == 0 and model.history_["experts/synthetic"]["weight"].item() == 0
    for name, value in without.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name]), name


def test_each_patch_is_beside_the_spot_that_it_was_made_for(data):
    train = data[0].copy()
    Stem.setup_anndata(train, **SETUP)
    model, pairs = Stem(train, **SIZES), pairs_of(train, 3)
    order = np.random.default_rng(0).permutation(pairs.n_obs)[:400]
    found = synthetic_components(model, pairs[order].copy(), "all")
    samples = train.obs["sample"].cat.codes.to_numpy()
    rows = train.obs_names.get_indexer(pairs.obs["source"].iloc[order])
    expected = model.module.components.transform(pairs.obsm["X_image"][order], samples[rows])
    assert np.isfinite(found).all(2).sum() == 400
    for spot in (0, 17, 120):
        there = found[spot][np.isfinite(found[spot]).all(1)]
        np.testing.assert_allclose(there, expected[rows == spot], rtol=1e-5)


def test_what_are_no_pairs_of_these_spots_is_refused(data):
    train = data[0].copy()
    Stem.setup_anndata(train, **SETUP)
    model, pairs = Stem(train, **SIZES), pairs_of(train, 1)

    def refused(error, match, change=lambda pairs: None, stage="network", given=None):
        changed = pairs.copy() if given is None else given
        change(changed)
        with pytest.raises(error, match=match):
            model.train(synthetic=changed, stage=stage, max_epochs=1, **QUICK)
        assert model.module.synthetic_weight == 0 and not model.is_trained_

    refused(TypeError, "AnnData of C2LST.synthetic_pairs, got ndarray", given=np.zeros((3, 3)))
    refused(KeyError, "source.*synthetic_pairs", lambda pairs: pairs.obs.drop(columns="source", inplace=True))
    refused(KeyError, "X_image.*patch_key", lambda pairs: pairs.obsm.clear())
    refused(ValueError, "1 of 180 spots of synthetic are not flagged", lambda pairs: pairs.obs.__setitem__("synthetic", [False] + [True] * 179))  # fmt: skip
    refused(
        ValueError, "180 of 180 .*not in the training data", lambda pairs: pairs.obs.__setitem__("source", "nobody")
    )
    refused(ValueError, "120 of 180 .*not in the training data", lambda pairs: pairs.obs.__setitem__("sample", "slide_1"))  # fmt: skip
    refused(ValueError, "5 features", lambda pairs: pairs.obsm.__setitem__("X_image", pairs.obsm["X_image"][:, :5]))


def test_patches_of_another_size_are_said(data):
    train, pairs = data[0].copy(), pairs_of(data[0], 1)
    record = {
        "encoder": "stain",
        "n_features": 24,
        "size": 8,
        "augment": "none",
        "probe": np.ones(16),
        "blocks": np.array([24]),
    }
    train.uns["X_image"], pairs.uns["X_image"] = record, record | {"patch_size": 64}
    Stem.setup_anndata(train, **SETUP)
    model = Stem(train, **SIZES)
    with pytest.raises(ValueError, match="the diffusion learns nothing"):
        synthetic_components(model, pairs, "diffusion")
    with pytest.warns(UserWarning, match="patches of 64 pixels, and those of the training of all"):
        synthetic_components(model, pairs, "all")
    pairs.uns["X_image"] = record | {"encoder": "other"}
    with pytest.raises(ValueError, match="encoder='other'"):
        synthetic_components(model, pairs, "all")


def test_networks_and_expert_see_no_patch_of_the_part_they_leave_out(data, monkeypatch):
    """Whatever patches were made for a slide, what was fitted without it is the same."""
    monkeypatch.setattr("lgdist_scvi.module.stem._kernel._LENGTHS", (1.0,))
    monkeypatch.setattr("lgdist_scvi.module.stem._kernel._PENALTIES", (1.0,))
    train = data[0].copy()
    Stem.setup_anndata(train, **SETUP)
    before = scvi.settings.seed
    found = []
    for changed in (False, True):
        pairs = pairs_of(train, 1)
        if changed:
            first = (pairs.obs["sample"] == "slide_1").to_numpy()
            pairs.obsm["X_image"][first] = np.random.default_rng(3).normal(size=(first.sum(), 24))
        scvi.settings.seed = 0
        torch.manual_seed(0)
        model = Stem(train, **SIZES)
        model._targets = targets = targets_of(model, "expected", synthetic=pairs)
        dataset = model._data_for(model.adata_manager.create_torch_dataset(), "set_aside")
        batch = {name: torch.as_tensor(np.asarray(value)) for name, value in dataset[np.arange(train.n_obs)].items()}
        assert targets.synthetic is not None and keys.SYNTHETIC in batch
        model.module.synthetic_weight.fill_(1.0)
        plan = model._stages["network"](model.module)
        model.module.train()
        torch.manual_seed(1)
        plan.training_loss(batch, 0).backward()
        gradients = [
            parameter.grad for parameter in model.module.networks[0].parameters() if parameter.grad is not None
        ]
        other = [parameter.grad for parameter in model.module.networks[1].parameters() if parameter.grad is not None]
        model.module.eval().fit_experts([batch], torch.Generator().manual_seed(0))
        found.append((gradients, other, model.module.experts.experts[0].coefficients.clone()))
    scvi.settings.seed = before
    one, two = found
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    torch.testing.assert_close(one[2][0], two[2][0])
    assert not torch.allclose(one[2][1], two[2][1], atol=1e-4)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :5], r"has 5 features, and the model was trained on 24; make them with the encoder"),
        (lambda x: np.full_like(x, np.nan), "every row is NaN"),
        (lambda x: np.where(np.arange(24) == 2, np.inf, x), "a spot without an image has a row of NaN"),
        (lambda x: x[:, 0], "must hold numbers"),
    ],
)
def test_features_that_cannot_be(model, data, change, message):
    test = pictures(data[1])
    features = change(test.obsm["X_image"])
    if features.ndim == 1:
        features = np.array([[str(value)] for value in features], dtype=object)
    test.obsm["X_image"] = features
    with pytest.raises(ValueError, match=message):
        model.get_predicted_expression(test)


def test_what_registration_refuses(data):
    train = data[0].copy()
    with pytest.raises(KeyError, match="pp.image_features"):
        Stem.setup_anndata(train, image_key="nothing", sample_key="sample")
    with pytest.raises(KeyError, match="nothing.* not found in adata.layers"):
        Stem.setup_anndata(train, target_layer="nothing", sample_key="sample")
    with pytest.raises(ValueError, match=r"adata\.X holds no counts"):
        Stem.setup_anndata(pictures(train, genes=True), sample_key="sample")


# ---- gene space

SMALL = Stem.paper_preset() | {
    "n_components": 16, "n_denoiser_hidden": 16, "n_denoiser_layers": 1, "n_denoiser_heads": 2, "n_timesteps": 50,
}  # fmt: skip
PAPER = {"batch_size": 60, "plan_kwargs": {"lr": 3e-3}, **QUICK}


@pytest.fixture(scope="module")
def of_genes(data) -> Stem:
    before, scvi.settings.seed = scvi.settings.seed, 0
    Stem.setup_anndata(data[0], **SETUP)
    model = Stem(data[0], **SMALL)
    model.train(max_epochs=120, **PAPER)
    scvi.settings.seed = before
    return model


def test_the_preset_is_the_paper_s_transformer(data):
    """A token for each gene, 12 layers of 384 with 6 heads, and nothing beside it."""
    assert set(Stem.paper_preset()) <= set(inspect.signature(Stem.__init__).parameters)
    Stem.setup_anndata(data[0], **SETUP)
    model = Stem(data[0], **Stem.paper_preset())
    denoiser = model.module.diffusion.denoiser
    assert denoiser.genes.shape == (40, 384) and len(denoiser.blocks) == 12
    assert denoiser.blocks[0].attention.num_heads == 6
    others = [name for name, _ in model.module.named_parameters() if not name.startswith("diffusion.denoiser")]
    assert others == ["likelihood.log_theta"]
    assert 30e6 < sum(parameter.numel() for parameter in denoiser.parameters()) < 40e6
    assert "a token for each gene" in repr(model)


def test_gene_space_predicts_a_slide_without_counts(of_genes, data):
    train, test = data
    prediction = of_genes.get_predicted_expression(pictures(test))
    assert explained(train, test, prediction) > 0.05
    of_genes.get_prediction_interval(0.9, test, n_samples=4)


def test_gene_space_mean_is_one_evaluation_and_samples_share_it(of_genes, data):
    test, asked = pictures(data[1]), []
    hook = of_genes.module.diffusion.denoiser.register_forward_hook(lambda _, args, __: asked.append(args[1].max()))
    of_genes.get_predicted_expression(test)
    assert asked == [49]  # the noisiest step
    samples = of_genes.get_predicted_expression(test, n_samples=2, return_mean=False, seed=1)
    hook.remove()
    assert len(asked) == 1 + 3 and (samples[0] != samples[1]).mean() > 0.99
    again = of_genes.get_predicted_expression(test, n_samples=2, return_mean=False, seed=1, batch_size=7)
    np.testing.assert_allclose(again, samples, atol=1e-4)


def test_embeddings_of_genes_matter(of_genes, data):
    test, genes = pictures(data[1]), of_genes.module.diffusion.denoiser.genes
    before, kept = of_genes.get_predicted_expression(test, return_numpy=True), genes.data.clone()
    genes.data = kept.flip(0)
    changed = of_genes.get_predicted_expression(test, return_numpy=True)
    genes.data = kept
    assert np.abs(changed - before).mean() > 0.1 * before.std(axis=0).mean()


def test_gene_space_means_and_samples_are_at_the_level_of_the_targets(of_genes, data):
    """The mean of a logarithm is not the logarithm of the mean."""
    depth = data[0].obs["total"].to_numpy()
    rates = of_genes.get_normalized_expression(return_numpy=True)
    np.testing.assert_allclose(depth @ rates, depth @ data[0].layers["rate"], rtol=0.02)
    drawn, rate = of_genes.get_normalized_expression(n_samples=8, return_mean=False).mean(axis=(0, 1)), rates.mean(0)
    assert np.abs(np.log(drawn / rate)).mean() < 0.15


def test_gene_space_is_judged_on_a_slide_that_the_denoiser_did_not_see(of_genes, data):
    """The first: noise, intervals and skill are of it alone."""
    train = data[0]
    first = np.flatnonzero(train.obs["sample"] == train.obs["sample"].cat.categories[0])
    dataset = of_genes._data_for(of_genes.adata_manager.create_torch_dataset(), "set_aside")
    np.testing.assert_array_equal(Predictor(of_genes.module, dataset).judging(), first)
    table = of_genes.skill_table()
    assert (table["n"] == len(first)).all()


def test_gene_space_is_saved_and_loaded(of_genes, data, tmp_path):
    test = pictures(data[1])
    of_genes.save(tmp_path / "genes")
    for adata in (data[0], test):
        loaded = Stem.load(tmp_path / "genes", adata=adata)
        np.testing.assert_array_equal(
            loaded.get_predicted_expression(test, return_numpy=True),
            of_genes.get_predicted_expression(test, return_numpy=True),
        )
    of_genes.predict(pictures(data[1], genes=True), level=None, n_samples=2, silent=True)


@pytest.mark.parametrize(
    ("sizes", "train", "message"),
    [
        ({"denoiser": "gene"}, {}, "denoiser"),
        ({"denoiser": "genes", "n_denoiser_hidden": 20, "n_denoiser_heads": 6}, {}, "must be a multiple of n_denoiser_heads=6"),
        ({"n_folds": 1}, {}, "n_folds must be at least 2"),
        (SMALL, {"stage": "network"}, "stage"),
        ({}, {"stage": "diffusion"}, "needs a trained 'network'"),
    ],
)  # fmt: skip
def test_what_the_constructor_and_the_stages_refuse(data, sizes, train, message):
    Stem.setup_anndata(data[0], **SETUP)
    with pytest.raises(ValueError, match=message):
        Stem(data[0], **sizes).train(**train, **QUICK)


def test_the_warning_of_no_skill_is_true_for_what_was_called(model, data):
    """`predict` has no argument that leaves genes as measured."""
    with pytest.warns(UserWarning, match=r"predicted_skilled'\] names the others; rely on those alone\.$"):
        model.predict(pictures(data[1], genes=True), level=None, n_samples=2, silent=True)
