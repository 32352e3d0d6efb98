from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

from lgdist_scvi import C2LST, LGDiST, Stem, datasets, pp
from lgdist_scvi import _keys as keys
from lgdist_scvi.model._c2lst_central import CentralModel
from lgdist_scvi.module.c2lst import ExpressionScores

SIZES = {"size": 16, "channels": (16,), "fold": 2, "batch_size": 8, "silent": True, "accelerator": "cpu"}
QUICK = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def pictured() -> ad.AnnData:
    """A simulated slide with patches of 32 pixels. Tests must not write into it."""
    adata = datasets.simulated_visium(n_spots=120, n_genes=40, seed=0, image=True)
    pp.image_patches(adata, size=32, key_added="patches", silent=True)
    return adata


@pytest.fixture(scope="module")
def tiles(pictured) -> np.ndarray:
    return pp.image_patches(pictured, size=32, tissue=True, silent=True)


@pytest.fixture(scope="module")
def central(tiles) -> CentralModel:
    """Tests must not train it on."""
    return C2LST.pretrain(tiles, 30, seed=0, **SIZES)


@pytest.fixture(scope="module")
def model(pictured, central) -> C2LST:
    adata = pictured.copy()
    scvi.settings.seed = 0
    C2LST.setup_anndata(adata, "patches", sample_key="sample")
    model = C2LST(adata, central=central, n_scores=8, n_hidden=16)
    model.train(max_epochs=3, **QUICK)
    scvi.settings.seed = None
    return model


# ---- the central model


def test_pretraining_learns_and_is_repeatable(tiles, central):
    assert central.size == 16 and central.record["n_patches"] == len(tiles)
    again = C2LST.pretrain(tiles, 30, seed=0, **SIZES)
    assert again.fingerprint == central.fingerprint
    assert C2LST.pretrain(tiles, 30, seed=1, **SIZES).fingerprint != central.fingerprint
    losses = C2LST.pretrain(tiles, 200, seed=0, **SIZES).record["loss"]
    assert losses[1] < 0.9 * losses[0]


def test_an_interrupted_pretraining_goes_on_as_if_nothing_had_happened(tiles, tmp_path, monkeypatch):
    whole = C2LST.pretrain(tiles, 150, seed=0, **SIZES)
    checkpoint, calls = tmp_path / "central.ckpt", []

    def interrupted(norm, *arguments):
        calls.append(1)
        if len(calls) == 130:
            raise KeyboardInterrupt
        return clip(norm, *arguments)

    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        C2LST.pretrain(tiles, 150, seed=0, checkpoint=checkpoint, **SIZES)
    resumed = C2LST.pretrain(tiles, 150, seed=0, checkpoint=checkpoint, **SIZES)
    assert len(calls) == 130 + 50 and [path.name for path in tmp_path.iterdir()] == ["central.ckpt"]
    assert resumed.fingerprint == whole.fingerprint and resumed.record["loss"] == whole.record["loss"]
    with pytest.raises(ValueError, match="central.ckpt.*other patches or with other settings"):
        C2LST.pretrain(tiles[1:], 150, seed=0, checkpoint=checkpoint, **SIZES)


def test_the_central_model_is_a_pipeline_of_diffusers(central, tmp_path):
    from diffusers import DDPMPipeline

    expected = central.generate(5, n_steps=3, seed=1, batch_size=2)
    assert expected.shape == (5, 16, 16, 3) and expected.dtype == np.uint8 and expected.std() > 0
    central.save(tmp_path / "central")
    loaded = CentralModel.load(tmp_path / "central")
    assert loaded.fingerprint == central.fingerprint and loaded.record == central.record
    # the first patches of a seed do not depend on how many there are
    assert np.abs(loaded.generate(3, n_steps=3, seed=1).astype(int) - expected[:3]).max() <= 1
    assert DDPMPipeline.from_pretrained(tmp_path / "central").unet.config["in_channels"] == 12
    with pytest.raises(FileExistsError, match="exists"):
        central.save(tmp_path / "central")
    assert [path.name for path in tmp_path.iterdir()] == ["central"]


def test_pretraining_goes_on_at_another_centre(tiles, central):
    before = central.fingerprint
    other = C2LST.pretrain(tiles[::2], 10, central=central, seed=0, **SIZES)
    assert central.fingerprint == before != other.fingerprint
    # ten steps from trained weights are not ten from new ones
    assert other.record["loss"][0] < C2LST.pretrain(tiles[::2], 10, seed=0, **SIZES).record["loss"][0]


