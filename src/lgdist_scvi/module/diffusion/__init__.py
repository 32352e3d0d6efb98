"""Diffusion of a vector; knows nothing of genes, neighbourhoods or images."""

from lgdist_scvi.module.diffusion._gene_dit import GeneDiT
from lgdist_scvi.module.diffusion._process import GaussianDiffusion
from lgdist_scvi.module.diffusion._residual import ResidualDiffusion
from lgdist_scvi.module.diffusion._vector_dit import VectorDiT

__all__ = ["GaussianDiffusion", "GeneDiT", "ResidualDiffusion", "VectorDiT"]
