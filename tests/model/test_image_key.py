"""LGDiST with the image: a condition that helps where it tells something, and is left out where it does not."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pytest
import scvi
from anndata import AnnData

from lgdist_scvi import LGDiST, datasets, pp

SIZES = {
    "n_latent": 8, "n_hidden": 32, "n_layers": 1, "n_heads": 2, "n_profiles": 5, "n_mixtures": 1, "n_factors": 4,
    "n_denoiser_hidden": 32, "n_denoiser_layers": 1, "n_denoiser_heads": 2, "n_timesteps": 50, "n_image_components": 8,
}  # fmt: skip


def tissue(seed: int = 0, n_side: int = 15) -> AnnData:
    """Spots whose expression follows their image, and nothing of their neighbours'."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(np.arange(n_side), np.arange(n_side)), axis=-1).reshape(-1, 2)
    axes = np.random.default_rng(99)
    loadings, view = axes.normal(size=(2, 40)), axes.normal(size=(2, 12))
    kind = rng.normal(size=(len(place), 2))
    rate = np.exp(0.8 * kind @ loadings)
    rate /= rate.sum(axis=1, keepdims=True)
    adata = AnnData(rng.poisson(400 * rate).astype(np.float32))
    adata.obsm["spatial"] = place.astype(float)
    adata.obsm["X_image"] = (kind @ view + 0.2 * rng.normal(size=(len(place), 12))).astype(np.float32)
    adata.layers["rate"] = rate
    adata.layers["known"] = np.repeat(rng.random((len(place), 1)) > 0.25, 40, axis=1)
    adata.obs["total"] = adata.X.sum(axis=1)
    return adata


def fit(
    adata: AnnData,
    image_key: str | None = "X_image",
    stage: str = "all",
    max_epochs: int = 60,
    n_rounds: int = 1,
    conditioning: str = "spot+neighborhood",
    **setup,
) -> LGDiST:
    scvi.settings.seed = 0
    LGDiST.setup_anndata(adata, image_key=image_key, **setup)
    model = LGDiST(adata, conditioning=conditioning, **SIZES)
    model.train(max_epochs=max_epochs, stage=stage, n_rounds=n_rounds, accelerator="cpu", enable_progress_bar=False)
    return model


def answer(model: LGDiST, adata: AnnData | None = None) -> np.ndarray:
    return model.get_completed_expression(adata, observed="model", return_numpy=True)


HIDDEN = {"mask_layer": "known", "size_factor_key": "total"}


@pytest.fixture(scope="module")
def models() -> dict[str, LGDiST]:
    """Models of the same spots: with the image, without one, and with the images of other spots."""
    shuffled = tissue()
    shuffled.obsm["X_image"] = np.random.default_rng(1).permutation(shuffled.obsm["X_image"])
    return {
        "with": fit(tissue(), **HIDDEN),
        "without": fit(tissue(), None, **HIDDEN),
        "shuffled": fit(shuffled, **HIDDEN),
    }


def error(model: LGDiST) -> float:
    """Squared error of the log rates of hidden spots, beside that of the genes' means."""
    adata = model.adata
    hidden = ~np.asarray(adata.layers["known"][:, 0])
    truth = np.log(np.asarray(adata.layers["rate"]))
    predicted = np.log(model.get_normalized_expression(return_numpy=True))
    return ((predicted - truth)[hidden] ** 2).mean() / (truth - truth.mean(axis=0)).var()


def test_an_image_that_tells_something_predicts_hidden_spots(models):
    weights = models["with"].history_["experts/image"].iloc[0]
    assert weights["hidden"] >= 0.5
    assert error(models["with"]) < 0.6 * error(models["without"])
    assert "image in use" in repr(models["with"]) and "image" not in repr(models["without"])


def test_the_images_of_other_spots_change_nothing(models):
    """Not in use, the model is the one that sees no image, bit by bit."""
    assert (models["shuffled"].history_["experts/image"].iloc[0] == 0).all()
    np.testing.assert_array_equal(answer(models["shuffled"]), answer(models["without"]))
    lower, upper = (
        models[name].get_prediction_interval(observed="model", return_numpy=True) for name in ("shuffled", "without")
    )
    np.testing.assert_array_equal(lower, upper)
    assert "image not in use" in repr(models["shuffled"])


def test_a_spot_without_an_image_is_predicted_as_without_images(models):
    """In training as in a question."""
    adata = tissue()
    adata.obsm["X_image"][::3] = np.nan
    model = fit(adata, stage="vae", **HIDDEN)
    assert model.module.sees_image
    blind = adata.copy()
    del blind.obsm["X_image"]
    seen, unseen = answer(model, adata.copy()), answer(model, blind)
    assert np.isfinite(seen).all()
    np.testing.assert_array_equal(seen[::3], unseen[::3])
    hidden = ~adata.layers["known"][:, 0] & np.isfinite(adata.obsm["X_image"]).all(axis=1)
    assert (np.abs(seen - unseen)[hidden].max(axis=1) > 1e-3).all()
    # the diffusion may see the images around it
    model = models["with"]
    part = model.adata.copy()
    part.obsm["X_image"][10] = np.nan
    assert np.isfinite(answer(model, part)).all()


