"""Networks, likelihoods and experts in torch; no AnnData."""

from lgdist_scvi.module._spots import Condition, Inputs, Neighborhood, Spots, sum_of_neighbors
from lgdist_scvi.module.lgdist import LGDiSTConfig, LGDiSTModule, fit_experts
from lgdist_scvi.module.stem import GeneStemModule, StemConfig, StemModule

__all__ = [
    "Condition",
    "Inputs",
    "GeneStemModule",
    "LGDiSTConfig",
    "LGDiSTModule",
    "Neighborhood",
    "Spots",
    "StemConfig",
    "StemModule",
    "fit_experts",
    "sum_of_neighbors",
]
