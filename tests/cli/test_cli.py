from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from lgdist_scvi import LGDiST, datasets, demo, pl
from lgdist_scvi.cli.__main__ import main

QUICK = ["--max-epochs", "1"]


@pytest.fixture
def beads(tmp_path) -> Path:
    """Slide-seq as CELLxGENE stores it: `uns["spatial"]` holds no slides."""
    adata = datasets.simulated_visium(n_spots=80, n_genes=24, seed=0)
    adata.layers.clear()
    adata.uns = {"spatial": {"is_single": True}}
    adata.write_h5ad(tmp_path / "beads.h5ad")
    return tmp_path / "beads.h5ad"


@pytest.fixture
def small(monkeypatch):
    """Make models small."""
    monkeypatch.setattr("lgdist_scvi.cli._steps.LGDiST", _Small)


class _Small:
    """Stands before the constructor only: setup and all else are LGDiST's."""

    setup_anndata = LGDiST.setup_anndata

    def __new__(cls, adata):
        return LGDiST(adata, n_hidden=16, n_latent=4, n_denoiser_hidden=16, n_denoiser_layers=1)


RESULTS = {"scores.csv", "scores.md", "genes.csv", "completed.h5ad"}
FIGURES = {"completion.png", "training.png", "scores.png", "held_out.png"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.usefixtures("small")
def test_demo(beads, tmp_path, capsys):
    folder = tmp_path / "results"
    assert demo.main(["--input", str(beads), "--output", str(folder), *QUICK]) == 0
    assert names(folder) == RESULTS | FIGURES
    adata = ad.read_h5ad(folder / "completed.h5ad")
    assert {"completed", "completed_std", "completed_provenance"} <= set(adata.layers)
    table = pd.read_csv(folder / "scores.csv", index_col="method")
    assert set(table.index) == {"LGDiST", "Poisson NMF", "soft-impute", "neighbor mean", "gene mean"}
    genes = pd.read_csv(folder / "genes.csv", index_col="gene")
    np.testing.assert_array_equal(adata.var["predictable"], genes["predictable"].loc[adata.var_names])
    out = capsys.readouterr().out
    report = (folder / "scores.md").read_text()
    assert report in out and report.splitlines()[0].startswith("| method")
    assert "Done in" in out and "completion.png" in out


@pytest.mark.usefixtures("small")
def test_results_are_there_before_any_figure_and_whatever_it_does(beads, tmp_path, monkeypatch, capsys):
    folder, seen = tmp_path / "results", []
    folder.mkdir()
    for name in ("completion.png", "scores.csv", "notes.txt"):  # of an earlier run, and of somebody else
        (folder / name).write_text("earlier")

    def broken(*_, **__):
        seen.append(names(folder))
        raise RuntimeError("no such colour\nand more")

    monkeypatch.setattr(pl, "completion", broken)
    assert demo.main(["--input", str(beads), "--output", str(folder), *QUICK]) == 0
    assert seen == [RESULTS | {"notes.txt"}]
    assert names(folder) == RESULTS | FIGURES - {"completion.png"} | {"notes.txt"}
    assert ad.read_h5ad(folder / "completed.h5ad").n_obs == 80
    assert "Note: completion.png could not be drawn (RuntimeError: no such colour)." in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_interrupted(beads, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LGDiST, "train", interrupted)
    assert main(["complete", str(beads), str(tmp_path / "out.h5ad")]) == 130
    assert names(tmp_path) == {"beads.h5ad"} and "Interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_complete(beads, tmp_path, monkeypatch, capsys):
    adata = ad.read_h5ad(beads)
    adata.layers["counts"], adata.layers["seen"] = adata.X.copy(), np.ones(adata.shape, dtype=bool)
    adata.X = adata.X.log1p()
    adata.layers["seen"][:, 0] = False
    adata.write_h5ad(beads)
    out = tmp_path / "new" / "out.h5ad"
    options = ["--layer", "counts", "--mask-layer", "seen", "--observed", "model", "--n-genes", "20"]
    assert main(["complete", str(beads), str(out), *options, *QUICK]) == 0
    completed = ad.read_h5ad(out)
    assert names(out.parent) == {"out.h5ad"}
    assert completed.n_vars == 20
    assert completed.uns["completed"]["observed"] == "model"
    assert completed.uns["completed"]["setup"]["size_factor_key"] == "total_counts"
    assert not np.isin(completed.layers["completed_provenance"], (0, 4)).any()

    # the result of before stays whole, whatever happens while the new one is written
    before = out.read_bytes()

    def full_disk(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("lgdist_scvi.cli._steps.check_writable", lambda *_: None)
    monkeypatch.setattr(ad.AnnData, "write_h5ad", full_disk)
    with pytest.raises(OSError, match="no space left"):
        main(["complete", str(beads), str(out), *options, *QUICK])
    assert out.read_bytes() == before and names(out.parent) == {"out.h5ad"}


@pytest.mark.usefixtures("small")
def test_evaluate(beads, tmp_path, capsys):
    assert main(["evaluate", str(beads), "--output", str(tmp_path / "tables"), *QUICK]) == 0
    assert names(tmp_path / "tables") == RESULTS - {"completed.h5ad"}
    assert "| LGDiST" in capsys.readouterr().out


def test_one_sentence_before_any_training(beads, tmp_path, capsys, monkeypatch):
    def refuses(arguments: list[str], *sentence: str) -> None:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and error.count("\n") == 1
        for part in sentence:
            assert part in error

    monkeypatch.setattr(LGDiST, "train", lambda *_, **__: pytest.fail("training started"))
    out = str(tmp_path / "out.h5ad")
    refuses(["complete", str(tmp_path / "none.h5ad"), out], "there is no file or folder")
    refuses(["complete", str(beads), str(beads)], "would be written over")
    refuses(["complete", str(beads), str(tmp_path / "out.zarr")], "must end in .h5ad")
    refuses(["complete", str(beads), str(tmp_path)], "is a folder")
    refuses(["complete", str(beads), str(beads / "out.h5ad")], "is a file; name a folder")
    refuses(["complete", str(beads), out, "--mask-layer", "observed"], "'observed' not found in adata.layers")
    refuses(["complete", str(beads), out, "--spatial-key", "xy"], "pass --spatial-key")
    refuses(["demo", "--input", str(tmp_path / "none.h5ad"), "--output", str(tmp_path / "demo")], "there is no file")
    refuses(["demo", "--input", str(beads), "--output", str(beads)], "is a file; name a folder")
    adata = ad.read_h5ad(beads)
    adata.layers["completed"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "taken.h5ad")
    refuses(["complete", str(tmp_path / "taken.h5ad"), out], "would be written over; rename it first")
    adata.X = adata.X.log1p()
    del adata.layers["completed"]
    adata.write_h5ad(tmp_path / "log.h5ad")
    # the option is named as it is called here
    refuses(["demo", "--input", str(tmp_path / "log.h5ad"), "--output", str(tmp_path / "demo")], "(--layer;")
    assert not Path(out).exists()


def test_what_a_file_cannot_hold_is_refused_before_training(beads, tmp_path, monkeypatch, capsys):
    adata = ad.read_h5ad(beads)
    adata.uns["thing"] = object()
    monkeypatch.setattr(LGDiST, "train", lambda *_, **__: pytest.fail("training started"))
    monkeypatch.setattr(datasets, "read", lambda *_, **__: adata)
    assert main(["complete", str(beads), str(tmp_path / "out.h5ad")]) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert names(tmp_path) == {"beads.h5ad"}


def test_tables_of_spatialdata_are_named_by_an_option(tmp_path, capsys):
    import spatialdata as sd
    from spatialdata.models import TableModel

    tables = {name: TableModel.parse(datasets.simulated_visium(60, 20, seed=0)) for name in ("fine", "coarse")}
    for table in tables.values():
        table.uns = {}
        table.layers.clear()
    sd.SpatialData(tables=tables).write(tmp_path / "hd.zarr")
    assert main(["evaluate", str(tmp_path / "hd.zarr")]) == 1
    assert "has 2 tables ('coarse', 'fine'); pass --table" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "hd.zarr"), "--table", "other"]) == 1
    assert "'other' is not a table" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["paint"], ["complete", "in.h5ad"], ["demo", "--max-epochs", "0"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: lgdist" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["lgdist_scvi.cli", "lgdist_scvi.demo"])
def test_help_without_torch(module):
    """Help answers at once."""
    code = (
        "import runpy, sys; sys.argv = ['lgdist', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("0 False\n") and "--help" in result.stdout


def test_the_command_is_installed_under_its_name():
    import tomllib

    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["scripts"] == {"lgdist": "lgdist_scvi.cli.__main__:main"}
