"""What Stem registers of an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scvi.data.fields import BaseAnnDataField

from lgdist_scvi.data import (
    CoordinatesField,
    ImageField,
    ObspField,
    OptionalCountsField,
    OptionalLibraryField,
    OptionalMaskField,
    SampleField,
)


def stem_fields(setup: Mapping[str, Any]) -> list[BaseAnnDataField]:
    """Fields to register; `setup` holds the arguments of `setup_anndata`."""
    sample_key = setup["sample_key"]
    required = [
        OptionalCountsField(setup["layer"]),
        CoordinatesField(setup["spatial_key"], sample_key),
        ObspField(setup["graph_key"], sample_key, setup["spatial_key"]),
        ImageField(setup["image_key"]),
    ]
    optional = (
        (SampleField, sample_key),
        (OptionalMaskField, setup["mask_layer"]),
        (OptionalLibraryField, setup["size_factor_key"]),
    )
    return required + [field(key) for field, key in optional if key is not None]
