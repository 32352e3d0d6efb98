from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from benchmarks import _bins, _results, scale
from benchmarks.__main__ import main
from benchmarks.run import sentence

from lgdist_scvi import pp

SMALL = "scale --spots 120 --genes 30 --epochs 1 --threads 1".split()


@pytest.fixture
def _here(monkeypatch):
    """Steps run in this process, whose imports are done; one that fails is told as one of another process."""

    def here(calls):
        for tag, function, arguments in calls:
            try:
                yield tag, "done", function(*arguments)
            except Exception as error:  # noqa: BLE001
                yield tag, "failed", sentence(error)

    monkeypatch.setattr(scale, "in_processes", here)
    monkeypatch.setattr(scale, "quiet", lambda: None)


def test_simulated_bins(tmp_path, monkeypatch):
    monkeypatch.setattr(_bins, "_MOLECULES", 1000)
    drawn, draw = [], _bins._counts

    def watched(*args, block_info):
        block = draw(*args, block_info=block_info)
        drawn.append(block.shape[0])
        return block

    monkeypatch.setattr(_bins, "_counts", watched)
    _bins.write_slide(tmp_path / "a.zarr", 600, 50, 20)
    assert max(drawn) <= 50 and len(drawn) >= 12
    adata = ad.read_zarr(tmp_path / "a.zarr")
    assert adata.shape == (600, 50) and adata.X.format == "csr" and adata.X.dtype == np.float32
    lazy = ad.experimental.read_lazy(tmp_path / "a.zarr")
    assert (lazy.X.compute() != adata.X).nnz == 0
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    assert total.mean() == pytest.approx(20, rel=0.06) and total.std() > 7  # wider than Poisson
    pp.spatial_neighbors(adata)
    assert list(adata.uns["spatial_neighbors"]["params"]["geometry"]) == ["square"]
    assert not adata.obs.duplicated(["array_row", "array_col"]).any()
    # what domains express differs by more than chance
    means = np.stack(
        [np.asarray(adata[adata.obs["domain"] == d].X.mean(axis=0)).ravel() for d in adata.obs["domain"].unique()]
    )
    assert (means.std(axis=0) / means.mean(axis=0)).max() > 0.3

    _bins.write_slide(tmp_path / "b.zarr", 600, 50, 20)
    assert (ad.read_zarr(tmp_path / "b.zarr").X != adata.X).nnz == 0


def test_steps_of_a_slide_on_disk(tmp_path, capsys, _here):
    arguments = [*SMALL, "--output", str(tmp_path)]
    main([*arguments, "--steps", "mean"])
    failed = _results.read(tmp_path)["failed"]
    assert failed.str.contains("there is no trained model of this slide and code; run the step train first").all()
    main(arguments)
    rows = _results.read(tmp_path)
    done = rows[rows["failed"].isna()]
    assert set(done["method"]) == set(scale.STEPS) and (done["n_spots"] == 120).all()
    assert (done["memory_mib"] >= done["libraries_mib"]).all() and (done["cpu_seconds"] > 0).all()
    written = done.set_index("method")["written_mib"]
    assert 0 < written["mean"] < written["intervals"] and not list((tmp_path / "cache").glob("*_mean.zarr*"))
    text = capsys.readouterr().out
    assert "| bins 120x30, 80 molecules, epochs 1: training |" in text
    # what is stored and current is not run again
    main(arguments)
    assert "min]" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_two_workers(tmp_path, _here):
    """Named apart, and left out of the curves."""
    pytest.importorskip("distributed")
    main([*SMALL, "--steps", "train", "mean", "--block-size", "40", "--workers", "2", "--output", str(tmp_path)])
    rows = _results.read(tmp_path).set_index("method")
    assert (
        rows["failed"].isna().all()
        and (rows["file"] == "bins 120x30, 80 molecules, epochs 1, blocks of 40, 2 workers").all()
    )
    assert rows.loc["train", "workers"] == 1 and rows.loc["mean", "workers"] == 2
    assert rows.loc["mean", "written_mib"] > 0 and len(scale.growth(scale.measured(rows.reset_index()))) == 0
    assert not len(scale._whole(rows))


def test_steps_of_slides_in_memory(tmp_path, capsys, _here):
    main([*SMALL, "--memory", "--output", str(tmp_path)])
    rows = _results.read(tmp_path).set_index("method")
    assert rows["failed"].isna().all() and set(rows.index) == set(scale.STEPS)
    assert (rows.loc[["mean", "intervals"], "written_mib"] == 0).all()
    assert "spots 120x30, in memory, epochs 1: posterior mean" in capsys.readouterr().out


def stored(seconds: float, spots: int, **more) -> list[dict]:
    row = {
        "file": f"bins {spots}x9, 80 molecules", "protocol": "scale", "seed": 0, "n_spots": spots, "n_genes": 9, "seconds": float(seconds),
        "cpu_seconds": 2.0 * seconds, "memory_mib": 1024 + spots / 10, "libraries_mib": 1024, "written_mib": 512.0, "failed": None,
        "date": "2026-01-01", "machine": "one", "threads": 2, "workers": 1, "versions": "v", **more,
    }  # fmt: skip
    return [{**row, "method": step} for step in scale.STEPS]


def test_tables_and_curves(tmp_path):
    rows = pd.DataFrame([*stored(10, 1000), *stored(20, 4000), *stored(40, 16000)])
    exponents = scale.growth(scale.measured(rows))
    np.testing.assert_allclose(exponents["seconds"], 0.5)
    np.testing.assert_allclose(exponents["memory"], 1)
    scale.write(rows, tmp_path)
    page = (tmp_path / "scale.md").read_text()
    assert (tmp_path / "scale.png").exists() and "(/generated/scale.png)" in page
    assert "| bins 16000x9, 80 molecules: posterior mean | 40.00 | 80.00 | 400 | 1.56 | 104858 | .50 |" in page
    axes = scale.figure(rows).axes
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [10, 20, 40])
    np.testing.assert_allclose(axes[1].lines[0].get_xdata(), [1000, 4000, 16000])
    # one size has no growth, and none no table
    one = pd.DataFrame(stored(10, 1000))
    assert scale.figure(one) is None and "exponent" not in scale.markdown(one)
    scale.write(rows.iloc[:0], tmp_path)
    assert "`python -m benchmarks scale` obtains them" in (tmp_path / "scale.md").read_text()
