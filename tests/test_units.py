from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi._units import (
    counts_per_cp10k,
    cp10k_per_count,
    from_cp10k,
    library_size,
    log1p_cp10k,
    to_cp10k,
    to_log1p,
)


def _counts(n_obs: int = 30, n_vars: int = 12) -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, size=(n_obs, n_vars)).astype(np.float32)


def test_library_size_counts_observed_entries_only():
    dense = _counts()
    mask = np.random.default_rng(2).random(dense.shape) < 0.5
    for counts in (dense, sparse.csr_matrix(dense)):
        np.testing.assert_array_equal(library_size(counts), dense.sum(1))
        np.testing.assert_array_equal(library_size(counts, mask), (dense * mask).sum(1))
        assert library_size(counts).dtype == np.float64


def test_small_integers_do_not_overflow():
    dense = np.full((2, 600), 255, dtype=np.uint8)
    for counts in (dense, sparse.csr_matrix(dense)):
        np.testing.assert_array_equal(library_size(counts), [153000, 153000])


def test_log1p_cp10k_is_the_same_bits_dense_sparse_and_by_rows():
    dense = _counts(200, 40)
    library = library_size(dense) + 7
    expected = np.log1p(dense.astype(np.float64) / library[:, None] * 1e4).astype(np.float32)
    values = log1p_cp10k(dense, library)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(values, log1p_cp10k(sparse.csr_matrix(dense), library))
    np.testing.assert_array_equal(values[50:60], log1p_cp10k(dense[50:60], library[50:60]))


def test_empty_spots_are_zero():
    dense = _counts()
    dense[3] = 0
    for counts in (dense, sparse.csr_matrix(dense)):
        values = log1p_cp10k(counts, library_size(counts))
        assert np.isfinite(values).all()
        assert not values[3].any()


def test_library_of_another_length():
    with pytest.raises(ValueError, match="expected one value for each of the 30 spots"):
        log1p_cp10k(_counts(), np.ones(29))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log1p, kind", [(np.log1p, np.asarray), (torch.log1p, torch.from_numpy)])
def test_conversions_of_arrays_and_tensors_keep_kind_and_bits(dtype, log1p, kind):
    counts = kind(_counts().astype(dtype))
    library = kind(np.linspace(7, 900, 30, dtype=dtype)[:, None])
    for found, expected in (
        (cp10k_per_count(library), 1e4 / library),
        (counts_per_cp10k(library), library / 1e4),
        (to_cp10k(counts / library), counts / library * 1e4),
        (from_cp10k(counts), counts / 1e4),
        (to_log1p(counts, library), log1p(counts / library * 1e4)),
    ):
        assert type(found) is type(counts) and found.dtype == counts.dtype
        assert (found == expected).all()


def test_log1p_of_tensors_has_a_gradient():
    counts = torch.ones(3, requires_grad=True)
    to_log1p(counts, torch.full((3,), 10.0)).sum().backward()
    torch.testing.assert_close(counts.grad, torch.full((3,), 1000 / 1001))
