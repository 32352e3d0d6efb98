"""Methods under one signature: a task in, log1p(CP10K) of every entry out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._protocols import GIVEN, PROTOCOLS, Task
from lgdist_scvi._units import log1p_cp10k  # noqa: PLC2701  the one scale

if TYPE_CHECKING:
    from lgdist_scvi import LGDiST

HOLD_OUTS = tuple(protocol for protocol in PROTOCOLS if protocol not in GIVEN)
THINNINGS = tuple(GIVEN)


@dataclass(frozen=True)
class Method:
    """A method of the table.

    Attributes
    ----------
    run
        Function of a task and a seed; gives log1p(CP10K), (n_obs, n_genes), and the trained LGDiST or ``None``.
    protocols
        What it has an answer for.
    sources
        Patterns of files, beside what all share, whose change makes an old result obsolete; relative to the repository.
    """

    run: Callable[[Task, int], tuple[np.ndarray, Any]]
    protocols: tuple[str, ...] = PROTOCOLS
    sources: tuple[str, ...] = ()


def _baseline(name: str, task: Task, seed: int) -> tuple[np.ndarray, None]:
    from lgdist_scvi.metrics import baselines

    genes = "target_gene" if task.mask_layer else None
    prediction = getattr(baselines, name)(
        task.adata, mask_layer=task.mask_layer, size_factor_key=task.size_factor_key, genes=genes, seed=seed
    )
    return prediction, None


def _transformer(task: Task, seed: int) -> tuple[np.ndarray, None]:
    from benchmarks._transformer import masked_transformer

    return masked_transformer(task.adata, task.mask_layer, task.size_factor_key, seed=seed), None


def _scvi(task: Task, seed: int) -> tuple[np.ndarray, None]:
    """SCVI with its defaults, stopped early on spots set aside.

    It has no missing values: hidden entries are zeros to it, and its normalised expression is a rate. Its library is the sum
    over the genes it sees, brought to CP10K of the task's library.
    """
    import scvi

    scvi.settings.seed = seed
    adata = task.adata.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key=task.sample_key)
    model = scvi.model.SCVI(adata)
    model.train(early_stopping=True, train_size=0.9, enable_progress_bar=False)
    # one sample of the latent is its default: the mean over many is the better answer
    rate = model.get_normalized_expression(n_samples=25, return_mean=True, return_numpy=True).astype(np.float64)
    seen = np.asarray(adata.X.sum(axis=1), dtype=np.float64).ravel()
    return log1p_cp10k(rate * seen[:, None], task.library), None


def trained(task: Task, seed: int, stage: str = "all", train_kwargs: dict | None = None, **model_kwargs) -> LGDiST:
    """Train LGDiST on a task."""
    import scvi

    from lgdist_scvi import LGDiST

    scvi.settings.seed = seed
    LGDiST.setup_anndata(
        task.adata, mask_layer=task.mask_layer, size_factor_key=task.size_factor_key, sample_key=task.sample_key
    )
    model = LGDiST(task.adata, seed=seed, **model_kwargs)
    model.train(stage=stage, enable_progress_bar=False, **(train_kwargs or {}))
    return model


def _lgdist(task: Task, seed: int, **kwargs) -> tuple[np.ndarray, LGDiST]:
    model = trained(task, seed, **kwargs)
    return model.get_completed_expression(observed="model", estimand=task.estimand, return_numpy=True), model


def _without_neighbors(task: Task, seed: int) -> tuple[np.ndarray, LGDiST]:
    """The same slide with a graph that has no edge."""
    from scipy import sparse

    n_obs = task.adata.n_obs
    for key in ("spatial_connectivities", "spatial_distances"):
        task.adata.obsp[key] = sparse.csr_matrix((n_obs, n_obs))
    return _lgdist(task, seed)


def _without_context(task: Task, seed: int) -> tuple[np.ndarray, None]:
    """Target genes only, in the input as well; their library stays that of all genes."""
    chosen = task.adata.var["target_gene"].to_numpy()
    prediction = np.full(task.adata.shape, np.nan, dtype=np.float32)
    narrow = Task(**{**vars(task), "adata": task.adata[:, chosen].copy()})
    prediction[:, chosen], _ = _lgdist(narrow, seed)
    return prediction, None


_OWN = partial(Method, sources=("src/lgdist_scvi/**/*.py", "benchmarks/_spread.py"))

# adaptive median and ridge take zeros for missing, or ignore them; PCA and Poisson NMF need them as data
BASELINES = {
    "gene_mean": Method(partial(_baseline, "gene_mean")),
    "neighbor_mean": Method(partial(_baseline, "neighbor_mean")),
    "adaptive_median": Method(partial(_baseline, "adaptive_median"), HOLD_OUTS),
    "knn": Method(partial(_baseline, "knn")),
    "ridge": Method(partial(_baseline, "ridge"), HOLD_OUTS),
    "pca": Method(partial(_baseline, "pca"), THINNINGS),
    "poisson_nmf": Method(partial(_baseline, "poisson_nmf"), THINNINGS),
    "soft_impute": Method(partial(_baseline, "soft_impute")),
}
PEERS = {
    **BASELINES,
    # spots without a single count have no place in it
    "scvi": Method(_scvi, ("entry", *THINNINGS)),
    "masked_transformer": Method(_transformer, sources=("benchmarks/_transformer.py",)),
}
MODELS = {"lgdist_vae": _OWN(partial(_lgdist, stage="vae")), "lgdist": _OWN(_lgdist)}
# The paper's ablations. One without a latent space would be another model: here the decoder's start and the residual that is
# diffused are defined by the latent. The nearest are a latent as wide as the network, and, without latent and diffusion, the
# masked transformer. One round is the default.
ABLATIONS = {
    "lgdist_no_context": _OWN(_without_context, HOLD_OUTS),
    "lgdist_wide_latent": _OWN(partial(_lgdist, n_latent=256)),
    "lgdist_no_neighbors": _OWN(_without_neighbors, ("entry", *THINNINGS)),
    "lgdist_centre_hidden": _OWN(partial(_lgdist, conditioning="neighborhood")),
    "lgdist_two_rounds": _OWN(partial(_lgdist, train_kwargs={"n_rounds": 2}), HOLD_OUTS),
}
METHODS = {**PEERS, **MODELS, **ABLATIONS}
