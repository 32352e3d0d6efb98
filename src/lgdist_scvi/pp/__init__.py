"""Preprocessing: neighbourhood graphs, observation masks, gene selection, tissue images and hold-outs."""

from lgdist_scvi.pp._genes import select_genes
from lgdist_scvi.pp._hold_out import hold_out
from lgdist_scvi.pp._images import image_features, image_patches
from lgdist_scvi.pp._mask import observed_mask
from lgdist_scvi.pp._neighbors import spatial_neighbors

__all__ = ["hold_out", "image_features", "image_patches", "observed_mask", "select_genes", "spatial_neighbors"]
