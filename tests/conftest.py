from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import matplotlib
import pytest
import scvi
import torch

import lgdist_scvi

if TYPE_CHECKING:
    from anndata import AnnData

REPOSITORY = Path(__file__).resolve().parents[1]

matplotlib.use("agg")
torch.set_num_threads(1)  # the networks of the tests are too small for more
scvi.settings.verbosity = logging.ERROR
# Time limits per example fail on a busy machine, and random examples make a failure hard to repeat elsewhere.
hypothesis.settings.register_profile("lgdist", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("lgdist")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real slides, named by LGDIST_DATA or lying beside the repository."""
    folder = Path(os.environ.get("LGDIST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real slides: {folder} is not there (set LGDIST_DATA to a folder that holds them)")
    return folder


@pytest.fixture
def slide() -> AnnData:
    """A small simulated slide, fresh for every test."""
    return lgdist_scvi.datasets.simulated_visium(n_spots=150, n_genes=60, seed=0)
