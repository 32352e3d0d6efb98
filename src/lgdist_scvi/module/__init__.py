"""Networks in torch; no AnnData."""

from lgdist_scvi.module._denoiser import Denoiser
from lgdist_scvi.module._diffusion import GaussianDiffusion
from lgdist_scvi.module._experts import fit_experts
from lgdist_scvi.module._module import LGDiSTModule
from lgdist_scvi.module._vae import NeighborhoodVAE

__all__ = ["Denoiser", "GaussianDiffusion", "LGDiSTModule", "NeighborhoodVAE", "fit_experts"]