def test_patches_come_from_arrays_stores_and_pictures(tiles, pictured, tmp_path):
    from PIL import Image

    store = pp.image_patches(pictured, size=32, tissue=True, store=tmp_path / "tiles.zarr", silent=True)
    (tmp_path / "pictures").mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(tmp_path / "pictures" / f"{number:04}.png")
    expected = C2LST.pretrain([tiles, tiles], 2, seed=0, **SIZES).fingerprint
    for source in ([tiles, store], [tmp_path / "pictures", tiles]):
        assert C2LST.pretrain(source, 2, seed=0, **SIZES).fingerprint == expected


@pytest.mark.parametrize(
    ("patches", "error", "match"),
    [
        (np.zeros((3, 8, 8), np.uint8), ValueError, "square patches in colour"),
        (np.zeros((3, 8, 8, 3)), ValueError, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, "holds no patch"),
        ([], ValueError, "empty list"),
        ("/nowhere", FileNotFoundError, "/nowhere"),
    ],
)
def test_what_are_no_patches_is_refused(patches, error, match):
    with pytest.raises(error, match=match):
        C2LST.pretrain(patches, 2, **SIZES)


def test_a_central_model_that_is_not_there_is_one_sentence(pictured, tmp_path):
    with pytest.raises(ValueError, match="no central model could be loaded from.*nothing"):
        CentralModel.load(tmp_path / "nothing")
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    with pytest.raises(ValueError, match="needs a central model"):
        C2LST(adata)


# ---- the adapter


def test_an_untrained_adapter_changes_nothing(pictured, central):
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    module = C2LST(adata, central=central).module
    x, timestep = torch.randn(4, *central.noise_shape), torch.tensor([0, 300, 600, 999])
    with torch.no_grad():
        expected = central.unet(x, timestep).sample
        assert torch.equal(module.predict(x, timestep, torch.randn(4, module.scores.n_condition)), expected)
        # and leaves nothing behind
        assert torch.equal(central.unet(x, timestep).sample, expected)


def test_training_moves_the_adapter_alone(model, central, tiles):
    assert {name for name, value in model.module.named_parameters() if value.requires_grad} == {
        f"modulation.{name}" for name, _ in model.module.modulation.named_parameters()
    }
    assert any(head.weight.abs().max() > 0 for head in model.module.modulation.heads)
    assert central.fingerprint == C2LST.pretrain(tiles, 30, seed=0, **SIZES).fingerprint
    assert {"adapter/train_loss", "adapter/validation_loss"} <= set(model.history_)


def test_generated_patches_follow_seed_and_expression_alone(model, pictured):
    patches = model.generate(pictured[:6], n_steps=3, seed=0)
    assert patches.shape == (6, 16, 16, 3) and patches.dtype == np.uint8
    # of other batches, but for rounding
    for others in (
        model.generate(pictured[:6], n_steps=3, seed=0, batch_size=2),
        model.generate(n_steps=3, seed=0)[:6],
    ):
        assert np.abs(others.astype(int) - patches).max() <= 1
    without = pictured[:6].copy()
    del without.obsm, without.uns
    np.testing.assert_array_equal(model.generate(without, n_steps=3, seed=0), patches)
    assert (model.generate(pictured[:6], n_steps=3, seed=1) != patches).any()
    others = model.generate(pictured[6:12], n_steps=3, seed=0)
    assert (others != patches).any()
    # without guidance towards expression it plays no part
    np.testing.assert_array_equal(
        *(model.generate(pictured[rows], n_steps=3, seed=0, guidance_scale=0) for rows in (range(6), range(6, 12)))
    )
    several = model.generate(pictured[:2], n_per_spot=3, n_steps=3, seed=0)
    assert several.shape[0] == 6
    np.testing.assert_array_equal(several, model.generate(pictured[[0, 0, 0, 1, 1, 1]], n_steps=3, seed=0))


def test_genes_that_are_missing_are_unknown_and_not_zero(model, pictured):
    genes = pictured.var_names[:25]
    values = model._values[:8]
    frame = pd.DataFrame(values, columns=pictured.var_names)
    patches = model.generate(frame[genes], n_steps=3, seed=0)
    others = frame.columns.difference(genes)
    np.testing.assert_array_equal(
        model.generate(frame.assign(**dict.fromkeys(others, np.nan)), n_steps=3, seed=0), patches
    )
    shuffled = frame[genes[::-1]].assign(other=1.0)
    np.testing.assert_array_equal(model.generate(shuffled, n_steps=3, seed=0), patches)
    zeros = frame.assign(**dict.fromkeys(others, 0.0))
    assert (model.generate(zeros, n_steps=3, seed=0) != patches).any()
    # nothing known is what no guidance takes
    unknown = pd.DataFrame(np.nan, index=range(8), columns=pictured.var_names)
    np.testing.assert_array_equal(
        model.generate(unknown, n_steps=3, seed=0), model.generate(values, n_steps=3, seed=0, guidance_scale=0)
    )
    assert model.generate(pictured[:4, :25], n_steps=3, seed=0).shape == (4, 16, 16, 3)


