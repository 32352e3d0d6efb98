from __future__ import annotations

import argparse
from dataclasses import asdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from benchmarks import _augmentation, _generation, _sections, generate
from benchmarks.__main__ import main
from benchmarks._generation import KINDS, Budget
from PIL import Image
from scipy import sparse

from lgdist_scvi import datasets, metrics, pp

TINY = Budget(n_tiles=40, n_steps=3, n_epochs=1, n_sampling_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three simulated sections, each with its image in the frame of its spots."""
    folder = tmp_path_factory.mktemp("generation")
    adata = datasets.simulated_visium(n_spots=120, n_genes=40, n_samples=3, seed=0, image=True)
    adata.obs["sample"] = adata.obs["sample"].str.replace("slide_", "S")
    for name, library in adata.uns.pop("spatial").items():
        spots = (adata.obs["sample"] == name.replace("slide_", "S")).to_numpy()
        adata.obsm["spatial"][spots] *= library["scalefactors"]["tissue_hires_scalef"]
        Image.fromarray(library["images"]["hires"]).save(folder / f"tiny_{name.replace('slide_', 'S')}_he.jpg")
    adata.X = adata.X * 20  # no poor spots
    adata.write_h5ad(folder / "tiny_S.h5ad")
    return folder


def test_all_figures_of_a_section(folder, monkeypatch):
    monkeypatch.setattr(_sections, "ENCODERS", {"X_image": "stain", "X_stain": "stain"})
    arguments = folder / "tiny_S.h5ad", "S2", folder / "cache", 0, TINY
    rows = {row["method"]: row for row in generate.measure(generate._generation_rows, *arguments, 1)}
    assert list(rows) == list(KINDS)
    made = ("generated", "not guided", "permuted", "adapter without genes", "central model")
    for name in made:
        row = rows[name]
        assert row["n_spots"] == 80 and row["n_tiles"] == 40 and row["memory_mib"] > 0
        assert np.isfinite(
            [row["kid"], row["frechet"], row["d2_X_stain"], row["copying_ratio"], row["mean_eosin"]]
        ).all()
        assert abs(row["d2_X_image"] - row["d2_X_stain"]) < 1e-6
    # real patches are nearer than those of a network that has learnt nothing, and show the expression
    assert rows["floor"]["kid"] < rows["central model"]["kid"] and "d2_X_image" not in rows["floor"]
    assert rows["real"]["d2_X_image"] > 0
    assert rows["real"]["pcc_haematoxylin"] > 0.2

    # models and patches are kept, and not made again
    kept = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.npz")}
    kept |= {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.safetensors")}
    assert len(kept) == 3
    monkeypatch.setattr(_generation.C2LST, "pretrain", None)
    again = _generation.generate(*arguments)
    assert set(again) == {*made, "seconds_per_patch"}
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    # which expression the model finds in each kind of patches
    monkeypatch.setattr(_generation, "N_ASKED", 9)
    asked = {row["method"]: row for row in generate.measure(_generation.posterior, *arguments, 1)}
    assert list(asked) == list(_generation.POSTERIORS)
    for row in asked.values():
        assert (
            row["n"] == 9 and 0 <= row["rank"] <= 1 and 0 < row["probability"] < 1 and np.isfinite(row["d2_posterior"])
        )
        assert row["d2_prior"] == asked["posterior of real"]["d2_prior"]
    rows |= asked

    table = pd.DataFrame([{**row, **asdict(TINY), "file": "tiny_S S2"} for row in rows.values()])
    table = table.assign(failed=None, date="2026-01-01", seed=0, machine="m", workers=1, threads=1, versions="v")
    text = generate.markdown(table.assign(protocol=generate.PROTOCOL))
    assert "central model" in text and "| Cost |" in text and "| posterior of permuted |" in text


def test_nothing_of_the_held_out_section_is_learnt_from(folder, monkeypatch):
    seen = {}

    def pretrain(tiles, *arguments, **kwargs):
        seen["tiles"] = tiles
        raise RuntimeError("enough")

    monkeypatch.setattr(_generation.C2LST, "pretrain", pretrain)
    path, cache = folder / "tiny_S.h5ad", folder / "cache"
    with pytest.raises(RuntimeError, match="enough"):
        _generation.train(path, "S2", cache, 1, Budget(n_tiles=10**6))
    patches = _generation.patches_of(path, cache)
    allowed = np.concatenate([patches["tiles_S1"], patches["tiles_S3"]])
    np.testing.assert_array_equal(seen["tiles"], allowed)


def test_the_command_says_what_is_missing(folder, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--data", str(folder), "--file", "nothing"])
    assert "holds no nothing.h5ad" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--data", str(folder), "--file", "tiny_S", "--sections", "S9"])
    assert "not of ['S9']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--data", str(folder), "--output", str(folder / "empty"), "--report"])
    assert "no results of generated patches" in capsys.readouterr().err
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    assert parser.parse_args([]).sections == ["C2", "C4"]


def test_what_synthetic_pairs_are_worth(folder, monkeypatch):
    """A row for each predictor and kind of patches; what has no weight changes nothing; nothing of the held-out section is seen."""
    monkeypatch.setattr(_sections, "ENCODERS", {"X_image": "stain", "X_stain": "stain"})
    monkeypatch.setattr("lgdist_scvi.model._stages.VAEStage.n_steps", 4)
    monkeypatch.setattr("lgdist_scvi.model._stages.DiffusionStage.n_steps", 4)
    monkeypatch.setattr("lgdist_scvi.model._stem_stages.NetworkStage.n_steps", 4)
    path, cache = folder / "tiny_S.h5ad", folder / "cache"
    seen = []
    complete = _sections._complete
    monkeypatch.setattr(_sections, "_complete", lambda adata, seed: seen.append(adata) or complete(adata, seed))
    cell = _augmentation.Cell(path, "S2", cache, 0, 30, TINY, _augmentation.AugmentationBudget(40, 3))
    rows = _augmentation.measure(cell)
    by_method = {row["method"]: row for row in rows}
    assert set(by_method) == set(_augmentation.METHODS)
    assert [one.n_obs for one in seen] == [30] and "S2" not in set(seen[0].obs["sample"])
    for name, row in by_method.items():
        assert row["n_spots"] == 30 and np.isfinite(row["d2"]) and row["seconds_adapter"] > 0
        assert row["weight"] == 1 or "always" not in name
        alone = by_method[f"{name.split('_')[0]}_real"]
        assert alone["weight"] == 0 and (row["weight"] > 0 or row["d2"] == pytest.approx(alone["d2"], abs=1e-6))

    table = pd.DataFrame([{**row, "file": f"tiny_S S2 {n}"} for row in rows for n in (30, "all")])
    table = table.assign(failed=None, date="2026-01-01", seed=0, machine="m", workers=1, threads=1, versions="v")
    table["protocol"] = generate.AUGMENTATION
    text = generate.markdown(table)
    assert "| 30 | all |" in text and "ridge, real and synthetic pairs, of the same weight" in text
    figure = generate.augmentation_figure(table)
    assert [ax.get_title() for ax in figure.axes] == ["ridge, own patch", "Stem"]
    curve = next(line for line in figure.axes[0].lines if line.get_label() == "real pairs")
    np.testing.assert_allclose(curve.get_ydata(), by_method["ridge_real"]["d2"])
    generate.write(table, folder / "page")
    assert (folder / "page" / "augmentation.png").exists()
    generate.write(table[:0], folder / "page")
    assert (folder / "page" / "augmentation.md").read_text() == "No results are stored.\n"


def test_ridge_learns_from_further_patches_that_tell_more(folder, monkeypatch):
    """As from so many more spots; and does not follow any that tell nothing."""
    rng = np.random.default_rng(0)
    n, n_genes = 90, 12
    state = rng.normal(size=(n, 3))
    rate = np.exp(state @ rng.normal(size=(3, n_genes)) * 0.7)
    rate /= rate.sum(1, keepdims=True)
    section = np.repeat(["a", "b", "c"], n // 3)
    adata = ad.AnnData(rng.poisson(rate * 3000).astype(np.float32), layers={"completed": np.log1p(rate * 1e4)})
    adata.obs["sample"], adata.obs["total_counts"] = section, adata.X.sum(1)
    adata.X = sparse.csr_matrix(adata.X)
    seen = np.hstack([state, rng.normal(size=(n, 3))])
    for key in _sections.ENCODERS:
        adata.obsm[key] = seen + 1.5 * rng.normal(size=seen.shape)
    training, held_out = adata[section != "c"].copy(), adata[section == "c"].copy()
    counts, library = held_out.X, held_out.obs["total_counts"].to_numpy()
    data = _sections.Sections(training, held_out, np.ones(n_genes, dtype=bool), counts, library)
    spot = np.tile(np.arange(60), 4)
    noise = [rng.normal(size=(240, 6)) for _ in range(4)]
    telling = dict.fromkeys(_sections.ENCODERS, seen[:60][spot] + 0.3 * noise[0])
    nothing = dict.fromkeys(_sections.ENCODERS, 1.5 * noise[1])
    alone, weight = _augmentation.ridge(data, None, 0)
    assert weight == 0
    same, weight = _augmentation.ridge(data, _augmentation.Extra(spot, nothing), 0)
    assert weight == 0
    np.testing.assert_array_equal(same, alone)
    more, weight = _augmentation.ridge(data, _augmentation.Extra(spot, telling), 0)
    assert weight > 0 and data.score(more)["d2"] > data.score(alone)["d2"]


@pytest.mark.parametrize("seed", [2, 5])
def test_inner_sections_choose_a_penalty_that_holds_for_a_new_section(seed):
    """Axes of few spots, each of the same variance, are far longer in a section that they were not made of."""
    rng = np.random.default_rng(seed)
    n, n_new, n_genes = 30, 80, 12
    state = rng.normal(size=(n + n_new, 2))
    rate = np.exp(state @ rng.normal(size=(2, n_genes)) * 0.7)
    rate /= rate.sum(1, keepdims=True)
    adata = ad.AnnData(rng.poisson(rate * 2000).astype(np.float32), layers={"completed": np.log1p(rate * 1e4)})
    adata.obs["sample"] = np.repeat(["a", "b", "c", "new"], [10, 10, 10, n_new])
    adata.obs["total_counts"] = adata.X.sum(1)
    adata.X = sparse.csr_matrix(adata.X)
    for key in _sections.ENCODERS:
        adata.obsm[key] = state @ rng.normal(size=(2, 20)) * 0.5 + rng.normal(size=(n + n_new, 20))
    training, held_out = adata[:n].copy(), adata[n:].copy()
    library = held_out.obs["total_counts"].to_numpy()
    data = _sections.Sections(training, held_out, np.ones(n_genes, dtype=bool), held_out.X, library)
    assert data.score(_augmentation.ridge(data, None, 0)[0])["d2"] > 0.58


def test_copies_are_of_the_same_tissue():
    patches = datasets.simulated_visium(n_spots=20, n_genes=5, seed=0, image=True)
    patches = pp.image_patches(patches, size=32, silent=True)
    made = _augmentation.copies(patches, np.random.default_rng(0))
    assert made.shape == patches.shape and made.dtype == np.uint8 and (made != patches).any(axis=(1, 2, 3)).all()
    one, other = (metrics.patch_composition(values, 100.0)["haematoxylin"] for values in (patches, made))
    assert np.corrcoef(one, other)[0, 1] > 0.6
