from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lgdist_scvi import LGDiST, datasets, metrics, pl


@pytest.fixture(scope="module")
def model() -> LGDiST:
    adata = datasets.simulated_visium(n_spots=100, n_genes=30, seed=0)
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, n_hidden=16, n_latent=4, n_denoiser_hidden=16, n_denoiser_layers=1)
    model.train(max_epochs=1, enable_progress_bar=False)
    return model


def test_calibration():
    levels = [0.9, 0.5]
    ax = pl.calibration(levels, {"a": [0.8, 0.4], "b": [0.9, 0.5]}).axes[0]
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.5, 0.4], [0.9, 0.8]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert pl.calibration(levels, [0.8, 0.4]).axes[0].get_legend() is None
    with pytest.raises(ValueError, match="2 levels but coverage"):
        pl.calibration(levels, [0.8])


def test_calibration_of_what_interval_coverage_returns():
    rng = np.random.default_rng(0)
    truth, mask = rng.normal(size=(40, 10)), np.ones((40, 10), dtype=bool)
    levels, half = (0.5, 0.9), np.repeat(["first", "second"], 20)
    bounds = [(np.full_like(truth, -z), np.full_like(truth, z)) for z in (0.674, 1.645)]
    tables = [metrics.interval_coverage(truth, *pair, mask) for pair in bounds]
    ax = pl.calibration(levels, tables).axes[0]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [table.loc["all", "coverage"] for table in tables])
    assert ax.get_legend() is None
    strata = [metrics.interval_coverage(truth, *pair, mask, by=half) for pair in bounds]
    ax = pl.calibration(levels, strata).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["all", "first", "second"]
    np.testing.assert_allclose(ax.lines[3].get_ydata(), [table.loc["second", "coverage"] for table in strata])
    ax = pl.calibration(levels, {"ours": tables, "theirs": [0.4, 0.8]}).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "theirs"]
    assert pl.calibration(0.9, tables[1]).axes[0].lines[1].get_xdata() == [0.9]
    with pytest.raises(ValueError, match="1 levels but coverage"):
        pl.calibration([0.9], tables)


def test_calibration_of_a_model(model):
    model.complete(silent=True)
    record = model.adata.uns["completed"]
    ax = pl.calibration(model).axes[0]
    for line, column in zip(ax.lines[1:], record["calibration_coverage"].T, strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.c_[record["calibration_levels"], column])
    pl.calibration(model, estimand="captured")
    with pytest.raises(ValueError, match="estimand must be one of .*, got 'nothing'"):
        pl.calibration(model, estimand="nothing")
    with pytest.raises(ValueError, match="pass a trained model, or nominal levels"):
        pl.calibration([0.5, 0.9])


def test_skill(model):
    figure = Figure()
    ax = figure.subplots()
    assert pl.skill(model, ax=ax) is figure
    table = metrics.skill_per_gene(model)
    drawn = np.concatenate([container.lines[0].get_ydata() for container in ax.containers])
    np.testing.assert_allclose(np.sort(drawn), np.sort(table["skill"].dropna()))
    table["skilled"] = table["skill"] == table["skill"].max()
    ax = pl.skill(table).axes[0]
    assert len(ax.containers[0].lines[0].get_ydata()) == 1
    assert str(table["skill"].idxmax()) in ax.texts[0].get_text()
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="pass a trained model, or what metrics.skill_per_gene"):
        pl.skill(pd.DataFrame({"skill": [0.1]}))


def test_losses_that_another_logger_took(model, monkeypatch):
    monkeypatch.setattr(model, "history_", {})
    with pytest.raises(ValueError, match="the model is trained, but .* another logger or to none"):
        pl.training_history(model)
    monkeypatch.setattr(model, "is_trained_", False)
    with pytest.raises(ValueError, match="available: none; train first"):
        pl.training_history(model)
