from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from benchmarks import _generation, _sections, generate
from benchmarks.__main__ import main
from benchmarks._generation import KINDS, Budget
from PIL import Image

from lgdist_scvi import datasets

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
    rows = {row["method"]: row for row in generate.measure(*arguments, 1)}
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

    table = pd.DataFrame([{**row, **asdict(TINY), "file": "tiny_S S2"} for row in rows.values()])
    table = table.assign(failed=None, date="2026-01-01", seed=0, machine="m", workers=1, threads=1, versions="v")
    text = generate.markdown(table.assign(protocol=generate.PROTOCOL))
    assert "central model" in text and "tiny_S S2. Cost" in text


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
