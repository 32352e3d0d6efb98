from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lgdist_scvi import datasets, pl, pp


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=80, n_genes=20, seed=3, image=True)


def shown(figure) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes]


def test_best_and_worst_spots(tissue, tmp_path):
    figure = pl.image_patches(tissue, "cell_density", n_patches=3, size=32, save=tmp_path / "patches.png")
    patches = pp.image_patches(tissue, size=32, silent=True)
    order = np.argsort(tissue.obs["cell_density"].to_numpy())
    for drawn, spot in zip(shown(figure), [*order[::-1][:3], *order[:3]], strict=True):
        np.testing.assert_array_equal(drawn, patches[spot])
    assert figure.axes[0].get_title() == f"{tissue.obs['cell_density'].max():.3g}"
    assert (tmp_path / "patches.png").stat().st_size > 1000 and not plt.get_fignums()


def test_values_of_genes_and_of_anything(tissue):
    gene = np.asarray(tissue.X[:, [4]].todense()).ravel()
    value = np.log1p(gene / np.asarray(tissue.X.sum(axis=1)).ravel() * 1e4)
    assert pl.image_patches(tissue, "gene_05", size=8).axes[0].get_title() == f"{value.max():.3g}"
    rates = tissue.layers["rate"][:, 4]
    assert pl.image_patches(tissue, "gene_05", layer="rate", size=8).axes[0].get_title() == f"{rates.max():.3g}"

    adata = tissue.copy()
    adata.obsm["patches"] = np.arange(80, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    values = np.full(80, np.nan)
    values[[7, 30, 12]] = [3, 2, 1]
    figure = pl.image_patches(adata, values, patch_key="patches")
    assert [int(patch[0, 0, 0]) for patch in shown(figure)] == [7, 30, 12, 12, 30, 7]


@pytest.mark.parametrize(
    ("color", "kwargs", "error", "message"),
    [
        (
            "nothing",
            {},
            KeyError,
            "'nothing' is neither in adata.var_names nor in adata.obs; columns with numbers: .*'cell_density'",
        ),
        ("domain", {}, ValueError, r"adata.obs\['domain'\] is not numeric"),
        (np.ones(3), {}, ValueError, r"color has shape \(3,\); expected one value for each of the 80 spots"),
        (np.full(80, np.nan), {}, ValueError, "all are NaN"),
        ("gene_01", {"layer": "none"}, KeyError, "'none' not found in adata.layers"),
        ("gene_01", {"patch_key": "none"}, KeyError, "'none' not found in adata.obsm"),
        ("gene_01", {"n_patches": 0}, ValueError, "n_patches must be a whole number"),
    ],
)
def test_errors(color, kwargs, error, message, tissue):
    with pytest.raises(error, match=message):
        pl.image_patches(tissue, color, **kwargs)


def test_synthetic_spots_are_refused_or_marked(tissue):
    """By every figure of spots, also where a concatenation lost the flag."""
    adata = tissue.copy()
    adata.layers["completed"] = adata.layers["predicted"] = np.log1p(adata.layers["rate"] * 1e4)
    adata.var["predicted_skill"] = 0.5
    flagged, renamed = adata.copy(), adata.copy()
    flagged.obs["synthetic"] = np.arange(80) >= 77
    renamed.obs_names = [*adata.obs_names[:77], "synthetic_0", "synthetic_1", "synthetic_2"]
    for draw in (
        lambda one, **kwargs: pl.image_patches(one, "cell_density", size=8, n_patches=80, **kwargs),
        lambda one, **kwargs: pl.completion(one, "gene_01", **kwargs),
        lambda one, **kwargs: pl.prediction(one, "gene_01", **kwargs),
    ):
        assert draw(adata).get_supxlabel() == ""
        for one in (flagged, renamed):
            with pytest.raises(ValueError, match="3 of 80 spots are synthetic"):
                draw(one)
            figure = draw(one, allow_synthetic=True)
            assert figure.get_supxlabel() == "3 of 80 spots are synthetic and measure nothing"
    titles = [
        ax.get_title()
        for ax in pl.image_patches(flagged, "cell_density", size=8, n_patches=80, allow_synthetic=True).axes
    ]
    assert sum(title.endswith("*") for title in titles) == 6
