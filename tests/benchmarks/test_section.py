from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from benchmarks import _image_peers, _sections
from benchmarks.__main__ import main
from benchmarks._image_peers import METHODS
from benchmarks._results import read
from benchmarks.section import label, markdown
from scipy import sparse

from lgdist_scvi import LGDiST, pp
from lgdist_scvi.model._stages import DiffusionStage, VAEStage
from lgdist_scvi.model._stem_stages import NetworkStage

N_SPOTS, N_GENES = 100, 40


def _simulated() -> ad.AnnData:
    """Four sections on which the first of eight image features is the logarithm of half of the genes' rates."""
    generator, samples = np.random.default_rng(0), np.repeat(["S1", "S2", "S3", "S4"], N_SPOTS)
    features = generator.normal(size=(len(samples), 8)).astype(np.float32)
    slope = np.where(np.arange(N_GENES) % 2, 0.8, 0)
    rate = np.exp(features[:, :1] * slope + generator.normal(size=N_GENES))
    depth = generator.choice([1, 6], size=len(samples)) * 300
    counts = generator.poisson(rate / rate.sum(axis=1, keepdims=True) * depth[:, None])
    names = [f"spot{i}" for i in range(len(samples))]
    adata = ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), pd.DataFrame({"sample": samples}, index=names))
    side = int(np.sqrt(N_SPOTS))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * 100.0
    adata.obsm["spatial"] = np.tile(grid, (4, 1))
    adata.obs["total_counts"] = counts.sum(axis=1)
    adata.uns["features"], adata.layers["completed"] = features, np.log1p(1e4 * rate / rate.sum(axis=1, keepdims=True))
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four sections with an image each, and in the folder ``cache`` what the command makes first."""
    folder, adata = tmp_path_factory.mktemp("sections"), _simulated()
    cache = folder / "cache"
    cache.mkdir()
    features, completed = adata.uns.pop("features"), adata.layers.pop("completed")
    for name in ("S1", "S2", "S3", "S4"):
        (folder / f"tiny_{name}_he.jpg").touch()
    path = folder / "tiny_S.h5ad"
    adata.write_h5ad(path)
    np.savez(
        cache / "features_tiny_S.npz", spots=adata.obs_names.to_numpy(str), X_image=features, X_stain=features[:, ::-1]
    )
    pp.spatial_neighbors(adata, sample_key="sample", n_neighbors=4)
    adata.var["scored"] = np.arange(N_GENES) < 30
    for name in ("S1", "S2", "S3", "S4"):
        shown = (adata.obs["sample"] != name).to_numpy()[:, None]
        adata.layers["completed"] = np.where(shown, completed, np.nan).astype(np.float32)
        adata.write_h5ad(_sections.prepared_path(path, name, cache, 0))
    return folder


@pytest.fixture
def held_out(folder):
    """Function that holds out the section S2."""
    path, cache = folder / "tiny_S.h5ad", folder / "cache"
    features = _sections.features(path, {}, cache)
    prepared = _sections.prepare(path, "S2", cache, 0)
    return lambda *arguments: _sections.hold_out(prepared, features, "S2", *arguments)


def test_nothing_of_the_held_out_section_is_shown_but_its_image(held_out, folder):
    data = held_out()
    assert data.held_out.X is None and not list(data.held_out.layers) and list(data.held_out.obs) == ["sample"]
    assert set(data.held_out.obsm) == {"spatial", "X_image", "X_stain", "X_image_context", "X_stain_context"}
    assert set(data.section) == {"S1", "S3", "S4"} and data.training.n_obs == 3 * N_SPOTS
    assert not np.isnan(data.training.layers["completed"]).any()
    # the neighbours' mean of a spot inside, of its own section
    neighbors = data.held_out.obsp["spatial_connectivities"][44].indices
    assert len(neighbors) == 4
    pooled = held_out(None, None, 0, False)
    expected = pooled.held_out.obsm["X_image"][neighbors].mean(axis=0)
    np.testing.assert_allclose(pooled.held_out.obsm["X_image_context"][44], expected, rtol=1e-5)
    # a section that is stained differently has the same features
    for part in (data.held_out, data.training[data.section == "S3"]):
        np.testing.assert_allclose(part.obsm["X_image_context"].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(part.obsm["X_image"].std(axis=0), 1, rtol=1e-4)


def test_genes_do_not_depend_on_the_held_out_section():
    adata = _simulated()
    chosen = _sections.choose_genes(adata, "S2")
    other = adata.copy()
    counts = other.X.toarray()
    counts[adata.obs["sample"] == "S2"] = np.random.default_rng(1).permutation(counts[adata.obs["sample"] == "S2"])[
        ::-1
    ]
    counts[adata.obs["sample"] == "S2", :5] = 0
    other.X = sparse.csr_matrix(counts)
    again = _sections.choose_genes(other, "S2")
    pd.testing.assert_frame_equal(chosen.var, again.var)
    assert chosen.var["scored"].sum() > 20


@pytest.mark.parametrize(
    "method",
    ["ridge_raw", "ridge_pca", "ridge_completed", "context_raw", "knn_raw", "knn_completed", "poisson_raw",
     "poisson_completed", "mlp_raw", "mlp_completed"],
)  # fmt: skip
def test_peers_find_what_the_patch_says_and_nothing_in_others(held_out, method):
    run = METHODS[method].run
    data, shuffled = held_out(), held_out("shuffled")
    d2 = data.score(run(data, 0))["d2"]
    assert d2 > (0.15 if "knn" in method else 0.2)
    assert abs(shuffled.score(run(shuffled, 0))["d2"]) < 0.05  # few spots


def test_completed_targets_are_those_of_the_layer(held_out):
    data = held_out()
    data.training.layers["completed"] = data.training.layers["completed"][:, ::-1].copy()
    shown = METHODS["ridge_completed"].run(held_out(), 0)
    assert not np.allclose(METHODS["ridge_completed"].run(data, 0), shown, rtol=0.05)


def test_depth_correlates_and_explains_nothing(held_out):
    """Here the depth says nothing of rates, so that the tuned predictor gives the gene means; the score of others says the same."""
    data = held_out()
    rates = METHODS["depth"].run(data, 0)
    np.testing.assert_allclose(rates, np.broadcast_to(data.gene_mean, rates.shape), rtol=1e-6)
    scores = data.score(data.gene_mean * np.sqrt(data.measured_library / data.measured_library.mean())[:, None])
    assert scores["pcc_depth"] > 0.1
    assert scores["pcc_gene"] == pytest.approx(scores["pcc_depth"], abs=0.15)
    assert abs(scores["pcc_given_depth"]) < 0.1 < data.score(METHODS["ridge_raw"].run(data, 0))["pcc_given_depth"]
    assert data.score(METHODS["gene_mean"].run(data, 0))["d2"] == pytest.approx(0, abs=1e-12)


def _thinned(data: _sections.Sections, share: float) -> _sections.Sections:
    """The same sections with a share of their molecules."""
    rng, training = np.random.default_rng(0), data.training.copy()
    training.X, counts = (
        sparse.csr_matrix(rng.binomial(part.toarray().astype(int), share), dtype=np.float32)
        for part in (training.X, data._counts if sparse.issparse(data._counts) else sparse.csr_matrix(data._counts))
    )
    training.obs["total_counts"] = np.maximum(np.asarray(training.X.sum(axis=1)).ravel(), 1)
    library = np.maximum(np.round(data.measured_library * share), 1.0)
    return _sections.Sections(training, data.held_out, data.scored, counts, library)


def test_the_misleading_score_is_won_by_filling_zeros(held_out):
    """A prediction that lies at the values that are not zero has less error there than the gene means, and is worse."""
    data = _thinned(held_out(), 0.05)  # a few molecules of most genes, as a real slide has
    honest = data.score(METHODS["gene_mean"].run(data, 0))
    log1p = np.log1p(1e4 * data.counts / data.library[:, None])
    filled = np.expm1(log1p.sum(axis=0) / (log1p > 0).sum(axis=0)) / 1e4
    filler = data.score(np.broadcast_to(filled, (data.held_out.n_obs, len(filled))))
    assert filler["mse_nonzero"] < 0.9 * honest["mse_nonzero"]
    assert filler["d2"] < -0.05 and filler["mse"] > honest["mse"]


def test_genes_are_brought_to_their_means(held_out):
    data = held_out()
    everywhere = np.full(data.training.n_obs, True)
    rates = np.random.default_rng(0).uniform(size=(data.training.n_obs, 30))
    scaled = rates * _image_peers._to_means(data, rates, everywhere)
    np.testing.assert_allclose(data.library @ scaled, data.counts.sum(axis=0))


def test_no_share_is_predicted_above_those_seen(held_out):
    """Extrapolated from few spots, an exponential has no bound."""
    data = held_out(None, 25, 0)

    def predictor(fitted, settings):
        rates = np.broadcast_to(data.counts[fitted].sum(axis=0) / data.library[fitted].sum(), data.counts.shape)
        for _ in settings:
            yield rates, np.full((data.held_out.n_obs, 30), 1e9)

    shares = data.counts / data.library[:, None]
    assert (_image_peers.tuned(data, predictor, [None]) <= shares.max(axis=0) + 1e-12).all()


def test_controls_move_patches_within_their_section(held_out):
    data = held_out(None, None, 0, False)
    for control in ("shuffled", "shifted"):
        moved = held_out(control, None, 0, False)
        for part, other in ((data.training, moved.training), (data.held_out, moved.held_out)):
            assert not (part.obsm["X_image"] == other.obsm["X_image"]).all(axis=1).any() or control == "shuffled"
            for name in part.obs["sample"].unique():
                own = {row.tobytes() for row in part.obsm["X_image"][part.obs["sample"] == name]}
                assert {row.tobytes() for row in other.obsm["X_image"][other.obs["sample"] == name]} <= own
        np.testing.assert_array_equal(data.counts, moved.counts)
    # three spots to the right, and at the right edge to the left: the grid has ten columns
    np.testing.assert_array_equal(moved.held_out.obsm["X_image"][[40, 49]], data.held_out.obsm["X_image"][[43, 46]])


def test_few_pairs_are_without_completed_targets(held_out):
    data = held_out(None, 25, 0)
    assert data.training.n_obs == 25 and "completed" not in data.training.layers
    assert data.score(METHODS["poisson_raw"].run(data, 0))["d2"] > 0.05


def test_stem_learns_from_few_pairs_alone(held_out, monkeypatch):
    """Its completed targets are of an LGDiST of these pairs, some of which have no neighbour among them."""
    fitted, train = [], LGDiST.train
    monkeypatch.setattr(VAEStage, "n_steps", 4)
    monkeypatch.setattr(DiffusionStage, "n_steps", 4)
    monkeypatch.setattr(NetworkStage, "n_steps", 4)
    monkeypatch.setattr(
        LGDiST, "train", lambda self, **kwargs: fitted.append(self.adata.n_obs) or train(self, **kwargs)
    )
    data = held_out(None, 25, 0)
    assert (np.asarray(data.training.obsp["spatial_connectivities"].sum(axis=1)).ravel() == 0).sum() > 3
    method = METHODS["stem_completed"]
    rates, spread = method.run(data, 0)
    assert method.few_pairs and METHODS["stem_raw"].few_pairs and not METHODS["ridge_completed"].few_pairs
    assert fitted == [25]
    assert rates.shape == (N_SPOTS, 30) and np.isfinite(rates).all() and np.isfinite(list(spread.values())).all()
    monkeypatch.setattr(LGDiST, "train", None)  # of the completed layer, or of counts, no LGDiST is fitted
    METHODS["stem_raw"].run(data, 0)
    METHODS["stem_completed"].run(held_out(), 0)


def test_the_paper_s_transformer_is_one_of_the_methods(held_out):
    """Of the scored genes, without few pairs."""
    rates, method = METHODS["stem_paper"].run(held_out(), 0), METHODS["stem_paper"]
    assert rates.shape == (N_SPOTS, 30) and np.isfinite(rates).all()
    assert not method.few_pairs and label("stem_paper") == "Stem, gene-space transformer of the paper, small"


def test_the_command_stores_resumes_and_reports(folder, tmp_path, capsys):
    arguments = ["section", "--data", str(folder), "--file", "tiny_S", "--output", str(tmp_path)]
    arguments += ["--cache", str(folder / "cache")]
    methods = [
        "gene_mean",
        "ridge_raw",
        "ridge_completed",
        "everything_completed",
        "everything_completed_shuffled",
        "everything_completed_shifted",
    ]
    with pytest.raises(SystemExit):
        main([*arguments, "--report"])
    assert "holds no results of sections" in capsys.readouterr().err
    main([*arguments, "--sections", "S1", "S2", "--protocols", "section", "pairs", "--methods", *methods])
    text, rows = capsys.readouterr().out, read(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs_seed0.csv", "section_seed0.csv", "versions.csv"]
    whole = rows[rows["protocol"] == "section"].set_index(["file", "method"])
    assert len(whole) == 12 and whole["failed"].isna().all() and whole["d2"].notna().all()
    # the same data for all methods but those whose patches are moved
    hidden = whole.loc["tiny_S S1"]["hidden"]
    assert hidden[["gene_mean", "ridge_raw", "ridge_completed"]].nunique() == 1 and hidden.nunique() == 3
    assert set(rows.loc[rows["protocol"] == "pairs", "method"]) == {"gene_mean", "ridge_raw"}
    assert set(rows.loc[rows["file"] == "tiny_S S2 50", "n_spots"]) == {50}
    d2 = whole["d2"].groupby("method").mean()
    assert f"| ridge, own patch, raw | {whole.loc[('tiny_S S1', 'ridge_raw'), 'd2']:.3f}".replace(" 0.", " .") in text
    assert (
        f"| {d2['ridge_raw']:.3f} | {d2['ridge_completed']:.3f} |".replace(" 0.", " .") in text
    )  # raw against completed
    assert "misleading (non-zero only)" in text and "share left, shuffled" in text and "held out: S1, S2" in text
    # of all spots the pairs' table shows the rows of the same sections
    few = text.split("D2 by the number of training spots")[1]
    assert few.splitlines()[0].endswith("| 25 | 50 | 100 | 200 | all |")
    assert [line.split("|")[-2].strip("* ") for line in few.splitlines()[2:]] == [
        f"{d2[name]:.3f}".replace("0.", ".", 1) for name in ("gene_mean", "ridge_raw")
    ]
    without = rows[(rows["protocol"] == "pairs") | (rows["file"] == "tiny_S S1")]
    assert (
        markdown(without).split("D2 by the number")[1].splitlines()[2].endswith("| – |")
    )  # not of half of the sections
    # stored rows are not run again
    main([*arguments, "--sections", "S1", "--methods", *methods])
    assert "0 results to obtain" in capsys.readouterr().out
    main([*arguments, "--report"])
    assert capsys.readouterr().out.strip() == markdown(read(tmp_path)).strip()


def test_a_folder_without_images_is_refused_by_name(folder, tmp_path, capsys):
    _simulated()[:, :3].copy().write_h5ad(tmp_path / "bare_S.h5ad")
    for arguments, said in (
        (["--data", str(tmp_path), "--file", "bare_S"], "images beside it of 0 sections"),
        (["--data", str(tmp_path), "--file", "absent"], "holds no absent.h5ad"),
        (["--data", str(folder), "--file", "tiny_S", "--sections", "S9"], "not of ['S9']"),
    ):
        with pytest.raises(SystemExit):
            main(["section", *arguments, "--output", str(tmp_path / "results")])
        assert said in capsys.readouterr().err


def test_every_method_has_a_name_in_words():
    names = [label(method) for method in METHODS]
    assert len(set(names)) == len(names) and not any("_" in name for name in names)


def test_another_stain_is_that_of_the_held_out_section_alone(folder):
    path, cache = folder / "tiny_S.h5ad", folder / "cache"
    features = _sections.features(path, {}, cache)
    other = {key: values + (1.0 if key != "spots" else "") for key, values in features.items() if key != "spots"}
    prepared = _sections.prepare(path, "S2", cache, 0)
    plain, stained = (
        _sections.hold_out(prepared, features, "S2", control, standardized=False, stained=other)
        for control in (None, "stained")
    )
    np.testing.assert_array_equal(stained.training.obsm["X_image"], plain.training.obsm["X_image"])
    np.testing.assert_allclose(stained.held_out.obsm["X_image"], plain.held_out.obsm["X_image"] + 1.0, rtol=1e-6)
    patch = np.full((1, 8, 8, 3), (170, 90, 160), dtype=np.uint8)
    from skimage.color import rgb2hed

    before, after = (rgb2hed(values)[0, 0, 0] for values in (patch, _sections._stained(patch)))
    np.testing.assert_allclose(after[:2] / before[:2], _sections.STAIN, rtol=0.1)
