"""Do-no-harm table."""

from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi import metrics, pp
from lgdist_scvi._units import log1p_cp10k


@pytest.fixture
def layers(slide):
    """The measured values, the known rates, a smoothed slide and noise."""
    pp.spatial_neighbors(slide)
    measured = log1p_cp10k(slide.X, np.asarray(slide.X.sum(axis=1)).ravel())
    graph = slide.obsp["spatial_connectivities"]
    slide.layers["same"] = measured
    slide.layers["rates"] = np.log1p(1e4 * slide.layers["rate"])
    slide.layers["smooth"] = np.asarray((graph @ (graph @ measured)) / 36, dtype=np.float32)
    slide.layers["noise"] = np.random.default_rng(0).random(slide.shape).astype(np.float32)
    return slide


def test_nothing_changes_where_nothing_was_done(layers):
    table = metrics.do_no_harm(layers, "same", "domain")
    np.testing.assert_allclose(table["change"], 0, atol=1e-6)
    assert list(table.index) == ["domain ARI", "variance ratio", "Moran's I", "gene-gene correlation"]
    assert list(table.columns) == ["before", "after", "change", "before_sd", "after_sd"]


def test_the_truth_helps_and_noise_harms(layers):
    assert metrics.do_no_harm(layers, "rates", "domain").loc["domain ARI", "change"] > 0.1
    assert metrics.do_no_harm(layers, "noise", "domain").loc["domain ARI", "change"] < -0.05


def test_smoothing_is_seen(layers):
    table = metrics.do_no_harm(layers, "smooth")
    assert "domain ARI" not in table.index
    assert table.loc["variance ratio", "after"] < 0.5
    assert table.loc["Moran's I", "change"] > 0.3
    assert table.loc["gene-gene correlation", "change"] > 0.1


def test_morans_i_is_squidpys(layers):
    import squidpy as sq

    expected = sq.gr.spatial_autocorr(
        layers, mode="moran", layer="same", corr_method=None, copy=True, show_progress_bar=False
    )
    found = metrics.do_no_harm(layers, "same").loc["Moran's I", "before"]
    assert found == pytest.approx(expected["I"].mean(), rel=1e-4)


def test_what_the_model_was_given_is_read_from_the_record(layers):
    expected = metrics.do_no_harm(layers, "same")
    layers.layers["counts"], layers.X = layers.X, None
    layers.obsp["graph"] = layers.obsp.pop("spatial_connectivities")
    layers.uns["same"] = {"setup": {"layer": "counts", "graph_key": "graph"}}
    assert metrics.do_no_harm(layers, "same").equals(expected)
    layers.uns["same"] = {}
    with pytest.raises(KeyError, match="'spatial_connectivities' not found"):
        metrics.do_no_harm(layers, "same", counts_layer="counts")


def test_a_library_of_genes_that_are_gone_is_refused(layers):
    layers.uns["same"] = {"registered_genes": np.asarray(layers.var_names, dtype=str)}
    assert metrics.do_no_harm(layers, "same").loc["variance ratio", "after"] == pytest.approx(1)
    some = layers[:, :10].copy()
    with pytest.raises(ValueError, match="50 of the 60 genes whose counts were the library.*size_factor_key"):
        metrics.do_no_harm(some, "same")
    some.obs["depth"] = np.asarray(layers.X.sum(axis=1)).ravel()
    found = metrics.do_no_harm(some, "same", size_factor_key="depth")
    assert found.loc["variance ratio", "after"] == pytest.approx(1, abs=1e-5)


def test_correlation_is_numpys(layers):
    correlation = np.abs(np.corrcoef(layers.layers["same"].T))
    np.fill_diagonal(correlation, 0)
    found = metrics.do_no_harm(layers, "same").loc["gene-gene correlation", "before"]
    assert found == pytest.approx(correlation.sum() / (60 * 59), rel=1e-4)


def test_spots_without_a_label_are_left_out(layers):
    labels = layers.obs["domain"].astype(object)
    labels.iloc[:40] = np.nan
    layers.obs["labels"] = labels
    table = metrics.do_no_harm(layers, "rates", "labels")
    part = layers[40:].copy()
    assert table.loc["domain ARI", "after"] == metrics.do_no_harm(part, "rates", "labels").loc["domain ARI", "after"]


def test_slides_are_kept_apart(layers):
    """A difference between slides is no spatial structure."""
    layers.obs["half"] = np.repeat(["a", "b"], 75)
    layers.layers["step"] = layers.layers["noise"] + 5 * (layers.obs["half"] == "b").to_numpy()[:, None]
    apart = metrics.do_no_harm(layers, "step", sample_key="half").loc["Moran's I", "after"]
    assert abs(apart) < 0.1 < metrics.do_no_harm(layers, "step").loc["Moran's I", "after"]


def test_says_and_changes_nothing(layers, capsys, recwarn):
    before = layers.copy()
    metrics.do_no_harm(layers, "rates", "domain")
    assert capsys.readouterr().out == ""
    assert not [w for w in recwarn if "lgdist_scvi" in str(w.filename)]
    assert set(layers.layers) == set(before.layers)
    assert (layers.X != before.X).nnz == 0


def test_errors_name_the_remedy(layers):
    with pytest.raises(KeyError, match=r"'completed' not found in adata.layers.*model.complete\(adata\)"):
        metrics.do_no_harm(layers)
    with pytest.raises(KeyError, match="labels_key names the tissue domains"):
        metrics.do_no_harm(layers, "same", "nothing")
    layers.obs["one"] = "a"
    with pytest.raises(ValueError, match="1 different labels in 150 labelled spots"):
        metrics.do_no_harm(layers, "same", "one")


def test_counts_that_are_gone_and_genes_of_other_names(layers):
    layers.uns["same"] = {"genes": np.asarray(layers.var_names[:5], dtype=str)}
    assert metrics.do_no_harm(layers, "same").loc["variance ratio", "after"] == pytest.approx(1)
    renamed = layers.copy()
    renamed.var_names = [f"symbol {i}" for i in range(renamed.n_vars)]
    with pytest.raises(ValueError, match=r"none of the 5 genes .*were renamed .*uns\['same'\]"):
        metrics.do_no_harm(renamed, "same")
    layers.X = np.log1p(layers.X.toarray() / 3)
    with pytest.raises(ValueError, match=r"not whole numbers; .*\(counts_layer="):
        metrics.do_no_harm(layers, "same")
