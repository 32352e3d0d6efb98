"""Stem: expression from image features."""

from __future__ import annotations

from lgdist_scvi.module.nn._image_components import ImageComponents
from lgdist_scvi.module.stem._config import StemConfig
from lgdist_scvi.module.stem._genes import GeneStemModule
from lgdist_scvi.module.stem._module import StemModule

__all__ = ["GeneStemModule", "ImageComponents", "StemConfig", "StemModule"]
