"""Negative controls: where there is nothing to find, nothing must be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_mask, get_samples
from lgdist_scvi._registered import library_of
from lgdist_scvi._units import known_counts, log1p_cp10k
from lgdist_scvi.metrics._structure import mean_correlation, morans_i
from lgdist_scvi.metrics.baselines._data import read_graph

if TYPE_CHECKING:
    from anndata import AnnData

CONTROLS = ("shuffled", "poisson")
_LIMITS = {"shuffled": 0.02, "poisson": 0.05}


def negative_controls(
    model: Any,
    controls: str | Sequence[str] = CONTROLS,
    *,
    n_poisson: int = 20,
    train_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train the model again where there is nothing to find, and see what it finds.

    This **trains one new model for each control**, with the settings of the given one, and takes that many times as long.
    Neither the model nor its data are changed.

    ``"shuffled"``: spots change places within each slide, with all their counts. Space tells nothing any more, so that what a
    model predicts from the neighbours alone must be no better than the gene means, and what it lost against the real slide is
    what space had given.

    ``"poisson"``: genes are added whose counts are Poisson draws from a constant share of each spot's library. They have neither
    spatial structure nor partners, and the completion must not give them any.

    Parameters
    ----------
    model
        Trained :class:`~lgdist_scvi.LGDiST` with its data.
    controls
        Which of ``"shuffled"`` and ``"poisson"``.
    n_poisson
        Genes to add, with shares from the first to the last decile of the genes; at most a fifth of the genes there are.
    train_kwargs
        Arguments of `train`; ``None``: those that the model was trained with.
    seed
        Of the shuffling and the Poisson draws.

    Returns
    -------
    One row per question, with `reference`, `control`, `excess`, `limit` and `passed` (`excess` at most `limit`):

    - ``"skill from neighbors alone"``: 1 - MSE / MSE of the gene means on set-aside entries (as in :func:`skill_per_gene`, all
      genes together), a spot's own entries hidden. On the real slide, and shuffled; the excess is the shuffled one, limit 0.02;
    - ``"skill from everything"``: the same with the spot's own entries. The excess is what space gave, real minus shuffled; no
      limit;
    - ``"Moran's I of Poisson genes"``: mean over the added genes, measured and completed (``observed="keep"``), and the rise;
      limit 0.05;
    - ``"correlation of Poisson genes"``: mean absolute correlation with all other genes, likewise.

    Raises
    ------
    ValueError
        If the model is not trained or has no data, or a control is unknown.
    """
    controls = [controls] if isinstance(controls, str) else list(controls)
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown or not controls:
        raise ValueError(f"unknown controls {unknown}; available: {', '.join(map(repr, CONTROLS))}")
    if not model.is_trained_:
        raise ValueError("the model is not trained yet; call model.train() first")
    if model.adata is None:
        raise ValueError("the model has no data to shuffle; load it with its data: LGDiST.load(folder, adata=adata)")
    calls = (
        [dict(train_kwargs)] if train_kwargs is not None else [dict(c["arguments"]) for c in model.training_] or [{}]
    )
    rng = np.random.default_rng(seed)
    rows: dict[str, tuple[float, float, float, float]] = {}
    if "shuffled" in controls:
        data, setup = _copy(model)
        _shuffle(data, setup, rng)
        shuffled = _train(model, data, setup, calls)
        for name, alone in (("skill from neighbors alone", True), ("skill from everything", False)):
            real, control = (_explained(m.skill_table(neighbors_only=alone)) for m in (model, shuffled))
            excess, limit = (control, _LIMITS["shuffled"]) if alone else (real - control, np.nan)
            rows[name] = real, control, excess, limit
    if "poisson" in controls:
        for name, measured, completed in _poisson(model, n_poisson, calls, rng):
            rows[name] = measured, completed, completed - measured, _LIMITS["poisson"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["reference", "control", "excess", "limit"])
    table["passed"] = (table["excess"] <= table["limit"]).astype("boolean").mask(table["limit"].isna())
    return table.rename_axis("question")


