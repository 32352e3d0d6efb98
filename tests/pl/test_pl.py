from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import lgdist_scvi
from lgdist_scvi import metrics, pl
from lgdist_scvi._units import log1p_cp10k

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def _complete(adata: AnnData) -> AnnData:
    """A stand-in for a model: rates where nothing was counted."""
    counts = adata.X.toarray()
    observed = log1p_cp10k(counts, counts.sum(axis=1))
    rate = metrics.baselines.gene_mean(adata)
    adata.layers["completed"] = np.where(counts > 0, observed, rate)
    adata.layers["completed_std"] = np.where(counts > 0, 0, 0.1 * rate).astype(np.float32)
    return adata


def _panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.collections and ax.get_label() != "<colorbar>"]


def _drawn(ax) -> np.ndarray:
    return np.ma.filled(ax.collections[0].get_array(), np.nan)


@pytest.fixture
def completed(slide) -> AnnData:
    return _complete(slide)


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    yield
    assert not plt.get_fignums()


def test_completion_draws_what_the_layers_hold(completed):
    genes = list(completed.var_names[[3, 1]])
    figure = pl.completion(completed, genes)
    panels = _panels(figure)
    assert len(panels) == 6
    observed = log1p_cp10k(completed.X, np.asarray(completed.X.sum(axis=1)).ravel())
    for row, gene in enumerate([3, 1]):
        first, second, third = panels[3 * row : 3 * row + 3]
        np.testing.assert_allclose(_drawn(first), observed[:, gene], rtol=1e-6)
        np.testing.assert_allclose(_drawn(second), completed.layers["completed"][:, gene], rtol=1e-6)
        deviation = completed.layers["completed_std"][:, gene]
        np.testing.assert_allclose(_drawn(third), np.where(deviation > 0, deviation, np.nan), rtol=1e-6)
        assert first.collections[0].get_clim() == second.collections[0].get_clim()
        assert first.get_ylabel() == genes[row]
    assert [ax.get_title() for ax in panels[:3]] == ["observed", "completed", "standard deviation"]
    assert all(ax.images for ax in panels)  # the tissue lies underneath
    figure.draw_without_rendering()


def test_completion_reads_what_the_model_was_given(completed):
    completed.layers["counts"], completed.obs["depth"] = completed.X.copy(), 1000.0
    completed.X = np.full(completed.shape, 0.5)  # no counts
    completed.uns["completed"] = {"setup": {"layer": "counts", "size_factor_key": "depth", "sample_key": "sample"}}
    completed.obs["sample"] = np.where(np.arange(completed.n_obs) < 100, "first", "second")
    figure = pl.completion(completed, completed.var_names[3])
    expected = log1p_cp10k(completed.layers["counts"], np.full(completed.n_obs, 1000.0))[:, 3]
    first, second = _panels(figure)[0], _panels(figure)[3]
    np.testing.assert_allclose(np.r_[_drawn(first), _drawn(second)], expected, rtol=1e-6)
    assert [ax.get_ylabel().split("\n")[1] for ax in (first, second)] == ["first", "second"]
    # what the caller names goes before
    completed.obs["double"] = 2000.0
    figure = pl.completion(completed, completed.var_names[3], size_factor_key="double", sample="second")
    expected = log1p_cp10k(completed.layers["counts"], np.full(completed.n_obs, 2000.0))[100:, 3]
    np.testing.assert_allclose(_drawn(_panels(figure)[0]), expected, rtol=1e-6)


def test_completion_leaves_the_data_alone(completed):
    before = completed.copy()
    pl.completion(completed, completed.var_names[0])
    assert list(completed.uns) == list(before.uns) and list(completed.obs) == list(before.obs)
    assert list(completed.layers) == list(before.layers)
    np.testing.assert_array_equal(completed.X.toarray(), before.X.toarray())


@pytest.mark.parametrize("case", ["no image", "image off", "beads", "square", "no deviation"])
def test_completion_of_any_slide(completed, case):
    rng = np.random.default_rng(0)
    n_columns = 3
    if case == "no image":
        del completed.uns["spatial"]
    elif case == "beads":
        completed.obsm["spatial"] = rng.uniform(0, 5000, size=(completed.n_obs, 2))
        del completed.uns["spatial"]
    elif case == "square":
        completed.obsm["spatial"] = np.argwhere(np.ones((15, 10))) * 250.0
        del completed.uns["spatial"]
    elif case == "no deviation":
        del completed.layers["completed_std"]
        n_columns = 2
    figure = pl.completion(completed, completed.var_names[0], image=case != "image off")
    panels = _panels(figure)
    assert len(panels) == n_columns
    assert bool(panels[0].images) == (case == "no deviation")
    assert all(np.isfinite(ax.get_xlim()).all() and len(_drawn(ax)) == completed.n_obs for ax in panels)
    figure.draw_without_rendering()


