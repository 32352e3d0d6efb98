"""Counts and masks that stay on disk: registered once, read by rows, with the same predictions as in memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from anndata.io import sparse_dataset
from scipy import sparse

from lgdist_scvi import LGDiST, _stored, datasets, pp
from lgdist_scvi._stored import StoredRows
from lgdist_scvi.data import NeighborhoodDataset, _dataset, _graph
from lgdist_scvi.data._graph import drawn_patches

N_SPOTS, N_GENES = 150, 30

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def slide() -> ad.AnnData:
    adata = datasets.simulated_visium(n_spots=N_SPOTS, n_genes=N_GENES, n_samples=2, seed=0)
    mask = np.random.default_rng(0).random(adata.shape) < 0.9
    mask[[5, 70]] = False
    adata.layers["known"] = mask
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 10
    return adata


@pytest.fixture
def store(slide, tmp_path) -> Path:
    slide.write_zarr(tmp_path / "slide.zarr")
    return tmp_path / "slide.zarr"


def lazy(store: Path, slide: ad.AnnData) -> ad.AnnData:
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    return ad.experimental.read_lazy(store)


def backed(store: Path, slide: ad.AnnData) -> ad.AnnData:
    slide.write_h5ad(store.with_suffix(".h5ad"))
    return ad.read_h5ad(store.with_suffix(".h5ad"), backed="r")


def of_zarr(store: Path, slide: ad.AnnData) -> ad.AnnData:
    group = zarr.open_group(store, mode="r")
    adata = ad.AnnData(sparse_dataset(group["X"]), obs=slide.obs.copy(), var=slide.var.copy())
    adata.layers["known"], adata.obsm["spatial"] = group["layers/known"], slide.obsm["spatial"].copy()
    return adata


SETUP = {"sample_key": "sample", "mask_layer": "known", "size_factor_key": "total"}
HOW = {"lazy": lazy, "backed": backed, "zarr": of_zarr}


@pytest.fixture
def small_slides_are_large(monkeypatch):
    """What is done to large data, done to these."""
    monkeypatch.setattr(_dataset, "_N_CALIBRATION", 60)
    monkeypatch.setattr(_dataset, "_N_TRAINING", 100)
    monkeypatch.setattr(_graph, "_PATCH", 20)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("masked", [True, False])
def test_the_same_data(how, masked, slide, store):
    setup = SETUP if masked else {"sample_key": "sample"}
    read = []
    for adata in (slide.copy(), HOW[how](store, slide)):
        LGDiST.setup_anndata(adata, **setup)
        read.append(LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset())
    ours, expected = read[1], read[0]
    assert isinstance(ours.counts, StoredRows) and sparse.issparse(expected.counts)
    assert (ours.mask is None) == (not masked)
    if masked and how != "backed":  # anndata has layers of backed data in memory
        assert isinstance(ours.mask, StoredRows)
    assert ours.fingerprint == expected.fingerprint
    batches = [dataset[[7, 3, 149, 5]] for dataset in read]
    assert set(batches[0]) == set(batches[1])
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name], err_msg=name)
    assert (ours.shows_zeros(), ours.hides_every_zero()) == (expected.shows_zeros(), expected.hides_every_zero())


@pytest.mark.parametrize("how", HOW)
def test_the_same_predictions(how, slide, store, fit, small_slides_are_large):
    expected, ours = (fit(adata, 1, SETUP) for adata in (slide.copy(), HOW[how](store, slide)))
    for ask in ("get_completed_expression", "get_prediction_interval"):
        answers = [getattr(model, ask)(return_numpy=True) for model in (expected, ours)]
        np.testing.assert_array_equal(*answers)


def test_what_is_all_observed_is_no_mask(slide, tmp_path):
    adata = slide.copy()
    adata.layers["known"] = sparse.csr_matrix(np.ones(adata.shape, dtype=bool))
    LGDiST.setup_anndata(adata, **SETUP)
    dataset = LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset()
    assert dataset.mask is None and dataset.shows_zeros()


def test_a_sparse_mask_stays_sparse(slide):
    sparsely, densely = slide.copy(), slide.copy()
    sparsely.layers["known"] = sparse.csc_matrix(slide.layers["known"])
    read = []
    for adata in (sparsely, densely):
        LGDiST.setup_anndata(adata, **SETUP)
        read.append(LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset())
    assert sparse.issparse(read[0].mask) and read[0].fingerprint == read[1].fingerprint
    np.testing.assert_array_equal(read[0].rows(np.arange(20))[1], read[1].rows(np.arange(20))[1])


def test_data_are_read_once(slide, store, monkeypatch):
    """Questions to the same data look at a few rows of them, not at all."""
    adata, read = of_zarr(store, slide), []
    LGDiST.setup_anndata(adata, **SETUP)
    manager = LGDiST._get_most_recent_anndata_manager(adata, required=True)
    monkeypatch.setattr(_stored, "_SAMPLED_ROWS", 2)
    first, whole = manager.create_torch_dataset(), StoredRows.read
    monkeypatch.setattr(
        StoredRows, "read", lambda self, start, stop: read.append(stop - start) or whole(self, start, stop)
    )
    assert manager.create_torch_dataset() is first
    assert 0 < sum(read) <= 2 * 2 * 16  # of counts and mask


@pytest.mark.parametrize("how", ["lazy", "zarr"])
@pytest.mark.parametrize("part", ["X", "layers/known"])
def test_a_store_may_not_change(how, part, slide, store):
    adata = HOW[how](store, slide)
    LGDiST.setup_anndata(adata, **SETUP)
    other = slide.copy()
    if part == "X":
        other.X = other.X[::-1]
    else:
        other.layers["known"] = other.layers["known"][::-1]
    shutil.rmtree(store)
    other.write_zarr(store)
    if how == "zarr":  # what was opened before remembers where rows begin
        changed = of_zarr(store, other)
        adata.X, adata.layers["known"] = changed.X, changed.layers["known"]
    with pytest.raises(ValueError, match="^adata was changed after setup_anndata"):
        LGDiST(adata)


@pytest.mark.parametrize(
    "value, message", [(-1, "negative"), (0.5, "not whole numbers"), (np.nan, "NaN"), (np.inf, "infinite")]
)
def test_what_is_stored_must_be_counts(value, message, slide, tmp_path):
    adata = slide.copy()
    adata.X = adata.X.copy()
    adata.X.data[[3, -1]] = value
    adata.write_zarr(tmp_path / "bad.zarr")
    with pytest.raises(ValueError, match=f"^2 of {N_SPOTS * N_GENES:,} entries of adata.X are {message}"):
        LGDiST.setup_anndata(of_zarr(tmp_path / "bad.zarr", adata))


def test_stored_by_genes(slide, tmp_path, monkeypatch):
    adata = slide.copy()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "genes.h5ad")
    read, turned, by_spots = ad.read_h5ad(tmp_path / "genes.h5ad", backed="r"), [], _stored._by_spots
    monkeypatch.setattr(_stored, "_by_spots", lambda *given: turned.append(given) or by_spots(*given))
    LGDiST.setup_anndata(read, **SETUP)
    model = LGDiST(read)
    manager = model.get_anndata_manager(read, required=True)
    assert manager.create_torch_dataset() is manager.create_torch_dataset()
    assert len(turned) == 1  # and not with every look at it
    in_memory = slide.copy()
    LGDiST.setup_anndata(in_memory, **SETUP)
    assert LGDiST(in_memory).adata_manager.fingerprint == manager.fingerprint
    read.file.close()
    with h5py.File(tmp_path / "genes.h5ad", "r+") as file:
        file["X/data"][:] *= 2
    read.file.open()
    with pytest.raises(ValueError, match="^adata was changed after setup_anndata"):
        manager.create_torch_dataset()
    monkeypatch.setattr(_stored, "_BY_GENES", 1000)
    with pytest.raises(ValueError, match=r"^adata.X is stored by genes \(csc\)"):
        LGDiST.setup_anndata(ad.read_h5ad(tmp_path / "genes.h5ad", backed="r"), **SETUP)


def test_genes_are_found_by_name(slide, store):
    """A model asks for its genes, in its order, of data that hold more."""
    few = slide[:, ::-3].copy()
    LGDiST.setup_anndata(few, sample_key="sample")
    model = LGDiST(few)
    manager = model._get_most_recent_anndata_manager(few, required=True)
    adata = of_zarr(store, slide)
    pp.spatial_neighbors(adata, sample_key="sample")
    other = manager.transfer_fields(adata)
    np.testing.assert_array_equal(
        other.create_torch_dataset()[[0, 9]]["X"], manager.create_torch_dataset()[[0, 9]]["X"]
    )


# ---- what training looks at


def test_patches(slide, small_slides_are_large):
    adata = slide.copy()
    LGDiST.setup_anndata(adata, sample_key="sample")
    dataset = LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset()
    seen, few = dataset.for_training, dataset.for_calibration
    assert (len(seen), len(few), len(dataset)) == (100, 60, N_SPOTS)
    assert len(np.unique(seen.spots)) == 100 and dataset.for_training is seen
    np.testing.assert_array_equal(few.spots, seen.spots[:60])
    assert set(seen.samples[:40]) == {0, 1}  # of each slide one patch first
    every, places = dataset[seen.spots], {spot: place for place, spot in enumerate(seen.spots)}
    some = seen[np.arange(100)]
    for name in ("X", "observed_mask", "size_factor"):
        np.testing.assert_array_equal(some[name], every[name])
    kept = 0
    for place, spot in enumerate(seen.spots):
        ours = set(seen.neighbors[place][seen.neighbors[place] >= 0])
        whole = {places[other] for other in dataset.neighbors[spot] if other in places}
        assert ours == whole or not whole
        kept += len(whole)
    assert kept > 0.6 * (dataset.neighbors[seen.spots] >= 0).sum()  # they are compact


def test_patches_of_many_slides():
    """All of them are trained on, and calibrate."""
    samples = np.repeat(np.arange(30), 200)
    coordinates = np.random.default_rng(0).random((len(samples), 2))
    drawn = drawn_patches(coordinates, samples, 3000, 900)
    assert len(drawn) == len(set(drawn)) == 3000
    assert set(samples[drawn[:900]]) == set(range(30))


def test_training_of_large_data_takes_no_more_steps(slide, fit, small_slides_are_large, monkeypatch):
    from lgdist_scvi.train import _splitter

    monkeypatch.setattr(_splitter, "_PER_EPOCH", 40)
    monkeypatch.setattr(_splitter, "_RUN", 10)
    seen = []
    rows = NeighborhoodDataset.rows
    monkeypatch.setattr(NeighborhoodDataset, "rows", lambda self, spots: seen.append(len(self)) or rows(self, spots))
    model = fit(slide.copy(), 3, {"sample_key": "sample"}, {"batch_size": 10})
    assert len(model.history_["vae/train_loss"]) == 3
    assert model.trainer.global_step == 3 * 4  # of the last stage
    assert max(seen) == 100


def test_spots_are_named_by_their_rows(slide, small_slides_are_large):
    from lgdist_scvi.train import EntrySplitter

    adata = slide.copy()
    LGDiST.setup_anndata(adata, sample_key="sample")
    seen = LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset().for_training
    first, second = np.arange(75), np.arange(75, N_SPOTS)
    splitter = EntrySplitter(
        seen,
        np.array([], dtype=int),
        rows=seen.spots,
        n_obs=N_SPOTS,
        datasplitter_kwargs={"external_indexing": [first, second]},
    )
    np.testing.assert_array_equal(splitter.train_idx, np.flatnonzero(seen.spots < 75))
    np.testing.assert_array_equal(splitter.val_idx, np.flatnonzero(seen.spots >= 75))
    splitter = EntrySplitter(seen, np.array([], dtype=int), validation_spots=second, rows=seen.spots)
    np.testing.assert_array_equal(splitter.train_idx, np.flatnonzero(seen.spots < 75))


# ---- memory


MEASURE = """
    import resource, sys
    import anndata as ad, numpy as np, zarr
    from anndata.io import sparse_dataset
    import pandas as pd
    from lgdist_scvi import LGDiST
    from lgdist_scvi._squidpy import squidpy

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def registered(path, n):
        group = zarr.open_group(path, mode="r")
        spot = np.arange(n)
        adata = ad.AnnData(sparse_dataset(group["X"]), obs=pd.DataFrame(index=[str(i) for i in spot]))
        adata.obsm["spatial"] = np.column_stack([spot % 100, spot // 100]).astype(float)
        LGDiST.setup_anndata(adata)
        return LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset()

    squidpy()
    registered(sys.argv[1], 20_000)
    before = peak()
    dataset = registered(sys.argv[2], 60_000)
    dataset[np.arange(0, 60_000, 600)]
    print((peak() - before) / 40_000)
"""


def test_memory_of_a_spot(tmp_path):
    """What is registered takes bytes by the spot, not by its counts or genes: 2,000 bytes of counts, and 1,000 entries here."""
    from anndata.io import write_elem

    rng = np.random.default_rng(0)
    for name, n in (("few", 20_000), ("many", 60_000)):
        genes = np.argsort(rng.random((500, 1000)), axis=1)[:, :250].astype(np.int32)
        genes.sort(axis=1)
        block = sparse.csr_matrix(
            (np.ones(genes.size, dtype=np.float32), genes.ravel(), np.arange(0, genes.size + 1, 250)), shape=(500, 1000)
        )
        write_elem(zarr.open_group(tmp_path / name, mode="w"), "X", sparse.vstack([block] * (n // 500), format="csr"))
    call = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        textwrap.dedent(MEASURE),
        str(tmp_path / "few"),
        str(tmp_path / "many"),
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1_000
