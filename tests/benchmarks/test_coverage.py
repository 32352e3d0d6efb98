from __future__ import annotations

import numpy as np
import pytest
from benchmarks.coverage import counts_task, coverage, text

SIZES = {"n_latent": 8, "n_hidden": 32, "n_layers": 1, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1}
SIZES |= {"n_denoiser_heads": 2, "n_timesteps": 100}


def test_random_entries_are_hidden_zeros_included(tissue):
    given = counts_task(tissue, None, 0)
    counts, left = tissue.X.toarray(), np.asarray(given.adata.X)
    hidden = ~given.adata.layers["observed"]
    assert 0.18 < hidden.mean() < 0.22
    assert (counts[hidden] == 0).any()
    assert not left[hidden].any()
    np.testing.assert_array_equal(left[~hidden], counts[~hidden])
    np.testing.assert_array_equal(given.library, left.sum(axis=1))
    np.testing.assert_array_equal(given.scored, hidden)
    expected = np.log1p(counts / left.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(given.measured, expected, rtol=1e-6)


@pytest.mark.parametrize(("protocol", "estimands"), [("entry", ["captured"]), ("counts", ["rate", "captured"])])
def test_table_of_coverage(tissue, protocol, estimands):
    tissue = tissue[:, np.asarray((tissue.X > 0).sum(axis=0)).ravel() >= 20].copy()
    table = coverage(tissue, None, protocol, 0, steps=20, set_aside_fraction=0.2, **SIZES)
    assert list(table["estimand"].unique()) == estimands
    assert len(table) == len(estimands) * 4 * 4
    parts = table[table["stratum"] != "all"].groupby(["estimand", "level"])["n"].sum()
    whole = table[table["stratum"] == "all"].set_index(["estimand", "level"])["n"]
    np.testing.assert_array_equal(parts.sort_index(), whole.sort_index())
    overall = table[table["stratum"] == "all"]
    assert (overall["coverage"] > overall["level"] - 0.06).all()
    assert (overall.groupby("estimand")["width"].diff().dropna() > 0).all()
    assert (table["n_calibration"] > 100).all()
    assert text(table).count("\n") == len(estimands) * 4
