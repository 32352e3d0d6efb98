"""What a completion has to beat. All share one signature; see :func:`gene_mean`."""

from lgdist_scvi.metrics.baselines._knn import knn
from lgdist_scvi.metrics.baselines._low_rank import pca, soft_impute
from lgdist_scvi.metrics.baselines._means import adaptive_median, gene_mean, neighbor_mean
from lgdist_scvi.metrics.baselines._nmf import poisson_nmf
from lgdist_scvi.metrics.baselines._ridge import ridge

__all__ = ["adaptive_median", "gene_mean", "knn", "neighbor_mean", "pca", "poisson_nmf", "ridge", "soft_impute"]
