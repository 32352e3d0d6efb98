"""Saving, loading, repeating, and asking a model about other data."""

from __future__ import annotations

import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, pp


def answers(model, adata=None):
    lower, upper = model.get_prediction_interval(0.8, adata, seed=1, return_numpy=True)
    return {
        "completed": model.get_completed_expression(adata, return_numpy=True),
        "samples": model.get_completed_expression(adata, n_samples=3, return_mean=False, seed=1),
        "latent": model.get_latent_representation(adata),
        "lower": lower,
        "upper": upper,
    }


def assert_equal(first, second):
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.fixture(params=["trained", "captured"])
def model(request) -> LGDiST:
    return request.getfixturevalue(request.param)


@pytest.fixture
def saved(model, tmp_path) -> str:
    model.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_loaded_with_the_data(model, saved):
    loaded = LGDiST.load(saved, adata=model.adata.copy(), accelerator="cpu")
    assert loaded.is_trained_
    assert_equal(answers(model), answers(loaded))
    assert repr(loaded) == repr(model)
    for key, frame in model.history_.items():
        pd.testing.assert_frame_equal(frame, loaded.history_[key])


def test_loaded_without_data(model, saved, tmp_path):
    """Then asked about new data, which nobody registered."""
    loaded = LGDiST.load(saved, adata=False, accelerator="cpu")
    assert repr(loaded) == repr(model)
    with pytest.raises(ValueError, match="skill is measured on the data that the model was trained on"):
        loaded.skill_table(neighbors_only=True)
    adata = model.adata.copy()
    del adata.uns["_scvi_uuid"]
    assert_equal(answers(model), answers(loaded, adata))
    loaded.complete(adata, n_samples=2, silent=True)
    adata.write_h5ad(tmp_path / "completed.h5ad")
    # and saved again
    loaded.save(tmp_path / "again")
    again = LGDiST.load(tmp_path / "again", adata=model.adata.copy(), accelerator="cpu")
    assert_equal(answers(model), answers(again))


def test_saved_with_the_data(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    assert_equal(answers(trained), answers(LGDiST.load(tmp_path / "model", accelerator="cpu")))


def test_untrained_model_can_be_saved(tissue, tmp_path):
    adata = tissue.copy()
    LGDiST.setup_anndata(adata)
    LGDiST(adata, n_hidden=16, n_layers=1).save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=adata, accelerator="cpu")
    assert "not trained" in repr(loaded)
    with pytest.raises(ValueError, match="not trained yet"):
        loaded.get_completed_expression()


@pytest.mark.parametrize("is_trained", [True, False])
def test_every_property_can_be_evaluated(trained, tissue, is_trained):
    model = trained
    if not is_trained:
        adata = tissue.copy()
        LGDiST.setup_anndata(adata)
        model = LGDiST(adata, n_hidden=16, n_layers=1)
    names = [name for name in dir(type(model)) if isinstance(getattr(type(model), name), property)]
    values = {name: getattr(model, name) for name in names}
    assert values["is_trained"] is is_trained
    assert bool(values["history"]) is is_trained
    assert values["adata"].n_vars == len(model.get_var_names_registered())


def test_view_of_the_setup(trained, capsys):
    trained.view_anndata_setup()
    printed = capsys.readouterr().out
    for word in ("known", "spatial_connectivities", "spatial"):
        assert word in printed


def test_repr_says_what_the_model_is(trained, tissue):
    text = repr(trained)
    assert f"{tissue.n_obs} spots x {tissue.n_vars} genes" in text
    assert "nb" in text
    assert "diffusion trained" in text


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_same_seed_same_model(fit, tissue, likelihood):
    models = []
    for _ in range(2):
        adata = tissue.copy()
        if likelihood == "normal":
            adata.layers["known"] &= adata.X.toarray() > 0
        models.append(fit(adata, 2, {"mask_layer": "known"}))
        torch.manual_seed(99)
        np.random.seed(99)
    first, second = (model.module.state_dict() for model in models)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert_equal(*(answers(model) for model in models))
    for key, frame in models[0].history_.items():
        if not key.endswith("/seconds"):
            pd.testing.assert_frame_equal(frame, models[1].history_[key])


# ---- other data


def new_slide(genes, n_spots: int = 90, seed: int = 4, **kwargs) -> ad.AnnData:
    adata = datasets.simulated_visium(n_spots=n_spots, n_genes=40, seed=seed, **kwargs)[:, list(genes)].copy()
    adata.layers["known"] = np.ones(adata.shape, dtype=bool)
    return adata


FORMATS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": lambda x: x.toarray(),
    "dense, Fortran order": lambda x: np.asfortranarray(x.toarray()),
    "integers": lambda x: x.astype(np.int64),
    "dense integers": lambda x: x.toarray().astype(np.uint16),
    "float64": lambda x: x.astype(np.float64),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_new_slide_in_any_format(trained, name):
    reference = new_slide(trained.adata.var_names)
    adata = reference.copy()
    adata.X = FORMATS[name](reference.X)
    assert_equal(answers(trained, reference), answers(trained, adata))


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.toarray()])
def test_a_backed_slide(trained, tmp_path, to_format):
    reference = new_slide(trained.adata.var_names)
    adata = reference.copy()
    adata.X = to_format(adata.X)
    adata.write_h5ad(tmp_path / "slide.h5ad")
    backed = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    assert_equal(answers(trained, reference), answers(trained, backed))
    backed.file.close()


