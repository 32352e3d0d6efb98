"""Repeating a completion from its record."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scvi
import torch

from lgdist_scvi import LGDiST, datasets, metrics

SUFFIXES = ("", "_std", "_lower", "_upper", "_provenance")


@pytest.fixture
def small() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=120, n_genes=40, seed=0)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("stages", [["all"], ["vae", "diffusion"]])
def test_from_a_file_bit_by_bit(fit, small, tmp_path, seed, stages):
    """Whatever was drawn from the global generators before."""
    scvi.settings.seed = seed
    torch.rand(5)
    small.layers["known"] = np.random.default_rng(0).random(small.shape) < 0.9
    model = fit(small, 2, {"mask_layer": "known"}, {"stage": stages[0], "batch_size": 50})
    for stage in stages[1:]:
        torch.rand(3)
        model.train(max_epochs=1, stage=stage, accelerator="cpu", enable_progress_bar=False)
    model.complete(level=0.8, n_samples=3, fill="masked", genes=list(small.var_names[:30]), silent=True)
    small.write_h5ad(tmp_path / "slide.h5ad")
    read = ad.read_h5ad(tmp_path / "slide.h5ad")
    state = torch.get_rng_state()
    LGDiST.repeat_completion(read, silent=True)
    assert torch.equal(torch.get_rng_state(), state)
    for suffix in SUFFIXES:
        np.testing.assert_array_equal(read.layers[f"repeated{suffix}"], small.layers[f"completed{suffix}"])
    np.testing.assert_array_equal(read.var["repeated_skill"], small.var["completed_skill"])
    assert read.uns["repeated"]["weights"] == read.uns["completed"]["weights"]


def test_of_another_slide(fit, small):
    other = datasets.simulated_visium(n_spots=60, n_genes=40, seed=4)
    fit(small, 1).complete(other, n_samples=2, silent=True)
    with pytest.raises(ValueError, match=r"60 spots\) are not those behind layers\['completed'\].*trained_on"):
        LGDiST.repeat_completion(other, silent=True)
    LGDiST.repeat_completion(other, trained_on=small.copy(), silent=True)
    np.testing.assert_array_equal(other.layers["repeated"], other.layers["completed"])


def test_changed_counts_are_noticed(fit, small):
    fit(small, 1).complete(n_samples=2, silent=True)
    small.X[3, 2] += 1
    with pytest.raises(ValueError, match="counts, mask, library sizes or graph"):
        LGDiST.repeat_completion(small, silent=True)


def test_without_a_record(small):
    with pytest.raises(KeyError, match=r"adata.uns\['completed'\] holds no record"):
        LGDiST.repeat_completion(small)


def test_other_versions_are_told(fit, small):
    fit(small, 1).complete(n_samples=2, level=None, silent=True)
    small.uns["completed"] |= {"weights": "other", "torch_version": "1.0"}
    with pytest.warns(UserWarning, match=r"differs from the recorded one in bits.*torch 1\.0"):
        LGDiST.repeat_completion(small, silent=True)


def test_record_survives_saving_the_model(fit, small, tmp_path):
    model = fit(small, 1)
    model.complete(n_samples=2, level=None, silent=True)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=small.copy(), accelerator="cpu")
    loaded.complete(n_samples=2, level=None, silent=True)
    record = loaded.adata.uns["completed"]
    assert record["recipe"] == small.uns["completed"]["recipe"]
    np.testing.assert_array_equal(record["random_state"], small.uns["completed"]["random_state"])
    assert metrics.skill_per_gene(loaded).equals(metrics.skill_per_gene(model))


def test_interrupted_training_cannot_be_repeated(fit, small):
    model = fit(small, 1)
    model.training_[0]["interrupted"] = True
    model.complete(n_samples=2, level=None, silent=True)
    with pytest.raises(ValueError, match=r"was interrupted by hand.*model.save"):
        LGDiST.repeat_completion(small, silent=True)


def test_arguments_that_cannot_be_written_down_are_named(fit, small):
    from lightning.pytorch.callbacks import Callback

    model = fit(small, 1, train={"callbacks": [Callback()]})
    assert model.training_[0]["left_out"] == ["callbacks"]
    assert model.training_[0]["arguments"]["max_epochs"] == 1
