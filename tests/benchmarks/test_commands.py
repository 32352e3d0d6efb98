"""The commands beside the benchmark itself run from end to end and print what they promise."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.__main__ import COMMANDS, main

from lgdist_scvi import datasets
from lgdist_scvi.model._stages import DiffusionStage, VAEStage


@pytest.fixture(autouse=True)
def _loud(monkeypatch):
    """Commands silence the libraries of their process, which here is that of the tests."""
    for name in ("cost", "guards", "steps"):
        monkeypatch.setattr(f"benchmarks.{name}.quiet", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one simulated slide, "small"."""
    folder = tmp_path_factory.mktemp("slides")
    adata = datasets.simulated_visium(n_spots=120, n_genes=60, seed=0)
    adata.X = adata.X * 4  # no spot below 200 counts
    adata.obs["kind"] = (adata.obsm["spatial"][:, 0] > adata.obsm["spatial"][:, 0].mean()).astype(str)
    del adata.layers["rate"]
    adata.write_h5ad(folder / "small.h5ad")
    return folder


def number(text: str, pattern: str) -> float:
    """The number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(("part", "steps"), [("lgdist", (4, 4)), ("stem", (2, 2))])
def test_cost(part, steps, capsys, monkeypatch):
    """A training is its stages and the rest."""
    for stage in (VAEStage, DiffusionStage):
        monkeypatch.setattr(stage, "n_steps", 8)  # of the LGDiST that finds Stem's targets
    main(["cost", "--parts", part, "--spots", "150", "--stem-spots", "120", "--genes", "40", "--epochs", "2"])
    text = capsys.readouterr().out
    total = number(text, r"train: ([\d.]+) s")
    parts = re.findall(r"stage \w+: ([\d.]+) s, (\d+) steps", text)
    assert tuple(int(n) for _, n in parts) == steps
    rest = number(text, r"calibration: ([\d.]+) s")
    assert sum(float(seconds) for seconds, _ in parts) + rest == pytest.approx(total, abs=0.3)
    assert re.search(r"posterior mean, median: [\d,]+ spots per second", text)
    assert text.count("posterior mean: ") == 5


def test_cost_of_features(capsys, monkeypatch):
    """A missing encoder is said, and does not end the command."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    main(["cost", "--parts", "features", "--patches", "6"])
    text = capsys.readouterr().out
    assert re.search(r"6 patches, stain: [\d.]+ s, peak memory so far [\d.]+ GiB", text)
    assert re.search(r"6 patches, default encoders: skipped, .*pip install \"lgdist-scvi\[images\]\"", text)


def test_steps(folder, capsys):
    arguments = ["--files", "small", "--protocols", "thinning", "--epochs", "1", "--steps", "2", "10"]
    main(["steps", "--data", str(folder), *arguments])
    rows = {
        int(line.split()[0]): line.split()
        for line in capsys.readouterr().out.splitlines()
        if line[:2].strip().isdigit()
    }
    assert list(rows) == [2, 10]
    assert all(float(value) == 0 for value in rows[10][5:]) and rows[2][1:4] != rows[10][1:4]


def test_guards(folder, capsys):
    main(["guards", "--data", str(folder), "--files", "small", "--labels", "kind", "--epochs", "1", "--controls"])
    text = capsys.readouterr().out
    for name in ("domain ARI", "variance ratio", "skill from neighbors alone", "Moran's I of Poisson genes"):
        assert name in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert import_module(f"benchmarks.{command}").__doc__.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guards", "--data", "nowhere"], "nowhere is not a folder; name the folder of .h5ad files with --data"),
        (["run", "--data", ".", "--files", "absent"], "holds no absent.h5ad"),
        (["report", "nowhere"], "nowhere holds no results; python -m benchmarks run makes some"),
    ],
)
def test_what_is_missing_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_processes(folder, tmp_path, capsys):
    """One process and two are scored on the same hidden molecules."""
    main(["processes", "--data", str(folder), "--files", "small", "--seeds", "0", "--methods", "one", "two", "--epochs", "1", "--output", str(tmp_path)])  # fmt: skip
    rows = pd.read_csv(tmp_path / "processes_seed0.csv")
    assert list(rows["method"]) == ["one", "two"] and "failed" not in rows
    assert rows["hidden"].nunique() == 1 and rows["d2"].between(-1, 1).all() and (rows["workers"] == [1, 2]).all()
    assert "seconds" in capsys.readouterr().out
