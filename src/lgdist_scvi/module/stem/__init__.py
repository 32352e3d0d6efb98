"""Stem: expression from image features."""

from __future__ import annotations

from lgdist_scvi.module.nn._image_components import ImageComponents
from lgdist_scvi.module.stem._config import StemConfig
from lgdist_scvi.module.stem._module import StemModule
from lgdist_scvi.module.stem._patches import with_synthetic

__all__ = ["ImageComponents", "StemConfig", "StemModule", "with_synthetic"]
