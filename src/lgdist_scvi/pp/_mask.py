"""Observation masks: which entries are data and which are unknown."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_mask
from lgdist_scvi._checks import check_choice, check_has_spots, check_new_key, mapping

Method = Literal["nonzero", "held_out", "all"]


def observed_mask(
    adata: AnnData,
    layer: str | None = None,
    method: Method = "nonzero",
    key_added: str = "observed",
) -> None:
    """Write a mask layer that says which entries are observed.

    An entry hidden by :func:`~lgdist_scvi.pp.hold_out` (``layers["held_out"]``) is never observed, whatever the method.
    The ``"thinning"`` scheme hides a part of every count and no entry as a whole; its entries stay observed.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    layer
        Layer that holds raw counts, for ``"nonzero"``; ``None`` reads `adata.X`.
    method
        - ``"nonzero"``: every zero is missing, the reading of the LGDiST paper. A model given this mask sees positive
          values only and predicts what would have been captured.
        - ``"held_out"``: everything but the hidden entries; zeros are data. ``layers["held_out"]`` must exist.
        - ``"all"``: everything, zeros are data (but for hidden entries, if there are any).
    key_added
        Layer to write; a name without "/".

    Returns
    -------
    Nothing; writes `layers[key_added]`: bool, dense, (n_obs, n_vars), True where an entry is observed.

    Raises
    ------
    KeyError
        If the layer, or ``layers["held_out"]`` for ``"held_out"``, is absent.
    ValueError
        If the method is unknown, there are no spots, the values are not counts, or a file cannot hold `key_added`.
    """
    check_choice("method", method, get_args(Method))
    check_new_key(key_added, "key_added")
    check_has_spots(adata)
    if method == "nonzero":
        observed = get_counts(adata, layer) != 0
        observed = observed.toarray() if sparse.issparse(observed) else observed
    else:
        observed = np.ones(adata.shape, dtype=bool)
    if method == "held_out" or "held_out" in adata.layers:
        held_out = get_mask(adata, "held_out")
        if mapping(adata.uns.get("hold_out")).get("scheme") != "thinning":
            observed &= ~held_out
    adata.layers[key_added] = observed