def test_spots_are_sized_by_their_spacing(completed):
    # neighbouring circles nearly touch and do not overlap
    path = _panels(pl.completion(completed, completed.var_names[0], image=False))[0].collections[0].get_paths()[0]
    assert 80 < np.ptp(path.vertices[:, 0]) <= 100  # the pitch is 100 pixels


@pytest.fixture
def slides() -> AnnData:
    return _complete(lgdist_scvi.datasets.simulated_visium(n_spots=200, n_genes=20, n_samples=2))


def test_completion_shows_slides(slides):
    names = list(slides.obs["sample"].unique())
    figure = pl.completion(slides, slides.var_names[0], sample_key="sample", sample=names[1])
    spots = (slides.obs["sample"] == names[1]).to_numpy()
    np.testing.assert_allclose(_drawn(_panels(figure)[1]), slides.layers["completed"][spots, 0], rtol=1e-6)
    assert figure.get_suptitle() == names[1]

    both = _panels(pl.completion(slides, slides.var_names[:2], library_key="sample"))
    assert [ax.get_ylabel() for ax in both[::3]] == [f"{g}\n{s}" for g in slides.var_names[:2] for s in names]
    # one scale for each gene
    assert both[0].collections[0].get_clim() == both[3].collections[0].get_clim() != both[6].collections[0].get_clim()
    turned = _panels(pl.completion(slides, slides.var_names[0], sample_key="sample", sample=names[::-1]))
    np.testing.assert_allclose(_drawn(turned[0]), _drawn(both[3]))


def test_of_many_slides_the_first_are_shown(completed):
    completed.obs["piece"] = np.repeat(np.arange(15), 10)
    with pytest.warns(UserWarning, match=r"the first 6 of 15 slides are shown; name others with sample"):
        figure = pl.completion(completed, completed.var_names[0], sample_key="piece", image=False)
    assert len(_panels(figure)) == 18


def test_genes_that_are_not_named_have_structure_and_zeros(completed):
    counts = completed.X.toarray()
    x = completed.obsm["spatial"][:, 0]
    counts[:, 7] = 5 * (x > np.median(x))  # on one half of the tissue only
    counts[:, 8] = 0
    completed.X = type(completed.X)(counts)
    figure = pl.completion(_complete(completed))
    shown = [ax.get_ylabel() for ax in _panels(figure)[::3]]
    assert len(set(shown)) == 4
    assert shown[0] == completed.var_names[7] and completed.var_names[8] not in shown
    completed.uns["completed"] = {"genes": np.array(completed.var_names[:2], dtype=str)}
    shown = [ax.get_ylabel() for ax in _panels(pl.completion(completed))[::3]]
    assert set(shown) == set(completed.var_names[:2])


def test_words_of_squidpy(slides, tmp_path):
    gene = slides.var_names[0]
    file = tmp_path / "figure.png"
    figure = pl.completion(slides, color=gene, library_key="sample", cmap="magma", save=file, dpi=40)
    assert file.stat().st_size > 0
    assert _panels(figure)[0].collections[0].get_cmap().name == "magma"
    for one, other in (("genes", "color"), ("sample_key", "library_key")):
        with pytest.raises(ValueError, match=f"^{one}='a' and {other}='b' are two words for the same"):
            pl.completion(slides, **{one: "a", other: "b"})


def test_one_panel_in_axes_of_the_caller(completed):
    figure = Figure()
    ax = figure.subplots()
    assert pl.completion(completed, completed.var_names[3], ax=ax) is figure
    np.testing.assert_allclose(_drawn(ax), completed.layers["completed"][:, 3], rtol=1e-6)
    assert len(_panels(figure)) == 1
    with pytest.raises(ValueError, match="ax takes one panel, got 2 genes on 1 slides"):
        pl.completion(completed, completed.var_names[:2], ax=ax)


_IMAGE, _FACTORS = (
    np.full((40, 40, 3), 200, dtype=np.uint8),
    {"tissue_hires_scalef": 0.02, "tissue_lowres_scalef": 0.01},
)


