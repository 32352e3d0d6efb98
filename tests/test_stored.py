"""Rows of matrices that stay on disk."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import zarr
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from lgdist_scvi import _stored
from lgdist_scvi._stored import StoredRows, is_stored, new_digest, row_blocks, update_digest

N_SPOTS, N_GENES = 200, 30


@pytest.fixture
def counts() -> sparse.csr_matrix:
    return sparse.random(N_SPOTS, N_GENES, 0.2, "csr", np.float32, np.random.default_rng(0), lambda size: np.ones(size))


@pytest.fixture
def small_reads(monkeypatch):
    monkeypatch.setattr(_stored, "_ROWS", 16)
    monkeypatch.setattr(_stored, "_KEPT", 2000)


def on_disk(kind: str, counts: sparse.csr_matrix, folder):
    """The same matrix where it is stored."""
    if kind.startswith("dask"):
        dask = pytest.importorskip("dask.array")
        matrix = counts if kind == "dask sparse" else counts.toarray()
        return dask.from_array(matrix, chunks=(33, N_GENES), asarray=False)
    group = (
        zarr.open_group(folder / "store.zarr", mode="w") if kind.startswith("zarr") else h5py.File(folder / "a.h5", "w")
    )
    stored = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[kind.split()[1]]
    write_elem(group, "X", stored)
    return group["X"] if kind.endswith("dense") else sparse_dataset(group["X"])


KINDS = ("zarr csr", "zarr csc", "zarr dense", "h5 csr", "h5 csc", "h5 dense", "dask sparse", "dask dense")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_rows_are_those_of_the_matrix(kind, counts, tmp_path, small_reads):
    stored = on_disk(kind, counts, tmp_path)
    assert is_stored(stored) and not is_stored(counts) and not is_stored(counts.toarray())
    rows = StoredRows(stored, "x")
    columns, rng = np.array([7, 3, 3, 29]), np.random.default_rng(1)
    some = ([], [5], [199, 0], [3, 3, 2], np.arange(50, 150), rng.integers(0, N_SPOTS, 60), slice(10, 20), slice(None))
    for chosen in some:
        for part, expected in ((rows, counts), (rows.with_columns(columns), counts[:, columns])):
            found, expected = part[chosen], expected[chosen].toarray()
            assert sparse.issparse(found) != kind.endswith("dense")
            np.testing.assert_array_equal(found.toarray() if sparse.issparse(found) else found, expected)
            assert found.shape == expected.shape and found.dtype == np.float32
    blocks = list(row_blocks(rows))
    assert max(block.shape[0] for block in blocks) <= 16
    together = [block.toarray() if sparse.issparse(block) else block for block in blocks]
    np.testing.assert_array_equal(np.concatenate(together), counts.toarray())


def test_rows_that_were_just_read_are_not_read_again(counts, small_reads):
    read = []

    class Counted(sparse.csr_matrix):
        chunks = None  # as a stored matrix has

        def __getitem__(self, rows):
            read.append(rows.start)
            return sparse.csr_matrix(self)[rows]

    rows = StoredRows(Counted(counts), "x")
    for chosen, expected in (
        ([100, 3, 6], [0, 96]),
        ([7], []),
        ([100], []),
        (slice(None), None),
        ([199], []),
        ([0], [0]),
    ):
        read.clear()
        np.testing.assert_array_equal(rows[chosen].toarray(), counts[chosen].toarray())
        assert expected is None or read == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_read_does_not_travel(counts, tmp_path):
    rows = StoredRows(on_disk("zarr csr", counts, tmp_path), "x")
    rows[[5]]
    again = pickle.loads(pickle.dumps(rows))
    assert rows._kept and not again._kept
    np.testing.assert_array_equal(again[[5]].toarray(), counts[[5]].toarray())


def test_stored_by_genes_and_large(counts, tmp_path, monkeypatch):
    stored = on_disk("h5 csc", counts, tmp_path)
    monkeypatch.setattr(_stored, "_BY_GENES", 100)
    with pytest.raises(ValueError, match=r"^adata.X is stored by genes \(csc\).*; store it by spots.*tocsr"):
        StoredRows(stored, "adata.X")[0]


@pytest.mark.parametrize("kind", ["zarr csr", "h5 csc", "h5 dense", "dask dense"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_matrix_looks_otherwise(kind, counts, tmp_path, monkeypatch):
    monkeypatch.setattr(_stored, "_SAMPLED_ROWS", 4)
    looks = []
    for n, matrix in enumerate((counts, counts, counts[::-1].tocsr(), counts[:150], counts * 2)):
        (tmp_path / str(n)).mkdir()
        digest = new_digest()
        update_digest(digest, on_disk(kind, matrix, tmp_path / str(n)))
        looks.append(digest.hexdigest())
    assert looks[0] == looks[1] and len(set(looks)) == 4


@pytest.mark.parametrize(
    "value", [np.arange(6).reshape(2, 3), np.array(["a", None], dtype=object), sparse.eye(3, format="coo")]
)
def test_a_change_in_memory_shows(value):
    def look(value):
        digest = new_digest()
        update_digest(digest, value)
        return digest.hexdigest()

    changed = value.copy()
    if sparse.issparse(value):
        changed.data[1] = 5
    else:
        changed.flat[1] = 5
    assert look(value) == look(value.copy()) != look(changed)


def test_threads_share_rows(monkeypatch):
    """As the tasks of a worker do: blocks come and go, and every thread gets its own rows."""
    counts = sparse.random(9000, 6, 0.3, "csr", random_state=0)
    rows = StoredRows(counts, "adata.X")
    rows._step = 100

    def read(seed: int) -> bool:
        asked = np.random.default_rng(seed).integers(0, 9000, 50)
        return (rows[asked] != counts[asked]).nnz == 0

    monkeypatch.setattr(_stored, "_KEPT", 4000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(read, range(200)))
    finally:
        sys.setswitchinterval(interval)
