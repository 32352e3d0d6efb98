"""The data of a model, and a model trained again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST, datasets


@pytest.fixture
def model(fit) -> LGDiST:
    adata = datasets.simulated_visium(n_spots=120, n_genes=40, n_samples=2, seed=0)
    adata.layers["raw"], adata.X = adata.X, None
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.9
    adata.obs["total"] = 2.0 * adata.layers["raw"].sum(axis=1)
    setup = {"layer": "raw", "mask_layer": "known", "size_factor_key": "total", "sample_key": "sample"}
    return fit(adata, 1, setup, {"stage": "vae", "batch_size": 50})


def test_copied_data_are_what_was_registered_and_nothing_else(model):
    copy = model.copy_data()
    assert set(copy.layers) == {"raw", "known"} and set(copy.obs) == {"total", "sample"}
    assert set(copy.obsm) == {"spatial"} and set(copy.obsp) == {"spatial_connectivities"}
    assert copy.X is None and copy.var.empty and not copy.uns
    assert copy.obs["sample"].equals(model.adata.obs["sample"])
    before = model.adata.layers["raw"].copy()
    copy.layers["raw"].data[:] = 0
    copy.layers["known"][:] = False
    copy.obsm["spatial"][:] = 0
    assert (model.adata.layers["raw"] != before).nnz == 0
    assert model.adata.layers["known"].any() and model.adata.obsm["spatial"].any()


def test_retrained_as_before(model):
    other = model.retrain(model.copy_data())
    assert other.training_data_ == model.training_data_
    assert [call["arguments"] for call in other.training_] == [call["arguments"] for call in model.training_]
    assert len(other.history_["vae/train_loss"]) == 1 and not other.module.diffusion.trained
    assert other.init_params_ == model.init_params_


def test_retrained_with_other_arguments(model):
    data = model.copy_data()
    data.X = sparse.csr_matrix(data.layers["raw"])
    del data.layers["raw"]
    other = model.retrain(
        data, setup={"layer": None}, max_epochs=2, stage="vae", accelerator="cpu", enable_progress_bar=False
    )
    assert other.training_data_ == model.training_data_
    assert len(other.history_["vae/train_loss"]) == 2


def test_a_model_without_data_cannot_copy_them(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has no data; load it with them: LGDiST.load\(folder, adata=adata\)"):
        LGDiST.load(tmp_path / "model", adata=False, accelerator="cpu").copy_data()
