"""Skill of a trained model on the entries that training set aside."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lgdist_scvi import LGDiST, metrics


def test_table(trained, aside):
    table = metrics.skill_per_gene(trained)
    assert list(table.index) == list(trained.adata.var_names)
    np.testing.assert_array_equal(table["n"], aside.sum(axis=0))
    np.testing.assert_allclose(table["skill"], 1 - table["mse_model"] / table["mse_baseline"])
    assert set(table["baseline"]) <= {"gene mean", "neighbor mean"}
    assert table["skilled"].dtype == bool
    assert not metrics.skill_per_gene(trained, min_entries=10**6)["skilled"].any()
    loose = metrics.skill_per_gene(trained, min_entries=1)
    np.testing.assert_array_equal(loose["skilled"], loose["skill"] > loose["skill_se"])


def test_baselines_are_no_worse_than_constant_means(trained, aside, visible, cp10k):
    values = cp10k(trained.adata)
    mean = (values * visible).sum(axis=0) / visible.sum(axis=0)
    constant = np.where(aside, (values - mean) ** 2, 0).sum()
    table = trained.skill_table()
    assert (table["n"] * table["mse: gene mean"]).sum() < 1.01 * constant


def test_neighbors_alone_use_nothing_of_the_spot(trained):
    alone = trained.skill_table(neighbors_only=True)
    everything = trained.skill_table()
    assert trained.module.own_entries
    assert not np.allclose(alone["mse_model"], everything["mse_model"])
    np.testing.assert_array_equal(alone["mse_baseline"], everything["mse_baseline"])


def test_captured_values(captured):
    table = metrics.skill_per_gene(captured)
    assert table["n"].sum() > 0
    with pytest.raises(ValueError, match="estimand='rate' needs a model of counts"):
        metrics.skill_per_gene(captured, "rate")


def test_skill_is_saved(trained, tmp_path):
    table = metrics.skill_per_gene(trained)
    trained.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=trained.adata[:100].copy(), accelerator="cpu")
    assert metrics.skill_per_gene(loaded).equals(table)


def test_complete_writes_the_skill_and_warns(trained):
    adata = trained.adata.copy()
    table = metrics.skill_per_gene(trained)
    n_unskilled = int((~table["skilled"]).sum())
    assert n_unskilled
    with pytest.warns(
        UserWarning, match=rf'^{n_unskilled} of {len(table)} completed genes show no clear skill .*genes="skilled"'
    ):
        trained.complete(adata, n_samples=2, silent=True)
    np.testing.assert_array_equal(adata.var["completed_skill"], table["skill"])
    np.testing.assert_array_equal(adata.var["completed_skilled"], table["skilled"])


def _skilled_by_decree(model, names: list[str], monkeypatch) -> None:
    table = model.skill_table()
    table["skill"], table["skill_se"], table["n"] = np.where(table.index.isin(names), 0.5, -0.5), 0.1, 100
    monkeypatch.setattr(model, "skill_table", lambda *args, **kwargs: table.copy())


def test_only_skilled_genes(trained, monkeypatch, cp10k):
    names = list(trained.adata.var_names[[1, 4, 9]])
    _skilled_by_decree(trained, names, monkeypatch)
    adata, whole = trained.adata.copy(), trained.adata.copy()
    trained.complete(whole, seed=3, silent=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained.complete(adata, seed=3, genes="skilled", silent=True)
    known = np.asarray(adata.layers["known"])
    chosen = adata.var_names.isin(names)
    for suffix in ("", "_std", "_lower", "_upper", "_provenance"):
        name = f"completed{suffix}"
        np.testing.assert_array_equal(adata.layers[name][:, chosen], whole.layers[name][:, chosen])
    measured = np.where(known, cp10k(adata), 0)[:, ~chosen]
    for suffix in ("", "_lower", "_upper"):
        np.testing.assert_array_equal(adata.layers[f"completed{suffix}"][:, ~chosen], measured)
    assert (adata.layers["completed_std"][:, ~chosen] == 0).all()
    np.testing.assert_array_equal(adata.layers["completed_provenance"][:, ~chosen], np.where(known, 0, 4)[:, ~chosen])
    assert list(adata.uns["completed"]["genes"]) == names


def test_no_gene_is_skilled(trained, monkeypatch, cp10k):
    _skilled_by_decree(trained, [], monkeypatch)
    adata = trained.adata.copy()
    with pytest.warns(UserWarning, match="nothing was completed"):
        trained.complete(adata, genes="skilled", n_samples=2, silent=True)
    known = np.asarray(adata.layers["known"])
    np.testing.assert_array_equal(adata.layers["completed"], np.where(known, cp10k(adata), 0))


def test_genes_by_name(trained):
    adata, names = trained.adata.copy(), list(trained.adata.var_names[[7, 2]])
    trained.complete(adata, genes=names, level=None, n_samples=2, silent=True)
    filled = np.isin(adata.layers["completed_provenance"], [1, 2]).any(axis=0)
    assert set(adata.var_names[filled]) == set(names)
    with pytest.raises(KeyError, match=r"1 of 2 genes are not registered with the model: 'nothing'"):
        trained.complete(adata, genes=[names[0], "nothing"], silent=True)
    trained.complete(adata, genes=names[0], level=None, n_samples=2, silent=True)
    filled = np.isin(adata.layers["completed_provenance"], [1, 2]).any(axis=0)
    assert list(adata.var_names[filled]) == [names[0]]
    for word in ("skiled", "All", "none"):
        with pytest.raises(KeyError, match=f"{word}.* is neither .*all.* nor .*skilled.*, nor a gene registered"):
            trained.complete(adata, genes=word, silent=True)


def test_columns_of_others_are_not_written_over(trained):
    adata = trained.adata.copy()
    adata.var["completed_skill"] = 1.0
    with pytest.raises(ValueError, match=r"adata.var\['completed_skill'\] would be written over"):
        trained.complete(adata, silent=True)
