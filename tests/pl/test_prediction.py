from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from lgdist_scvi import datasets, pl
from lgdist_scvi._units import log1p_cp10k

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure


@pytest.fixture
def predicted() -> AnnData:
    """Two slides with images, and what a model would write."""
    adata = datasets.simulated_visium(n_spots=160, n_genes=30, n_samples=2, seed=1, image=True)
    adata.layers["predicted"] = np.log1p(adata.layers["rate"] * 1e4)
    adata.layers["predicted_std"] = 0.2 + 0.1 * adata.layers["predicted"]
    adata.var["predicted_skill"] = np.linspace(0.5, -0.08, 30)
    adata.obs["depth"] = 2 * np.asarray(adata.X.sum(axis=1)).ravel()
    adata.uns["predicted"] = {"setup": {"sample_key": "sample", "size_factor_key": "depth"}}
    return adata


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    yield
    assert not plt.get_fignums()


def _rows(figure: Figure, n_columns: int) -> list[list]:
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    return [panels[start : start + n_columns] for start in range(0, len(panels), n_columns)]


def _drawn(ax) -> np.ndarray:
    return np.ma.filled(ax.collections[0].get_array(), np.nan)


def test_what_is_drawn(predicted):
    figure = pl.prediction(predicted, ["gene_03", "gene_08"])
    rows = _rows(figure, 4)
    assert [ax.get_title() for ax in rows[0]] == ["tissue", "measured", "predicted", "standard deviation"]
    counted = log1p_cp10k(predicted.X, predicted.obs["depth"].to_numpy())
    for row, (gene, slide) in zip(rows, [(2, 0), (2, 1), (7, 0), (7, 1)], strict=True):
        spots = slice(80 * slide, 80 * slide + 80)
        for ax, values in zip(
            row[1:], (counted, predicted.layers["predicted"], predicted.layers["predicted_std"]), strict=True
        ):
            np.testing.assert_allclose(_drawn(ax), values[spots, gene], rtol=1e-6)
        name = predicted.var_names[gene]
        assert row[0].get_ylabel() == f"{name}\nslide_{slide + 1}\nskill {predicted.var['predicted_skill'][name]:.2f}"
        assert len(row[0].images) == 1 and not row[0].collections
    clims = [[ax.collections[0].get_clim() for ax in row[1:]] for row in rows]
    assert clims[0] == clims[1] and clims[0][0] == clims[0][1] != clims[0][2]  # one scale on all slides
    assert clims[0][0][0] == 0 and clims[0] != clims[2]
    figure.draw_without_rendering()
    # spots lie on the same place of the panel as the tissue does
    for ax in rows[0][1:]:
        assert ax.get_xlim() == rows[0][0].get_xlim() and ax.get_ylim() == rows[0][0].get_ylim()


def test_genes_of_the_highest_skill_are_chosen(predicted):
    rows = _rows(pl.prediction(predicted), 4)
    assert [row[0].get_ylabel().split("\n")[0] for row in rows[::2]] == list(predicted.var_names[:2])
    one = _rows(pl.prediction(predicted, sample="slide_2"), 4)
    assert [row[0].get_ylabel() for row in one] == [f"gene_0{i}\nskill {0.5 - 0.02 * (i - 1):.2f}" for i in range(1, 5)]


def test_nothing_measured(predicted):
    del predicted.X
    titles = [ax.get_title() for ax in _rows(pl.prediction(predicted, "gene_02"), 3)[0]]
    assert titles == ["tissue", "predicted", "standard deviation"]


def test_spots_that_were_not_sequenced(predicted):
    predicted.X.data[predicted.X.indptr[80] :] = 0
    predicted.obs.loc[predicted.obs_names[80:], "depth"] = 0
    first, second = _rows(pl.prediction(predicted, "gene_02"), 4)
    assert np.isfinite(_drawn(first[1])).all() and np.isnan(_drawn(second[1])).all()
    predicted.X.data[:] = 0
    predicted.obs["depth"] = 0
    assert len(_rows(pl.prediction(predicted, "gene_02"), 3)) == 2


