"""Stem: expression from image features."""

from __future__ import annotations

from lgdist_scvi.module.nn._image_components import ImageComponents
from lgdist_scvi.module.stem._choice import choose_synthetic_weight
from lgdist_scvi.module.stem._config import StemConfig
from lgdist_scvi.module.stem._genes import GeneStemModule
from lgdist_scvi.module.stem._module import StemModule
from lgdist_scvi.module.stem._patches import with_synthetic

__all__ = ["GeneStemModule", "ImageComponents", "StemConfig", "StemModule", "choose_synthetic_weight", "with_synthetic"]
