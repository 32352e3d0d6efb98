"""What a completed layer does to the analyses that follow it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from lgdist_scvi._anndata import get_obs, get_samples
from lgdist_scvi._checks import require_key
from lgdist_scvi._registered import completed_genes, registered
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.metrics._arrays import dense
from lgdist_scvi.metrics._completion import variance_ratio
from lgdist_scvi.metrics._structure import mean_correlation, morans_i
from lgdist_scvi.metrics.baselines._data import read_graph

_MAX_GENES = 2000  # for the correlations between genes


def do_no_harm(
    adata: AnnData,
    layer: str = "completed",
    labels_key: str | None = None,
    *,
    counts_layer: str | None = None,
    size_factor_key: str | None = None,
    sample_key: str | None = None,
    graph_key: str | None = None,
    n_components: int = 30,
    n_seeds: int = 5,
) -> pd.DataFrame:
    """Compare a completed layer with what was measured: tissue domains, variance, spatial structure, correlation.

    Before is log1p(CP10K) of the counts, after is the layer, for the genes that were completed (all, if
    ``uns[layer]`` does not name them).

    Parameters
    ----------
    adata
        Annotated data after ``model.complete(adata)``, (n_obs, n_vars). Not modified.
    layer
        Layer with the completed values, log1p(CP10K).
    labels_key
        Column of `adata.obs` with the known tissue domains. Spots without a label are left out of the comparison with them.
        ``None``: no such comparison.
    counts_layer, size_factor_key, sample_key, graph_key
        Layer with raw counts, columns of `adata.obs` with library size and slide, key of `adata.obsp` with the neighbourhood
        graph; ``None``: what ``uns[layer]`` says that the model was given, else `adata.X`, the sum of the counts, one slide
        and ``"spatial_connectivities"``.
    n_components
        Principal components that are clustered.
    n_seeds
        Clusterings, each with a seed of its own.

    Returns
    -------
    `before`, `after`, `change`, and the standard deviations `before_sd`, `after_sd`, of

    - ``"domain ARI"``: adjusted Rand index with the labels of k-means (as many clusters as labels) on principal components;
      mean and standard deviation over seeds. A completion that makes it smaller does harm;
    - ``"variance ratio"``: variance of a gene relative to before (:func:`variance_ratio`); median and standard deviation over
      genes. Filling zeros by means takes variance away;
    - ``"Moran's I"``: mean and standard deviation over genes. It rises with any completion that looks at neighbours, and is no
      evidence of spatial structure then;
    - ``"gene-gene correlation"``: mean absolute correlation of a gene with the others (at most 2,000 genes, evenly spaced);
      mean and standard deviation over genes. It rises as well, and must not be read as co-expression.

    Raises
    ------
    KeyError
        If the layer, a column of `obs` or the graph is absent.
    ValueError
        If fewer than two labels are left, values are not counts, or the completed genes were renamed.
    """
    given = registered(
        adata,
        layer,
        counts_layer,
        size_factor_key=size_factor_key,
        sample_key=sample_key,
        graph_key=graph_key,
    )
    samples, genes = get_samples(adata, given.sample_key), completed_genes(adata, layer)
    before = log1p_cp10k(given.counts[:, genes], given.library)
    after = np.asarray(dense(adata.layers[layer][:, genes]), dtype=np.float32)

    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if labels_key is not None:
        require_key(adata.obs, labels_key, "adata.obs", "labels_key names the tissue domains")
        labels = get_obs(adata)[labels_key]
        labelled = labels.notna().to_numpy()
        codes, found = pd.factorize(labels[labelled].astype(str))
        if len(found) < 2:
            raise ValueError(
                f"adata.obs[{labels_key!r}] has {len(found)} different labels in {int(labelled.sum()):,} labelled spots; "
                "at least 2 are needed"
            )
        rows["domain ARI"] = tuple(_ari(values[labelled], codes, n_components, n_seeds) for values in (before, after))
    rows["variance ratio"] = np.ones(len(genes)), variance_ratio(before, after)
    graph = read_graph(adata, given.graph_key)
    rows["Moran's I"] = morans_i(before, graph, samples), morans_i(after, graph, samples)
    some = np.unique(np.linspace(0, len(genes) - 1, min(_MAX_GENES, len(genes))).astype(int))
    rows["gene-gene correlation"] = mean_correlation(before[:, some]), mean_correlation(after[:, some])

    table = pd.DataFrame(index=pd.Index(list(rows), name="measure"), columns=["before", "after", "change"], dtype=float)
    for name, pair in rows.items():
        centre = np.nanmedian if name == "variance ratio" else np.nanmean
        for when, values in zip(("before", "after"), pair, strict=True):
            table.loc[name, when], table.loc[name, f"{when}_sd"] = centre(values), np.nanstd(values)
    table["change"] = table["after"] - table["before"]
    return table


def _ari(values: np.ndarray, codes: np.ndarray, n_components: int, n_seeds: int) -> np.ndarray:
    """Adjusted Rand index of clusterings with the labels, (n_seeds,)."""
    import scanpy as sc
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    n_components = min(n_components, *(size - 1 for size in values.shape))
    scores = []
    for seed in range(n_seeds):
        components = sc.pp.pca(values, n_comps=n_components, random_state=seed)
        clusters = KMeans(codes.max() + 1, n_init=10, random_state=seed).fit_predict(components)
        scores.append(adjusted_rand_score(codes, clusters))
    return np.array(scores)