def test_expected_rates_of_counts(pictured, central):
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    scores = C2LST(adata, central=central, n_scores=8).module.scores
    mean, prior, typical = scores.gene_rate, scores.prior, scores.typical_library
    assert float(mean.sum()) == pytest.approx(1, rel=1e-5) and (prior > 0).all()
    assert abs(float((np.asarray(adata.X.sum(1)) < float(typical)).mean()) - 0.5) < 0.05
    library = torch.tensor([10.0, 1e3, 1e6])
    # counts like the mean profile say the same at any depth
    expected = torch.log1p(mean * 1e4).expand(3, -1)
    torch.testing.assert_close(scores.expected(library[:, None] * mean, library), expected, rtol=1e-4, atol=1e-4)
    # others lie between the mean profile and their own; at the typical depth as the prior has it
    own = torch.roll(mean, 1)
    found = scores.expected(typical * own[None], typical[None]).expm1() / 1e4
    weight = typical / (typical + prior)
    torch.testing.assert_close(found[0], weight * own + (1 - weight) * mean, rtol=1e-3, atol=1e-7)


def test_conditions_of_a_shallow_slide_are_those_of_a_deep_one():
    """Molecules are lost at random: neither mean nor spread of the leading scores changes much, and none is less alike than it must."""
    adata = datasets.simulated_visium(n_spots=400, n_genes=60, seed=0)
    rng = np.random.default_rng(0)
    deep = rng.poisson(adata.layers["rate"] * 2000.0)
    shallow = rng.binomial(deep, 0.3)
    scores = ExpressionScores(60, 16)
    tensors = [torch.from_numpy(counts.astype(np.float32)) for counts in (deep, shallow)]
    scores.fit_rates(tensors[0], tensors[0].sum(1))
    scores.fit(scores.expected(tensors[0], tensors[0].sum(1)))
    whole, thinned = (scores(scores.expected(counts, counts.sum(1)))[:, :4].numpy() for counts in tensors)
    spread = whole.std(0)
    assert (np.abs(thinned.mean(0) - whole.mean(0)) < 0.15 * spread).all()
    assert (np.abs(thinned.std(0) / spread - 1) < 0.2).all()
    assert all(np.corrcoef(one, other)[0, 1] > 0.7 for one, other in zip(whole.T, thinned.T, strict=True))


@pytest.mark.parametrize(
    ("expression", "error", "match"),
    [
        (np.zeros((2, 3)), ValueError, "40 registered genes"),
        (np.full((2, 40), -1.0), ValueError, "80 values of expression are negative"),
        (pd.DataFrame({"nothing": [1.0]}), KeyError, "none of the registered genes"),
        ([1, 2], TypeError, "must be an AnnData"),
    ],
)
def test_expression_of_other_kinds_is_refused(model, expression, error, match):
    with pytest.raises(error, match=match):
        model.generate(expression)


def test_expected_rates_may_be_given(pictured, central):
    adata = pictured.copy()
    adata.layers["completed"] = np.log1p(np.asarray(adata.layers["rate"]) * 1e4)
    C2LST.setup_anndata(adata, "patches", expression_layer="completed")
    model = C2LST(adata, central=central, n_scores=8)
    np.testing.assert_allclose(model._values, adata.layers["completed"], rtol=1e-6)
    adata.layers["completed"][0, 0] = np.nan
    with pytest.raises(ValueError, match="1 values of adata.layers.*NaN"):
        C2LST(adata, central=central)
    with pytest.raises(KeyError, match="nothing.*completed"):
        C2LST.setup_anndata(adata, "patches", expression_layer="nothing")


def test_patches_are_checked(pictured):
    adata = pictured.copy()
    with pytest.raises(KeyError, match="pp.image_patches"):
        C2LST.setup_anndata(adata, "nothing")
    adata.obsm["flat"] = np.zeros((adata.n_obs, 5), np.uint8)
    with pytest.raises(ValueError, match="square patches"):
        C2LST.setup_anndata(adata, "flat")


