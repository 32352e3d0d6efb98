from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from benchmarks.__main__ import main
from benchmarks.image import markdown, sections
from scipy import sparse


@pytest.fixture
def folder(tmp_path):
    """Two sections with an image each and one without, and their features."""
    generator = np.random.default_rng(0)
    names = [f"spot{i}" for i in range(108)]
    counts = sparse.csr_matrix(generator.poisson(12, size=(108, 20)).astype(np.float32))
    adata = ad.AnnData(counts, pd.DataFrame({"sample": np.repeat(["S1", "S2", "S3"], 36)}, index=names))
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 100.0
    adata.obsm["spatial"] = np.tile(grid, (3, 1))
    adata.write_h5ad(tmp_path / "tiny_S.h5ad")
    for name in ("S1", "S2"):
        (tmp_path / f"tiny_{name}_he.jpg").touch()
    features = np.arange(72, dtype=np.float32)[:, None] * [1.0, 10.0, 100.0]
    order = generator.permutation(72)
    np.savez(
        tmp_path / "features_tiny_S.npz",
        spots=np.array(names[:72])[order],
        X_image=features[order, :2],
        X_stain=features[order, 2:],
    )
    return tmp_path


def test_features_are_those_of_the_spots_and_shuffled_within_sections(folder):
    adata = sections(folder / "tiny_S.h5ad", folder)
    assert set(adata.obs["sample"]) == {"S1", "S2"}
    number = adata.obs_names.str.removeprefix("spot").astype(int).to_numpy()
    np.testing.assert_array_equal(adata.obsm["X_both"], number[:, None] * np.array([1.0, 10.0, 100.0]))
    shuffled = adata.obsm["X_shuffled"][:, 0]
    assert (shuffled != number).mean() > 0.9 and sorted(shuffled) == sorted(number)
    np.testing.assert_array_equal(shuffled >= 36, number >= 36)


def test_the_table_says_what_the_image_changes():
    shared = {
        "file": "tiny_S",
        "seed": 0,
        "failed": None,
        "versions": "v",
        "machine": "m",
        "date": "2026-01-01",
        "threads": 1,
        "workers": 1,
        "weight_hidden": 0.75,
        "weight_visible": 0.0,
    }
    scores = {"lgdist": (0.2, 0.3), "lgdist_image": (0.17, 0.301), "lgdist_image_shuffled": (0.2, 0.3)}
    rows = [
        {**shared, "protocol": protocol, "method": method, "excess": excess, "d2": d2}
        for method, (excess, d2) in scores.items()
        for protocol in ("image_spot", "image_shallow")
    ]
    text = markdown(pd.DataFrame(rows))
    assert "| spot, excess MSE, seed 0 | .2000 | .1700 | .2000 | -15.0% | 0 | 0.75 |" in text
    assert "| shallow, D2, seed 0 | .3000 | .3010 | .3000 | +0.0010 | 0 | 0.75 |" in text


def test_sections_without_an_image_are_named(folder, capsys):
    for image in folder.glob("*.jpg"):
        image.unlink()
    with pytest.raises(SystemExit):
        main(["image", "--data", str(folder), "--file", "tiny_S", "--output", str(folder / "results")])
    assert "tiny_S.h5ad has no images beside it" in capsys.readouterr().err
