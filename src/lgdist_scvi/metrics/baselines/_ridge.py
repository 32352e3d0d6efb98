"""Ridge regression on a spot's other genes and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from lgdist_scvi.metrics.baselines._baseline import baseline
from lgdist_scvi.metrics.baselines._data import LogData, best
from lgdist_scvi.metrics.baselines._embedding import spot_features, truncated_svd

_PENALTIES = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0)
_SMALLEST = np.float32(1e-6)  # penalty of inputs that are constant
_OWN_GENE_SCALE = np.float32(10)  # the gene's own neighbour mean is hardly penalised


@baseline(
    without_mask="ridge predicts a gene from the other genes, which ignores the evidence of a zero; it needs missing entries "
    "(mask_layer=...). Where zeros are data, use pca or poisson_nmf"
)
def ridge(
    data: LogData,
    graph: sparse.csr_matrix,
    seed: int,
    alpha: float | None = None,
    n_components: int = 100,
) -> np.ndarray:
    """Predict each gene by ridge regression from the spot's other genes and from its neighbours.

    Input of gene g in spot i: the principal components of the spot's values and detection *without gene g*, the mean of
    the neighbours' components, and the neighbours' mean of gene g. Fitted on the spots in which g is observed.

    Parameters
    ----------
    alpha
        Penalty, the same for all genes; ``None``: chosen on an inner hold-out.
    n_components
        Number of principal components; at most a fifth of the spots.
    """
    n_components = max(1, min(n_components, len(data.mask) // 5))
    if alpha is None:
        fit, loss = data.split(seed)
        alpha = best(zip(_PENALTIES, _fit_genes(fit, graph, _PENALTIES, n_components, seed), strict=True), loss)
    return _fit_genes(data, graph, (alpha,), n_components, seed)[0]


def _fit_genes(
    data: LogData, graph: sparse.csr_matrix, penalties: Sequence[float], n_components: int, seed: int
) -> np.ndarray:
    """Fit every gene with every penalty: predictions, float32, (penalties, n_obs, columns)."""
    values, detected = spot_features(data)
    n_obs, n_vars = values.shape
    u, s, vt = truncated_svd(np.hstack([values, detected]), n_components, seed)
    scores = u * s
    n_neighbors = np.maximum(graph.getnnz(axis=1), 1).astype(np.float32)
    neighborhood = (graph @ scores) / n_neighbors[:, None]
    own_gene = (graph @ values[:, data.columns]) / (graph @ data.mask[:, data.columns].astype(np.float32) + 1)

    predictions = np.empty((len(penalties), n_obs, len(data.columns)), dtype=np.float32)
    for place, gene in enumerate(data.columns):
        observed = data.mask[:, gene]
        if not observed.any():
            predictions[:, :, place] = data.mean[gene]
            continue
        # a spot's scores are a sum over genes: taking this gene's terms out hides its own value from the input
        own = scores - np.outer(values[:, gene], vt[:, gene]) - np.outer(detected[:, gene], vt[:, n_vars + gene])
        inputs = np.hstack([own, neighborhood, _OWN_GENE_SCALE * own_gene[:, [place]]])
        predictions[:, :, place] = data.mean[gene] + _ridge(inputs, observed, values[observed, gene], penalties)
    return predictions


def _ridge(inputs: np.ndarray, observed: np.ndarray, target: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """Ridge with an intercept, fitted on the observed rows, for many penalties at once: predictions (penalties, n)."""
    centred = inputs - inputs[observed].mean(axis=0)
    intercept = target.mean()
    eigenvalues, vectors = np.linalg.eigh(centred[observed].T @ centred[observed])
    penalised = np.maximum(eigenvalues, 0) + np.asarray(penalties, dtype=np.float32)[:, None]
    weights = 1 / np.maximum(penalised, np.finfo(np.float32).eps * eigenvalues[-1] + _SMALLEST)
    rotated = centred @ vectors
    return intercept + (weights * (rotated[observed].T @ (target - intercept))) @ rotated.T
