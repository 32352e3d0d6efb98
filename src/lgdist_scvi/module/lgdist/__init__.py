"""The module of LGDiST."""

from __future__ import annotations

from lgdist_scvi.module.lgdist._autoencoder import NeighborhoodAutoencoder
from lgdist_scvi.module.lgdist._config import LGDiSTConfig
from lgdist_scvi.module.lgdist._fit_experts import fit_experts
from lgdist_scvi.module.lgdist._hiding import Hide
from lgdist_scvi.module.lgdist._module import LGDiSTModule

__all__ = ["Hide", "LGDiSTConfig", "LGDiSTModule", "NeighborhoodAutoencoder", "fit_experts"]
