"""Networks, likelihoods and experts in torch; no AnnData."""

from __future__ import annotations

from lgdist_scvi.module.lgdist import LGDiSTConfig, LGDiSTModule, fit_experts

__all__ = ["LGDiSTConfig", "LGDiSTModule", "fit_experts"]