@pytest.mark.parametrize(
    ("libraries", "drawn"),
    [
        ({"is_single": True}, None),
        ({"is_single": True, "a": {"images": {"hires": _IMAGE}, "scalefactors": _FACTORS}}, 0.02),
        (True, None),
        ("hires", None),
        ({}, None),
        ({"a": {}}, None),
        ({"a": None}, None),
        ({"a": {"images": {"hires": _IMAGE}}}, None),
        ({"a": {"images": {"hires": _IMAGE}, "scalefactors": 1}}, None),
        ({"a": {"images": {"hires": _IMAGE}, "scalefactors": {"tissue_hires_scalef": np.nan}}}, None),
        ({"a": {"images": {"hires": _IMAGE}, "scalefactors": {"tissue_hires_scalef": "large"}}}, None),
        ({"a": {"images": {}, "scalefactors": _FACTORS}}, None),
        ({"a": {"images": None, "scalefactors": _FACTORS}}, None),
        ({"a": {"images": {"hires": "image.png"}, "scalefactors": _FACTORS}}, None),
        ({"a": {"images": {"hires": [[1, 2], [3]]}, "scalefactors": _FACTORS}}, None),
        ({"a": {"images": {"hires": None, "lowres": _IMAGE}, "scalefactors": _FACTORS}}, 0.01),
        ({"a": {"images": {"lowres": _IMAGE}, "scalefactors": _FACTORS}}, 0.01),
        ({"a": {"images": {"hires": _IMAGE, "lowres": _IMAGE}, "scalefactors": _FACTORS}}, 0.02),
        ({"a": {"images": {"hires": _IMAGE[..., :1]}, "scalefactors": _FACTORS}}, 0.02),
        ({"a": {"images": {"hires": _IMAGE[..., 0] / 255}, "scalefactors": _FACTORS}}, 0.02),
        # of another place: no pixel lies under the tissue
        ({"a": {"images": {"hires": _IMAGE}, "scalefactors": {"tissue_hires_scalef": 50.0}}}, None),
        ({"a": {"images": {"hires": _IMAGE}, "scalefactors": _FACTORS}, "b": {}}, None),
    ],
)
def test_any_images_and_none(completed, libraries, drawn):
    completed.uns["spatial"] = libraries
    completed.obsm["spatial"] = completed.obsm["spatial"] + 200
    figure = pl.completion(completed, completed.var_names[0])
    figure.draw_without_rendering()
    for ax in _panels(figure):
        assert bool(ax.images) == (drawn is not None)
        assert len(_drawn(ax)) == completed.n_obs
        if drawn is not None:  # image and spots lie on each other
            centres = np.array([np.mean(path.vertices[:-1], axis=0) for path in ax.collections[0].get_paths()])
            pixels = completed.obsm["spatial"] * drawn
            np.testing.assert_allclose(np.ptp(centres, axis=0), np.ptp(pixels, axis=0), rtol=0.01)
            assert ax.images[0].get_array().shape[:2] <= (40, 40)


def test_the_image_can_be_chosen(completed):
    completed.uns["spatial"] = {
        "a": {"images": {"hires": _IMAGE, "lowres": _IMAGE}, "scalefactors": _FACTORS},
    }
    first = _panels(pl.completion(completed, completed.var_names[0], img_res_key="lowres", img_alpha=0.3))[0]
    assert first.images[0].get_alpha() == 0.3
    assert first.images[0].get_array().shape[0] < 40  # cropped at the smaller scale
    with pytest.raises(KeyError, match="there is no image 'fullres' .*available: 'hires', 'lowres'"):
        pl.completion(completed, completed.var_names[0], img_res_key="fullres")


def test_completion_names_what_is_missing(completed):
    with pytest.raises(KeyError, match="1 of 2 genes are not in adata.var_names: 'nothing'"):
        pl.completion(completed, [completed.var_names[0], "nothing"])
    with pytest.raises(ValueError, match="genes is empty; pass names, or None"):
        pl.completion(completed, [])
    with pytest.raises(KeyError, match=r"'other' not found in adata.layers; .*model.complete"):
        pl.completion(completed, completed.var_names[0], layer="other")
    with pytest.raises(KeyError, match="no spot .* is 'nowhere'; available: '"):
        pl.completion(completed, completed.var_names[0], sample_key="sample", sample="nowhere")
    with pytest.raises(KeyError, match="needs sample_key"):
        pl.completion(completed, completed.var_names[0], sample="nowhere")


def test_counts_that_are_gone_and_genes_of_other_names(completed):
    completed.uns["completed"] = {
        "registered_genes": np.array(completed.var_names, dtype=str),
        "genes": np.array(completed.var_names, dtype=str),
    }
    renamed = completed.copy()
    renamed.var_names = [f"symbol {i}" for i in range(renamed.n_vars)]
    for name in (renamed.var_names[0], None):
        with pytest.raises(ValueError, match="genes were renamed after completion: give the old names back"):
            pl.completion(renamed, name)
    renamed.obs["depth"] = np.asarray(renamed.X.sum(axis=1)).ravel()
    figure = pl.completion(renamed, "symbol 3", size_factor_key="depth")  # nothing else needs the old names
    np.testing.assert_allclose(_drawn(_panels(figure)[1]), completed.layers["completed"][:, 3], rtol=1e-6)

    completed.X = np.log1p(completed.X.toarray() / 3)
    with pytest.raises(ValueError, match=r"adata.X are not whole numbers; .*\(counts_layer=\.\.\.") as caught:
        pl.completion(completed, completed.var_names[0])
    assert " layer=" not in str(caught.value) and "(layer=" not in str(caught.value)


