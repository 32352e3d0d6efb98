"""Image features of other data must come from the encoder of the training."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

from lgdist_scvi.data import ImageField


def described(encoder: str | None, shift: float = 0.0) -> AnnData:
    """Spots with features, and the record that pp.image_features writes of their encoder."""
    adata = AnnData(obsm={"X_image": np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)})
    if encoder is not None:
        probe = np.linspace(1, 2, 16) + shift
        adata.uns["X_image"] = {"encoder": encoder, "n_features": 16, "size": 224, "augment": "none", "probe": probe}
    return adata


def test_features_of_another_encoder_are_refused():
    field = ImageField("X_image")
    trained = field.register_field(described("stain"))
    with pytest.raises(ValueError, match="encoder='network', but the model was trained on encoder='stain'"):
        field.transfer_field(trained, described("network"))
    with pytest.raises(ValueError, match="'stain' of other weights"):
        field.transfer_field(trained, described("stain", shift=0.5))
    assert field.transfer_field(trained, described("stain"))["n_features"] == 16


def test_blocks_are_those_of_the_record():
    adata = described("network+stain")
    adata.uns["X_image"]["blocks"] = np.array([12, 4])
    assert ImageField("X_image").register_field(adata)["blocks"] == [12, 4]
    adata.obsm["X_image"] = adata.obsm["X_image"][:, :10]  # features that were changed since
    with pytest.raises(ValueError, match=r"'blocks'\] says \[12, 4\] features, and adata.obsm\['X_image'\] has 10"):
        ImageField("X_image").register_field(adata)
    adata.uns["X_image"] = {"blocks": [6, 4]}  # of features made elsewhere
    assert ImageField("X_image").register_field(adata)["blocks"] == [6, 4]


def test_features_made_elsewhere_have_no_record():
    field = ImageField("X_image")
    for one, other in (("stain", None), (None, "stain"), (None, None)):
        state = field.transfer_field(field.register_field(described(one)), described(other))
        assert (state["encoder"] is None) == (other is None)
