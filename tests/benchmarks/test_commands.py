"""The commands beside the benchmark run from end to end, each in a process of its own, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks._record import REPOSITORY

from lgdist_scvi import datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one simulated slide, "small"."""
    folder = tmp_path_factory.mktemp("slides")
    adata = datasets.simulated_visium(n_spots=220, n_genes=150, seed=0)
    adata.obs["kind"] = (adata.obsm["spatial"][:, 0] > adata.obsm["spatial"][:, 0].mean()).astype(str)
    del adata.layers["rate"]
    adata.write_h5ad(folder / "small.h5ad")
    return folder


def printed(command: str, *arguments: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(text: str, pattern: str) -> float:
    """The number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def test_cost():
    text = printed("cost", "--spots", "150", "--genes", "40", "--epochs", "2")
    total = number(text, r"train: ([\d.]+) s")
    parts = [number(text, rf"stage {stage}: ([\d.]+) s, of which 4 training steps") for stage in ("VAE", "Diffusion")]
    rest = number(text, r"experts and calibration: ([\d.]+) s")
    assert sum(parts) + rest == pytest.approx(total, abs=0.3)
    assert re.search(r"posterior mean, median: [\d,]+ spots per second", text)
    assert number(text, r"matrices: (\d+) GFLOP/s") > 1
    # two products of (spots x genes) with (genes x hidden), forward and backward, at the least
    assert number(text, r"stage VAE: ([\d.]+) GFLOP") > 0


def test_steps(folder):
    text = printed("steps", "--data", str(folder), "--file", "small", "--protocols", "thinning", "--epochs", "1")
    rows = {int(line.split()[0]): line.split() for line in text.splitlines() if re.match(r"\s*\d+ ", line)}
    assert list(rows) == [5, 10, 20, 50, 250]
    assert all(float(value) == 0 for value in rows[250][5:])
    assert rows[5] != rows[10]


def test_guards(folder):
    text = printed(
        "guards", "--data", str(folder), "--files", "small", "--labels", "kind", "--epochs", "1", "--controls"
    )
    for name in (
        "domain ARI",
        "variance ratio",
        "Moran's I",
        "skill from neighbors alone",
        "Moran's I of Poisson genes",
    ):
        assert name in text


def test_a_folder_that_is_none():
    with pytest.raises(AssertionError, match="is not a folder; name the folder of .h5ad files with --data"):
        printed("guards", "--data", "nowhere")