def test_without_std_and_image(predicted):
    del predicted.layers["predicted_std"], predicted.uns["spatial"]
    titles = [ax.get_title() for ax in _rows(pl.prediction(predicted, "gene_02"), 2)[0]]
    assert titles == ["measured", "predicted"]


def test_an_image_of_ones_own(predicted, tmp_path):
    """A file, of one slide of two; another scale of the image draws the same tissue."""
    library = predicted.uns["spatial"]["slide_1"]
    pixels, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = {"image": {"slide_1": tmp_path / "a.png"}, "image_res_key": "hires"}
    first, second = _rows(pl.prediction(predicted, "gene_02", **given), 4)
    np.testing.assert_array_equal(
        first[0].images[0].get_array(), _rows(pl.prediction(predicted, "gene_02"), 4)[0][0].images[0].get_array()
    )
    assert not second[0].images
    del predicted.uns["spatial"]
    predicted.obsm["spatial"] = predicted.obsm["spatial"] * scale
    again = _rows(pl.prediction(predicted, "gene_02", {"slide_1": pixels}, save=tmp_path / "f.png", dpi=40), 4)
    np.testing.assert_array_equal(first[0].images[0].get_array(), again[0][0].images[0].get_array())
    assert (tmp_path / "f.png").stat().st_size > 1000
    assert not [ax for row in _rows(pl.prediction(predicted, "gene_02", False), 3) for ax in row if ax.images]


def test_the_data_are_left_alone(predicted):
    before = predicted.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pl.prediction(predicted, "gene_02")
    assert list(predicted.layers) == list(before.layers) and list(predicted.uns) == list(before.uns)
    np.testing.assert_array_equal(predicted.X.toarray(), before.X.toarray())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"genes": "Gene_12"}, KeyError, "1 of 1 genes are not in adata.var_names: 'Gene_12'; did you mean 'gene_12'"),
        ({"layer": "other"}, KeyError, "'other' not found in adata.layers"),
        ({"genes": "gene_01", "counts_layer": "raw"}, KeyError, "'raw' not found in adata.layers"),
        ({"genes": "gene_01", "counts_layer": "rate"}, ValueError, r"adata.layers\['rate'\] are not whole numbers"),
        ({"sample": "slide_9"}, KeyError, "'slide_9'; available: 'slide_1', 'slide_2'"),
        ({"spatial_key": "none"}, KeyError, "'none' not found in adata.obsm"),
        ({"image": "none.tif"}, ValueError, "one image was passed for 2 slides; pass a dict slide -> image"),
        ({"image": {"slide_1": "none.tif"}}, FileNotFoundError, "there is no image 'none.tif'"),
        (
            {"image": {"slide_1": np.full((90, 90, 3), 200, np.uint8)}, "sample": "slide_2"},
            ValueError,
            "image shows nothing at the spots of the slides drawn",
        ),
        ({"image_res_key": "none"}, KeyError, "there is no image 'none'"),
        ({"genes": "gene_01", "color": "gene_02"}, ValueError, "genes='gene_01' and color='gene_02' are two words"),
        ({"genes": []}, ValueError, "genes is empty"),
    ],
)
def test_errors(kwargs, error, message, predicted):
    with pytest.raises(error, match=message):
        pl.prediction(predicted, **kwargs)


def test_without_skill_genes_must_be_named(predicted):
    del predicted.var["predicted_skill"]
    with pytest.raises(
        ValueError, match=r"adata.var\['predicted_skill'\] has no skill .*name genes, such as 'gene_01'"
    ):
        pl.prediction(predicted)
    assert _rows(pl.prediction(predicted, "gene_02", sample="slide_1"), 4)[0][0].get_ylabel() == "gene_02"