def _copy(model: Any) -> tuple[AnnData, dict[str, Any]]:
    """What the model was given of its data, and the arguments to register the copy."""
    from anndata import AnnData

    adata, setup = model.adata, dict(model.registry_["setup_args"])
    layers = {} if setup["mask_layer"] is None else {setup["mask_layer"]: get_mask(adata, setup["mask_layer"]).copy()}
    copy = AnnData(
        get_counts(adata, setup["layer"]).copy(),
        obs=adata.obs.copy(),
        var=pd.DataFrame(index=adata.var_names.copy()),
        layers=layers,
        obsm={setup["spatial_key"]: np.array(adata.obsm[setup["spatial_key"]])},
        obsp={setup["graph_key"]: sparse.csr_matrix(adata.obsp[setup["graph_key"]], copy=True)},
    )
    return copy, setup | {"layer": None}


def _train(model: Any, data: AnnData, setup: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> Any:
    """Train a model like the given one on other data."""
    cls = type(model)
    cls.setup_anndata(data, **setup)
    other = cls(data, **model.init_params_["non_kwargs"])
    for arguments in calls:
        other.train(**arguments)
    return other


def _shuffle(data: AnnData, setup: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Let spots change places within each slide."""
    samples, place = get_samples(data, setup["sample_key"]), np.arange(data.n_obs)
    for sample in np.unique(samples):
        spots = np.flatnonzero(samples == sample)
        place[spots] = rng.permutation(spots)
    spatial, graph = setup["spatial_key"], setup["graph_key"]
    data.obsm[spatial] = data.obsm[spatial][place]
    data.obsp[graph] = data.obsp[graph][place][:, place]


def _explained(table: pd.DataFrame) -> float:
    """1 - MSE / MSE of the gene means over all scored entries."""
    return float(1 - (table["n"] * table["mse_model"]).sum() / (table["n"] * table["mse: gene mean"]).sum())


def _poisson(
    model: Any, n_poisson: int, calls: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> list[tuple[str, float, float]]:
    """Complete a slide with Poisson genes: name of the measure, its mean measured and completed."""
    from anndata import AnnData

    data, setup = _copy(model)
    mask_layer, size_factor_key, n_vars = setup["mask_layer"], setup["size_factor_key"], data.n_vars
    known = None if mask_layer is None else data.layers[mask_layer]
    seen = known_counts(data.X, known)
    library = library_of(data, seen, size_factor_key)
    n_poisson = int(np.clip(n_poisson, 1, max(1, n_vars // 5)))
    share = np.asarray(seen.sum(axis=0)).ravel() / library.sum()
    share = np.quantile(share[share > 0], np.linspace(0.1, 0.9, n_poisson))
    drawn = rng.poisson(library[:, None] * share).astype(np.float32)
    names = [f"Poisson control {gene + 1}" for gene in range(n_poisson)]
    if size_factor_key is not None:
        data.obs[size_factor_key] = library + drawn.sum(axis=1)
    layers = {}
    if known is not None:
        zeros_are_missing = model.gene_likelihood_ == "normal"
        layers[mask_layer] = np.hstack([known, drawn > 0 if zeros_are_missing else np.ones(drawn.shape, dtype=bool)])
    extended = AnnData(
        sparse.csr_matrix(sparse.hstack([sparse.csr_matrix(data.X), sparse.csr_matrix(drawn)])),
        obs=data.obs,
        var=pd.DataFrame(index=[*data.var_names, *names]),
        layers=layers,
        obsm=dict(data.obsm),
        obsp=dict(data.obsp),
    )
    other = _train(model, extended, setup, calls)
    after = other.get_completed_expression(return_numpy=True)
    counts = known_counts(extended.X, layers.get(mask_layer))
    before = log1p_cp10k(counts, library_of(extended, counts, size_factor_key))
    added, graph = np.arange(n_vars, n_vars + n_poisson), read_graph(extended, setup["graph_key"])
    samples = get_samples(extended, setup["sample_key"])
    return [
        (
            "Moran's I of Poisson genes",
            *(float(np.nanmean(morans_i(values[:, added], graph, samples))) for values in (before, after)),
        ),
        (
            "correlation of Poisson genes",
            *(float(mean_correlation(values, added).mean()) for values in (before, after)),
        ),
    ]
