from __future__ import annotations

import os
import time

import pandas as pd
import pytest
from benchmarks.__main__ import main
from benchmarks._results import Results, code_digest, read
from benchmarks.run import in_processes

import lgdist_scvi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two slides: one that is large enough, and one that is not."""
    folder = tmp_path_factory.mktemp("data")
    for name, n_spots in (("large", 510), ("small", 60)):
        adata = lgdist_scvi.datasets.simulated_visium(n_spots=n_spots, n_genes=300, seed=0)
        adata.X = adata.X * 6  # what is tested here is not the noise
        del adata.layers["rate"]
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def test_a_run_stores_resumes_and_reports(folder, tmp_path, capsys):
    output = tmp_path / "results" / "mine"
    arguments = [
        "run",
        "--data",
        str(folder),
        "--output",
        str(output),
        "--seeds",
        "0",
        "--workers",
        "2",
        "--threads",
        "1",
    ]
    arguments += ["--protocols", "entry", "thinning", "--methods"]

    def run(*more: str) -> tuple[pd.DataFrame, str]:
        main([*arguments, *more])
        return read(output).set_index(["file", "protocol", "method"]).sort_index(), capsys.readouterr().out

    rows, text = run("gene_mean", "pca")
    assert "small, entry: left out" in text and "fewer than 500" in text
    done = rows.loc["large"]
    # PCA has no answer where entries are missing
    assert list(done.index) == [("entry", "gene_mean"), ("thinning", "gene_mean"), ("thinning", "pca")]
    assert done["failed"].isna().all() and (done["memory_mib"] > 50).all() and (done["threads"] == 1).all()
    assert done[["date", "hidden", "code", "versions", "machine"]].notna().all(axis=None)
    assert sorted(path.name for path in output.iterdir()) == ["entry_seed0.csv", "thinning_seed0.csv", "versions.csv"]
    versions = pd.read_csv(output / "versions.csv", dtype=str).set_index("versions")
    assert versions.loc[done["versions"].iloc[0], "torch"]
    assert f"| gene mean | {done.loc[('entry', 'gene_mean'), 'mse']:.4f}".replace("0.", ".") in text

    # a row of older code stays until there is another in its place
    table = pd.read_csv(output / "thinning_seed0.csv")
    table.loc[table["method"] == "gene_mean", "code"] = "older"
    table.to_csv(output / "thinning_seed0.csv", index=False)
    again, text = run("gene_mean", "neighbor_mean")
    assert "3 results to obtain" in text
    assert len(again.loc["large"]) == 5
    assert again.loc[("large", "thinning", "gene_mean"), "code"] == code_digest("gene_mean")
    kept = [("large", "entry", "gene_mean"), ("large", "thinning", "pca")]
    pd.testing.assert_frame_equal(again.loc[kept, rows.columns], rows.loc[kept])
    # the same hidden data for all
    assert again.loc["large"].groupby("protocol")["hidden"].nunique().eq(1).all()
    assert "0 results to obtain" in run("gene_mean")[1]
    assert "2 results to obtain" in run("gene_mean", "--again")[1]


def test_one_failure_stops_no_other():
    calls = [("error", int, ("x",)), ("ended", os._exit, (3,)), ("slow", time.sleep, (300,)), ("fine", abs, (-1,))]
    outcomes = {tag: (state, answer) for tag, state, answer in in_processes(calls, workers=4, time_limit=5)}
    assert outcomes["fine"] == ("done", 1)
    assert outcomes["error"] == ("failed", "ValueError: invalid literal for int() with base 10: 'x'")
    assert outcomes["ended"] == ("failed", "its process ended without an answer (out of memory?)")
    assert outcomes["slow"] == ("failed", "TimeoutError: took longer than the limit of 5 s")


def test_rows_that_failed_or_are_obsolete_are_run_again(tmp_path):
    results = Results(tmp_path)
    row = {"file": "f", "protocol": "entry", "seed": 0, "method": "knn", "code": code_digest("knn"), "mse": 0.1}
    for more in ({}, {"method": "no more"}, {"method": "ridge"}, {"method": "pca", "failed": "ValueError: no"}):
        results.add({**row, **more})
    resumed = Results(tmp_path)
    assert len(resumed.rows) == 4
    assert resumed.has("f", "entry", 0, "knn") and not resumed.has("f", "entry", 1, "knn")
    assert not any(resumed.has("f", "entry", 0, method) for method in ("no more", "ridge", "pca"))
    assert not Results(tmp_path, again=True).has("f", "entry", 0, "knn")
    table = pd.read_csv(tmp_path / "entry_seed0.csv")
    table.assign(versions="000000").to_csv(tmp_path / "entry_seed0.csv", index=False)
    assert not Results(tmp_path).has("f", "entry", 0, "knn")


def test_digests_that_look_like_numbers_stay_text(tmp_path):
    row = {
        "file": "151673",
        "protocol": "entry",
        "seed": 0,
        "method": "knn",
        "code": "12e4567890",
        "hidden": "012345678901",
    }
    Results(tmp_path).add(row)
    assert read(tmp_path)[["file", "code", "hidden"]].iloc[0].tolist() == ["151673", "12e4567890", "012345678901"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "is not a table of results"), ("a,b\n1,2\n", "has no column 'file'")]
)
def test_only_results_are_read(tmp_path, text, message):
    (tmp_path / "entry_seed0.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