def _history(stages: dict[str, float]) -> dict[str, pd.DataFrame]:
    epochs = pd.RangeIndex(30, name="epoch")
    curve = np.exp(-np.arange(30) / 5)
    history = {}
    for stage, floor in stages.items():
        for part in ("train", "validation"):
            history[f"{stage}{part}_loss"] = pd.DataFrame({f"{part}_loss": curve + floor}, index=epochs)
    return history


def test_training_history(completed):
    history = _history({"vae/": 1e-3, "diffusion/": 1.0})
    history["vae/kl_weight"] = history["vae/train_loss"]
    figure = pl.training_history(history)
    assert [ax.get_title() for ax in figure.axes] == ["vae", "diffusion"]
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), history["vae/train_loss"].iloc[:, 0])

    class Model:
        history_ = _history({"": 0.5})

    assert [ax.get_title() for ax in pl.training_history(Model()).axes] == ["training"]
    # a first validation before training logs NaN
    history["vae/validation_loss"].iloc[0] = np.nan
    pl.training_history(history).draw_without_rendering()
    for nothing in (None, {}, {"vae/elbo": history["vae/train_loss"]}):
        with pytest.raises(ValueError, match="no curve 'train_loss'.*train first"):
            pl.training_history(nothing)


def test_held_out():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2, size=(50, 20))
    prediction = truth + rng.normal(0, 0.3, size=truth.shape)
    mask = rng.random(truth.shape) < 0.4
    figure = pl.held_out(truth, prediction, mask, title="model")
    ax = figure.axes[0]
    assert f"MSE {np.mean((truth - prediction)[mask] ** 2):.3f}" in ax.get_title()
    assert 0.98 * mask.sum() <= ax.collections[0].get_array().sum() <= mask.sum()
    far = pl.held_out(truth + 50, prediction + 50, mask).axes[0]
    assert far.get_xlim() == pytest.approx(np.add(ax.get_xlim(), 50)), "the axes fit the values"
    canvas, own = plt.subplots()
    assert pl.held_out(truth, prediction, mask, ax=own) is canvas
    plt.close(canvas)
    with pytest.raises(ValueError, match="no entry to score"):
        pl.held_out(truth, prediction, np.zeros_like(mask))


def test_scores_are_sorted_and_labelled():
    table = {
        "gene_mean": {"mse": 0.4, "r2_gene": -0.1, "n": 5},
        "ours": {"mse": 0.1, "r2_gene": 0.6, "n": 5},
        "knn": {"mse": 0.2, "r2_gene": np.nan, "n": 5},
    }
    figure = pl.scores(table, metrics=("mse", "r2_gene", "absent"), highlight="ours", floor=0.08)
    left, right = figure.axes
    # from bottom to top
    assert [label.get_text() for label in left.get_yticklabels()] == ["gene mean", "knn", "ours"]
    assert left.get_ylim()[0] < left.get_ylim()[1]
    np.testing.assert_allclose(left.collections[1].get_offsets(), [[0.4, 0], [0.2, 1], [0.1, 2]])
    assert {text.get_text() for text in right.texts} == {"0.600", "-0.100"}
    assert "noise floor" in {text.get_text() for text in left.texts}
    figure.draw_without_rendering()
    assert len(pl.scores(pd.DataFrame(table).T, metrics=["r2_gene"]).axes) == 1
    with pytest.raises(ValueError, match="none of the scores"):
        pl.scores(table, metrics=["absent"])


def test_every_real_slide_without_naming_anything(shared_data: Path):
    import anndata as ad

    files = sorted(shared_data.glob("*.h5ad"))
    assert files
    for file in files:
        adata = ad.read_h5ad(file)
        adata = _complete(adata[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:12]].copy())
        several = "sample" in adata.obs and adata.obs["sample"].nunique() > 1
        if several:
            adata.uns["completed"] = {"setup": {"sample_key": "sample"}}
        figure = pl.completion(adata)
        assert len(_panels(figure)) >= 12
        assert bool(_panels(figure)[0].images) == ("spatial" in adata.uns)
        figure.draw_without_rendering()