def test_of_neighbors_alone_and_in_two_rounds():
    model = fit(tissue(), conditioning="neighborhood", stage="vae", **HIDDEN)
    image = model.module.image
    assert image.in_use and not image.weight_visible
    blind = model.adata.copy()
    del blind.obsm["X_image"]
    # nothing of any spot is looked at but the neighbours and the image
    assert (np.abs(answer(model) - answer(model, blind)).max(axis=1) > 1e-3).all()
    adata = tissue()
    adata.layers["known"] &= np.asarray(adata.X) > 0
    model = fit(adata, n_rounds=2, max_epochs=30, **HIDDEN)
    assert model.gene_likelihood_ == "normal" and model.module.first_round.image is not None
    blind = adata.copy()
    del blind.obsm["X_image"]
    assert np.isfinite(answer(model)).all() and np.isfinite(answer(model, blind)).all()


def test_other_data_may_lack_the_image(models):
    model, other = models["with"], tissue(seed=3, n_side=6)
    with_image = answer(model, other.copy())
    nowhere = other.copy()
    nowhere.obsm["X_image"] = np.full_like(nowhere.obsm["X_image"], np.nan)
    absent = other.copy()
    del absent.obsm["X_image"]
    np.testing.assert_array_equal(answer(model, absent), answer(model, nowhere))
    assert not np.allclose(with_image, answer(model, absent), atol=1e-3)
    model.complete(absent, silent=True)
    assert np.isfinite(absent.layers["completed"]).all()


def test_features_that_do_not_fit_are_refused(models):
    other = tissue(seed=3, n_side=6)
    other.obsm["X_image"] = other.obsm["X_image"][:, :5]
    with pytest.raises(ValueError, match=r"obsm\['X_image'\] has 5 features, and the model was trained on 12"):
        answer(models["with"], other)
    adata = tissue(n_side=5)
    with pytest.raises(KeyError, match="X_picture"):
        LGDiST.setup_anndata(adata, image_key="X_picture")
    adata.obsm["X_image"][3, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        LGDiST.setup_anndata(adata, image_key="X_image")
    adata.obsm["X_image"][:] = np.nan
    with pytest.raises(ValueError, match="every row is NaN"):
        LGDiST.setup_anndata(adata, image_key="X_image")


def test_save_and_load(models, tmp_path):
    model = models["with"]
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=tissue(), accelerator="cpu")
    np.testing.assert_array_equal(answer(loaded), answer(model))
    assert repr(loaded) == repr(model)
    blind = tissue()
    del blind.obsm["X_image"]
    loaded = LGDiST.load(tmp_path / "model", adata=blind, accelerator="cpu")
    np.testing.assert_array_equal(answer(loaded), answer(model, blind.copy()))


def test_what_an_interruption_left_is_fitted_later(models, tmp_path):
    model = models["with"]
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=tissue(), accelerator="cpu")
    loaded.module.experts.in_use.fill_(False)
    loaded.module.image.reset()
    loaded.calibration_ = None
    loaded.get_prediction_interval()
    assert loaded.module.image.in_use and loaded.module.experts.in_use
    assert loaded.module.image.weight_hidden >= 0.5


def test_the_image_is_part_of_the_data(models):
    model = models["with"]
    changed = tissue()
    changed.obsm["X_image"] = changed.obsm["X_image"] + 1.0
    assert model.training_data_ == model.adata_manager.create_torch_dataset().fingerprint
    asked = changed.copy()
    answer(model, asked)
    assert model.training_data_ != model.get_anndata_manager(asked).create_torch_dataset().fingerprint
    LGDiST.setup_anndata(changed, image_key="X_image", **HIDDEN)
    changed.obsm["X_image"] = changed.obsm["X_image"] + 1.0
    with pytest.raises(ValueError, match="image features"):
        LGDiST(changed, **SIZES)


def test_a_completion_is_repeated_from_its_record(tmp_path):
    model = fit(tissue(n_side=9), max_epochs=3, **HIDDEN)
    model.complete(silent=True)
    adata = model.adata
    assert adata.uns["completed"]["setup"]["image_key"] == "X_image"
    adata.write_h5ad(tmp_path / "completed.h5ad")
    again = ad.read_h5ad(tmp_path / "completed.h5ad")
    LGDiST.repeat_completion(again, silent=True)
    np.testing.assert_array_equal(again.layers["repeated"], again.layers["completed"])


def test_slides_of_a_simulated_tissue_with_their_image(tmp_path):
    adata = datasets.simulated_visium(n_spots=120, n_genes=30, n_samples=2, seed=0, image=True)
    pp.image_features(adata, encoder="stain", sample_key="sample", silent=True)
    model = fit(adata, max_epochs=2, sample_key="sample")
    model.complete(silent=True)
    assert np.isfinite(adata.layers["completed"]).all()
    assert model.module.image.components.axes.shape == (adata.obsm["X_image"].shape[1], 8)
    # on disk
    adata.write_h5ad(tmp_path / "slides.h5ad")
    backed = ad.read_h5ad(tmp_path / "slides.h5ad", backed="r")
    np.testing.assert_array_equal(answer(model, backed), answer(model, adata.copy()))
    backed.file.close()


def test_of_a_modality(models):
    mdata = mudata.MuData({"rna": tissue(n_side=8)})
    LGDiST.setup_mudata(mdata, image_key="X_image", **HIDDEN)
    model = LGDiST(mdata, **SIZES)
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert model.module.image.components.axes.abs().sum() > 0
    model.complete(silent=True)
    assert np.isfinite(mdata["rna"].layers["completed"]).all()