def test_pairs_are_flagged(model, pictured, tmp_path):
    pairs = model.synthetic_pairs(130, seed=3, n_steps=2)
    assert pairs.shape == (130, 40) and pairs.obs["synthetic"].all() and pairs.obsm["patches"].dtype == np.uint8
    assert set(pairs.obs["source"]) == set(pictured.obs_names) and not pairs.obs_names.isin(pictured.obs_names).any()
    rows = pictured.obs_names.get_indexer(pairs.obs["source"])
    np.testing.assert_array_equal(pairs.X.toarray(), pictured.X.toarray()[rows])
    np.testing.assert_array_equal(pairs.layers["expression"], model._values[rows])
    assert (pairs.obs["sample"] == "slide_1").all()
    record = pairs.uns["synthetic"]
    assert record["seed"] == 3 and record["central"] == model.central.fingerprint
    pairs.write_h5ad(tmp_path / "pairs.h5ad")
    again = ad.read_h5ad(tmp_path / "pairs.h5ad")
    np.testing.assert_array_equal(again.obsm["patches"], pairs.obsm["patches"])
    np.testing.assert_array_equal(model.synthetic_pairs(130, seed=3, n_steps=2).obsm["patches"], pairs.obsm["patches"])


def test_the_adapter_is_saved_without_the_central_model(model, pictured, central, tmp_path, monkeypatch):
    monkeypatch.setattr(central, "path", None)
    expected = model.generate(pictured[:3], n_steps=3, seed=0)
    model.save(tmp_path / "unplaced")
    saved = torch.load(tmp_path / "unplaced" / "model.pt", weights_only=False)
    assert not any("unet" in name for name in saved["model_state_dict"])
    with pytest.raises(ValueError, match="was not saved"):
        C2LST.load(tmp_path / "unplaced", pictured.copy())
    loaded = C2LST.load(tmp_path / "unplaced", pictured.copy(), central=central)
    np.testing.assert_array_equal(loaded.generate(pictured[:3], n_steps=3, seed=0), expected)

    central.save(tmp_path / "central")
    model.save(tmp_path / "placed")
    for adata in (pictured.copy(), False):
        loaded = C2LST.load(tmp_path / "placed", adata)
        np.testing.assert_array_equal(loaded.generate(pictured[:3], n_steps=3, seed=0), expected)
    loaded = C2LST.load(tmp_path / "placed", pictured.copy())
    loaded.train(max_epochs=1, **QUICK)
    assert len(loaded.training_) == 2
    (tmp_path / "central").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="no central model could be loaded"):
        C2LST.load(tmp_path / "placed", pictured.copy())
    C2LST.load(tmp_path / "placed", pictured.copy(), central=tmp_path / "moved")


def test_another_central_model_is_refused(model, pictured, tiles, tmp_path):
    model.save(tmp_path / "model")
    other = C2LST.pretrain(tiles, 2, seed=0, **SIZES)
    with pytest.raises(ValueError, match="not the one that the adapter was trained on"):
        C2LST.load(tmp_path / "model", pictured.copy(), central=other)


def test_what_cannot_be_asked(pictured, central, model):
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    untrained = C2LST(adata, central=central)
    with pytest.raises(ValueError, match="not trained"):
        untrained.generate()
    with pytest.raises(ValueError, match="n_steps"):
        model.generate(pictured[:1], n_steps=0)
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate(pictured[:1], guidance_scale=-1)
    with pytest.raises(TypeError, match="plan_kwargs"):
        model.train(plan_kwargs={"rate": 1})
    assert keys.PATCH in model.adata_manager.data_registry


def test_synthetic_pairs_are_refused_unless_they_are_wanted(model, pictured):
    pairs = model.synthetic_pairs(20, n_steps=2)
    pairs.obsm["spatial"] = np.random.default_rng(0).random((20, 2)) * 100
    pairs.obsm["X_image"] = np.zeros((20, 4), np.float32)
    for cls, keywords in ((LGDiST, {}), (Stem, {}), (C2LST, {"patch_key": "patches"})):
        with pytest.raises(ValueError, match="20 of 20 spots are synthetic"):
            cls.setup_anndata(pairs.copy(), **keywords)
        cls.setup_anndata(pairs.copy(), **keywords, allow_synthetic=True)


def test_a_pipeline_made_elsewhere_is_a_central_model(pictured, tiles, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(16,), layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **blocks
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "published")
    C2LST.setup_anndata(adata := pictured.copy(), "patches")
    model = C2LST(adata, central=tmp_path / "published", n_scores=4)
    assert model.central.size == 16 and model.central.scheduler.config["prediction_type"] == "epsilon"
    model.train(max_epochs=1, **QUICK)
    assert model.generate(pictured[:2], n_steps=2).shape == (2, 16, 16, 3)
    assert C2LST.pretrain(tiles, 2, central=tmp_path / "published", seed=0, **SIZES).size == 16
    grey = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(16,), norm_num_groups=4, **blocks
    )
    DDPMPipeline(unet=grey, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match="coloured patches"):
        CentralModel.load(tmp_path / "grey")
