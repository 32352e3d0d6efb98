from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import pp


@pytest.mark.parametrize(
    "to_format", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csr_matrix.toarray]
)
def test_nonzero(slide, to_format):
    dense = slide.X.toarray()
    slide.X = to_format(slide.X)
    pp.observed_mask(slide)
    mask = slide.layers["observed"]
    assert type(mask) is np.ndarray
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, dense > 0)


def test_layer_and_key(slide):
    slide.layers["counts"] = slide.X.copy()
    slide.layers["counts"].data[:5] = 0  # stored zeros are zeros
    pp.observed_mask(slide, layer="counts", key_added="seen")
    np.testing.assert_array_equal(slide.layers["seen"], slide.layers["counts"].toarray() > 0)
    assert "observed" not in slide.layers


def test_all(slide):
    pp.observed_mask(slide, method="all")
    assert slide.layers["observed"].all()


@pytest.mark.parametrize("scheme", ["entry", "spot", "block"])
def test_hidden_entries_are_never_observed(slide, scheme):
    hidden = pp.hold_out(slide, scheme=scheme)
    held_out = hidden.layers["held_out"]
    for method in ("all", "held_out"):
        pp.observed_mask(hidden, method=method)
        np.testing.assert_array_equal(hidden.layers["observed"], ~held_out)
    pp.observed_mask(hidden, method="nonzero")
    np.testing.assert_array_equal(hidden.layers["observed"], hidden.X.toarray() > 0)
    # even where the full counts are read
    pp.observed_mask(hidden, method="nonzero", layer="truth")
    np.testing.assert_array_equal(hidden.layers["observed"], (hidden.layers["truth"].toarray() > 0) & ~held_out)


def test_thinned_entries_stay_observed(slide):
    thinned = pp.hold_out(slide, scheme="thinning")
    for method in ("all", "held_out"):
        pp.observed_mask(thinned, method=method)
        assert thinned.layers["observed"].all()
    pp.observed_mask(thinned)
    np.testing.assert_array_equal(thinned.layers["observed"], thinned.X.toarray() > 0)


def test_errors(slide):
    with pytest.raises(ValueError, match="method must be one of 'nonzero', 'held_out', 'all', got 'some'"):
        pp.observed_mask(slide, method="some")
    with pytest.raises(KeyError, match="'held_out' not found in adata.layers; available: 'rate'; .*pp.hold_out"):
        pp.observed_mask(slide, method="held_out")
    with pytest.raises(KeyError, match="'counts' not found in adata.layers"):
        pp.observed_mask(slide, layer="counts")
    slide.X.data[:3] = -1
    with pytest.raises(ValueError, match="3 of 9,000 entries of adata.X are negative"):
        pp.observed_mask(slide)


def test_names_and_spots(slide):
    before = set(slide.layers)
    with pytest.raises(ValueError, match="key_added='m/o' is no name"):
        pp.observed_mask(slide, key_added="m/o")
    for method in ("nonzero", "all"):
        with pytest.raises(ValueError, match="adata has 0 spots"):
            pp.observed_mask(slide[:0].copy(), method=method)
    with pytest.raises(ValueError, match="adata has 0 spots"):
        pp.hold_out(slide[:0].copy())
    assert set(slide.layers) == before
