"""A modality of a MuData, and a prefill layer, in place of a plain AnnData."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
from anndata import AnnData

from lgdist_scvi import LGDiST, datasets

SIZES = {"n_hidden": 16, "n_heads": 2, "n_latent": 4, "n_denoiser_hidden": 16, "n_denoiser_heads": 2, "n_profiles": 4}
TRAIN = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


def paired(seed: int, n_spots: int = 80) -> mudata.MuData:
    rna = datasets.simulated_visium(n_spots=n_spots, n_genes=20, seed=seed)
    protein = AnnData(np.ones((rna.n_obs, 3), dtype=np.float32), obs=rna.obs[[]].copy())
    return mudata.MuData({"rna": rna, "protein": protein})


@pytest.fixture(scope="module")
def model() -> LGDiST:
    mdata = paired(0)
    LGDiST.setup_mudata(mdata, "rna")
    model = LGDiST(mdata, **SIZES)
    model.train(**TRAIN)
    model.complete(silent=True)
    return model


def test_layers_are_those_of_the_modality_alone(model):
    adata = paired(0)["rna"]
    LGDiST.setup_anndata(adata)
    alone = LGDiST(adata, **SIZES)
    alone.module.load_state_dict(model.module.state_dict())
    alone.is_trained_, alone.calibration_ = True, model.calibration_
    alone.complete(silent=True)
    for suffix in ("", "_std", "_lower", "_upper", "_provenance"):
        written = model.adata["rna"].layers[f"completed{suffix}"]
        np.testing.assert_array_equal(written, adata.layers[f"completed{suffix}"])
    assert "completed" not in model.adata["protein"].layers


def test_saved_loaded_and_asked_about_other_data(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=model.adata, accelerator="cpu")
    np.testing.assert_array_equal(
        loaded.get_completed_expression(return_numpy=True), model.adata["rna"].layers["completed"]
    )
    other = paired(1, 60)
    assert model.get_completed_expression(other).index.equals(other["rna"].obs_names)
    with pytest.raises(TypeError, match="a question needs a MuData with the modality 'rna', got AnnData"):
        model.get_completed_expression(other["rna"])


def test_trained_again_on_a_copy(model):
    data = model.copy_data()
    assert isinstance(data, AnnData)
    again = model.retrain(data, **TRAIN)
    assert again.get_completed_expression(return_numpy=True).shape == data.shape


def test_what_cannot_be_registered_says_so():
    mdata = paired(0)
    with pytest.raises(KeyError, match="'gex' not found in mdata.mod; available: 'rna', 'protein'"):
        LGDiST.setup_mudata(mdata, "gex")
    with pytest.raises(TypeError, match="use setup_mudata"):
        LGDiST.setup_anndata(mdata)
    with pytest.raises(TypeError, match="needs a MuData with the modality 'rna', got AnnData"):
        LGDiST.setup_mudata(mdata["rna"])


def test_a_prefill_reaches_missing_entries_of_neighbours_and_nothing_else():
    adata = paired(0)["rna"]
    rng = np.random.default_rng(0)
    adata.layers["known"] = rng.random(adata.shape) > 0.3
    adata.layers["filled"] = rng.random(adata.shape).astype(np.float32)
    with pytest.raises(ValueError, match="register the mask_layer"):
        LGDiST.setup_anndata(adata, prefill_layer="filled")
    LGDiST.setup_anndata(adata, mask_layer="known", prefill_layer="filled")
    model = LGDiST(adata, **SIZES)
    model.train(**TRAIN)
    before = model.get_completed_expression(observed="model", return_numpy=True)
    changed = adata.copy()
    changed.layers["filled"] = np.where(adata.layers["known"], 9.0, adata.layers["filled"]).astype(np.float32)
    np.testing.assert_array_equal(model.get_completed_expression(changed, observed="model", return_numpy=True), before)
    changed = adata.copy()
    changed.layers["filled"] = adata.layers["filled"] + 2
    assert not np.allclose(model.get_completed_expression(changed, observed="model", return_numpy=True), before)
    changed.layers["filled"] = -changed.layers["filled"]
    with pytest.raises(ValueError, match="must hold finite log1p"):
        LGDiST.setup_anndata(changed, mask_layer="known", prefill_layer="filled")
