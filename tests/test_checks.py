from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from lgdist_scvi import _checks as checks


def test_values_that_are_not_numbers():
    with pytest.raises(ValueError, match="dtype complex128; raw counts must be integers or floats"):
        checks.check_counts(np.ones((2, 2), dtype=complex), "x")


def test_require_key_on_a_data_frame():
    frame = pd.DataFrame({"a": [1]})
    checks.require_key(frame, "a", "adata.obs")
    with pytest.raises(KeyError, match="'b' not found in adata.obs; available: 'a'$|'b' not found.*'a'"):
        checks.require_key(frame, "b", "adata.obs")


@pytest.mark.parametrize(("axis", "what"), [("obs", "spot"), ("var", "gene")])
def test_duplicated_names(axis, what):
    adata = ad.AnnData(np.ones((30, 12)))
    names = getattr(adata, f"{axis}_names").to_numpy().copy()
    names[1] = names[0]
    setattr(adata, f"{axis}_names", names)
    with pytest.raises(ValueError, match=rf"1 {what} name in adata.{axis}_names .*call .*{axis}_names_make_unique"):
        checks.check_unique_names(adata)
    getattr(adata, f"{axis}_names_make_unique")()
    checks.check_unique_names(adata)


@pytest.mark.parametrize("value", [0, -3, 1.0, True, None, "2"])
def test_positive_int(value):
    checks.check_positive_int(np.int64(3), "k")
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        checks.check_positive_int(value, "k")


@pytest.mark.parametrize("name", ["m/o", "/", "", " ", ".", "a\0b", None, 3, ["a"]])
def test_names_that_no_file_can_hold(name):
    checks.check_new_key("lgdist.rate 2", "key_added")
    with pytest.raises(ValueError, match="^key_added"):
        checks.check_new_key(name, "key_added")


def test_synthetic_spots_are_known_also_where_their_flag_was_lost():
    real, pairs = ad.AnnData(np.ones((3, 2))), ad.AnnData(np.ones((2, 2)))
    pairs.obs_names = ["synthetic_0", "synthetic_1"]
    pairs.obs["synthetic"] = True
    flagged = ad.concat([real, pairs], join="outer")
    assert "synthetic" not in ad.concat([real, pairs]).obs
    renamed = flagged.copy()
    renamed.obs_names = list("abcde")
    for adata in (flagged, ad.concat([real, pairs]), renamed):
        with pytest.raises(ValueError, match="2 of 5 spots are synthetic.*allow_synthetic=True"):
            checks.check_not_synthetic(adata)
        checks.check_not_synthetic(adata, True)
    checks.check_not_synthetic(real)
