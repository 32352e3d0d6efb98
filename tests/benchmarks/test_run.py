from __future__ import annotations

import json
import os
import time

import pytest
from benchmarks import __main__ as command
from benchmarks._record import Results, code_of, read
from benchmarks._run import in_processes

import lgdist_scvi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two slides: one that is large enough, and one that is not."""
    folder = tmp_path_factory.mktemp("data")
    for name, n_spots in (("large", 620), ("small", 60)):
        adata = lgdist_scvi.datasets.simulated_visium(n_spots=n_spots, n_genes=400, seed=0)
        adata.X = adata.X * 6  # what is tested here is not the noise
        del adata.layers["rate"]
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def _arguments(folder, output, *more: str) -> list[str]:
    shared = ["--data", str(folder), "--output", str(output), "--seeds", "0", "--workers", "1", "--threads", "1"]
    return [*shared, "--protocols", "entry", "thinning", *more]


def test_a_run_stores_resumes_and_reports(folder, tmp_path, capsys):
    output = tmp_path / "results" / "r.json"
    command.main(_arguments(folder, output, "--methods", "gene_mean", "pca"))
    text = capsys.readouterr().out
    assert "left out: small, entry" in text and "fewer than 500" in text
    document = read(output)
    assert [(r["protocol"], r["method"]) for r in document["results"]] == [
        ("entry", "gene_mean"),
        ("thinning", "gene_mean"),
        ("thinning", "pca"),  # has no answer where entries are missing
    ]
    for row in document["results"]:
        assert "failed" not in row and row["file"] == "large"
        assert row["seconds"] > 0 and row["memory_mib"] > 50 and row["threads"] == 1
        assert row["date"] and row["hidden"] and row["code"]
    assert document["versions"]["scvi-tools"] and document["cores"] == os.cpu_count()
    assert not list(output.parent.glob("*.partial"))
    assert "Poisson floor" in text and "Thinning, half" in text

    with pytest.raises(SystemExit):
        command.main(_arguments(folder, output, "--methods", "gene_mean"))
    assert "--resume" in capsys.readouterr().err

    document["results"][1]["code"] = "older"
    output.write_text(json.dumps(document))
    command.main(_arguments(folder, output, "--methods", "gene_mean", "neighbor_mean", "--resume"))
    assert "1 rows" in (text := capsys.readouterr().out) and "3 results to obtain, 2 there already" in text
    rows = {(row["protocol"], row["method"]): row for row in read(output)["results"]}
    assert len(rows) == 5
    assert rows["entry", "gene_mean"] == document["results"][0]
    assert rows["thinning", "gene_mean"]["code"] == code_of("gene_mean")
    # the same hidden data for all
    assert rows["entry", "gene_mean"]["hidden"] == rows["entry", "neighbor_mean"]["hidden"]

    command.main(_arguments(folder, output, "--methods", "neighbor_mean", "--overwrite", "--time-limit", "0.01"))
    document = read(output)
    assert [row["failed"][:11] for row in document["results"]] == ["took longer"] * 2
    assert "Failed:" in capsys.readouterr().out
    assert Results(output, resume=True).dropped == 2


def test_one_failure_stops_no_other():
    calls = [
        ("error", int, ("x",)),
        ("ended", os._exit, (3,)),
        ("slow", time.sleep, (300,)),
        ("fine", abs, (-1,)),
    ]
    outcomes = {tag: (state, answer) for tag, state, answer in in_processes(calls, workers=4, time_limit=3)}
    assert outcomes["fine"] == ("done", 1)
    assert outcomes["error"] == ("failed", "ValueError: invalid literal for int() with base 10: 'x'")
    assert outcomes["ended"] == ("failed", "its process ended without an answer (exit code 3)")
    assert outcomes["slow"] == ("failed", "took longer than the limit of 3 s")


def test_results_of_other_versions_are_dropped(tmp_path):
    path = tmp_path / "r.json"
    results = Results(path)
    row = {"file": "f", "protocol": "entry", "seed": 0, "method": "knn", "code": code_of("knn"), "mse": float("nan")}
    results.add(row)
    results.add({**row, "method": "a method that is no more"})
    resumed = Results(path, resume=True)
    assert resumed.dropped == 1 and resumed.has(row) and not resumed.has({**row, "seed": 1})
    assert resumed.rows[0]["mse"] is None
    document = read(path)
    document["versions"]["torch"] = "0"
    path.write_text(json.dumps(document))
    assert Results(path, resume=True).rows == []


def test_only_results_are_read(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not a file of results"):
        read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        read(path)