@pytest.mark.parametrize("name", FORMATS)
def test_training_does_not_depend_on_the_format(fit, tissue, name):
    """One epoch on each format gives the same weights."""
    if name == "csr_matrix":
        pytest.skip("is the reference")
    weights = []
    for to_format in (sparse.csr_matrix, FORMATS[name]):
        adata = tissue.copy()
        adata.X = to_format(adata.X)
        weights.append(fit(adata, 1, {"mask_layer": "known"}).module.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5, msg=key)


def test_genes_in_another_order_and_more_of_them(trained):
    reference = new_slide(trained.adata.var_names)
    expected = answers(trained, reference)
    order = np.random.default_rng(0).permutation(reference.n_vars)
    assert_equal(expected, answers(trained, reference[:, order].copy()))
    extra = ad.AnnData(sparse.csr_matrix(np.ones((90, 3), dtype=np.float32)), obs=reference.obs[[]])
    extra.layers["known"] = np.ones((90, 3), dtype=bool)
    superset = ad.concat([extra, reference[:, order]], axis=1, merge="first")
    superset.obsm["spatial"] = reference.obsm["spatial"]
    assert_equal(expected, answers(trained, superset))
    frame = trained.get_completed_expression(superset)
    assert list(frame.columns) == list(trained.adata.var_names)


def test_loading_with_genes_in_another_order_warns_of_nothing(saved, model):
    other = model.adata[:, ::-1].copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*var_names")
        loaded = LGDiST.load(saved, adata=other)
    assert_equal(answers(model), answers(loaded))


def test_trained_models_can_be_pickled(trained):
    again = pickle.loads(pickle.dumps(trained))
    assert_equal(answers(trained), answers(again))


def test_genes_that_are_missing(trained):
    adata = new_slide(trained.adata.var_names[:-2])
    missing = trained.adata.var_names[-1]
    with pytest.raises(
        ValueError, match=f"2 of the {trained.adata.n_vars} genes.*not in the new data.*{missing}.*add them"
    ):
        trained.get_completed_expression(adata)


def test_order_of_spots(trained):
    adata = new_slide(trained.adata.var_names)
    pp.spatial_neighbors(adata)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    first = trained.get_completed_expression(adata)
    second = trained.get_completed_expression(adata[order].copy())
    np.testing.assert_allclose(second.to_numpy(), first.iloc[order].to_numpy(), rtol=1e-5, atol=1e-5)


def test_a_new_slide_is_told_apart_from_the_registered_one(trained):
    adata = new_slide(trained.adata.var_names)
    assert not np.array_equal(
        trained.get_completed_expression(adata, return_numpy=True)[:50],
        trained.get_completed_expression(return_numpy=True)[:50],
    )
    # the registered one is still the default
    assert trained.get_completed_expression().shape == trained.adata.shape


def test_changed_counts_are_read_again(trained):
    adata = new_slide(trained.adata.var_names)
    first = trained.get_completed_expression(adata, return_numpy=True)
    adata.X = adata.X * 2
    second = trained.get_completed_expression(adata, return_numpy=True)
    assert not np.allclose(first, second)


def test_several_slides_for_a_model_of_one(trained):
    """Their coordinates overlap; each is completed as if it were alone."""
    slides = [new_slide(trained.adata.var_names, seed=seed) for seed in (4, 6)]
    both = ad.concat(slides, keys=["a", "b"], label="sample", index_unique="-")
    with pytest.warns(UserWarning, match="names 2 slides"):
        together = trained.get_completed_expression(both, return_numpy=True)
    alone = np.concatenate([trained.get_completed_expression(slide, return_numpy=True) for slide in slides])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_new_data_are_checked(trained):
    adata = new_slide(trained.adata.var_names)
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match="not whole numbers"):
        trained.get_completed_expression(adata)
    adata = new_slide(trained.adata.var_names)
    del adata.obsm["spatial"]
    with pytest.raises(KeyError, match="'spatial' not found in adata.obsm"):
        trained.get_completed_expression(adata)
    adata = new_slide(trained.adata.var_names)
    del adata.layers["known"]
    with pytest.raises(KeyError, match="'known' not found in adata.layers.*pp.observed_mask"):
        trained.get_completed_expression(adata)
    adata = new_slide(trained.adata.var_names)
    adata.layers["known"][:] = False
    with pytest.raises(ValueError, match="nothing predicts them"):
        trained.get_completed_expression(adata)


def test_a_gene_hidden_throughout_a_new_slide_is_predicted(trained):
    adata = new_slide(trained.adata.var_names)
    adata.layers["known"][:, 3] = False
    assert np.isfinite(trained.get_completed_expression(adata).iloc[:, 3]).all()
