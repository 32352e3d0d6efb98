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
    expected = log1p_cp10k(completed.layers["counts"], np.full(completed.n_obs, 1000.0))[:100, 3]
    np.testing.assert_allclose(_drawn(_panels(figure)[0]), expected, rtol=1e-6)
    assert figure.get_suptitle() == "first"
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


def test_completion_shows_one_slide():
    adata = _complete(lgdist_scvi.datasets.simulated_visium(n_spots=200, n_genes=20, n_samples=2))
    names = list(adata.obs["sample"].unique())
    figure = pl.completion(adata, adata.var_names[0], sample_key="sample", sample=names[1])
    spots = (adata.obs["sample"] == names[1]).to_numpy()
    np.testing.assert_allclose(_drawn(_panels(figure)[1]), adata.layers["completed"][spots, 0], rtol=1e-6)
    assert figure.get_suptitle() == names[1]
    assert pl.completion(adata, adata.var_names[0], sample_key="sample").get_suptitle() == names[0]


def test_completion_names_what_is_missing(completed):
    with pytest.raises(KeyError, match="1 of 2 genes are not in adata.var_names: 'nothing'"):
        pl.completion(completed, [completed.var_names[0], "nothing"])
    with pytest.raises(KeyError, match=r"'other' not found in adata.layers; .*model.complete"):
        pl.completion(completed, completed.var_names[0], layer="other")
    with pytest.raises(KeyError, match="no spot .* is 'nowhere'; available: '"):
        pl.completion(completed, completed.var_names[0], sample_key="sample", sample="nowhere")
    with pytest.raises(KeyError, match="needs sample_key"):
        pl.completion(completed, completed.var_names[0], sample="nowhere")


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


def test_calibration():
    levels = [0.9, 0.5]
    ax = pl.calibration(levels, {"a": [0.8, 0.4], "b": [0.9, 0.5]}).axes[0]
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.5, 0.4], [0.9, 0.8]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert pl.calibration(levels, [0.8, 0.4]).axes[0].get_legend() is None
    with pytest.raises(ValueError, match="2 levels but coverage"):
        pl.calibration(levels, [0.8])


@pytest.mark.parametrize(
    ("file", "sample_key", "has_image"),
    [
        ("mouse_muscle_Vis7B_5dpi.h5ad", None, True),
        ("her2st_A.h5ad", "sample", False),
        ("mouse_hippocampus_slideseqv2_subset.h5ad", None, False),
    ],
)
def test_real_slides(shared_data: Path, file, sample_key, has_image):
    import anndata as ad

    adata = ad.read_h5ad(shared_data / file)
    adata = _complete(adata[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:5]].copy())
    figure = pl.completion(adata, list(adata.var_names[:2]), sample_key=sample_key)
    assert bool(_panels(figure)[0].images) == has_image
    figure.draw_without_rendering()
