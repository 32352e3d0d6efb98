"""Negative controls: a model trained on data without structure must find none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_mask, get_samples
from lgdist_scvi._registered import library_of
from lgdist_scvi._units import known_counts, log1p_cp10k
from lgdist_scvi.metrics._structure import mean_correlation, morans_i
from lgdist_scvi.metrics.baselines._data import read_graph

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
    """Train the model again on data whose structure was removed, and measure what it finds.

    This **trains one new model for each control**, with the settings of the given one, and takes that many times as long.
    Neither the model nor its data are changed.

    ``"shuffled"``: spots change places within each slide, with all their counts, so that neighbours are no longer informative.
    Predictions from the neighbours alone must then be no better than the gene means; what the model loses against the real slide
    is what space contributes there.

    ``"poisson"``: genes are added whose counts are Poisson draws from a constant share of each spot's library. They have neither
    spatial structure nor correlation with other genes, and the completion must not give them any. Where zeros are missing, theirs
    are too.

    Parameters
    ----------
    model
        Trained :class:`~lgdist_scvi.LGDiST` with its data.
    controls
        Which of ``"shuffled"`` and ``"poisson"``.
    n_poisson
        Genes to add, with shares from the first to the last decile of the genes; at most a fifth of the genes there are.
    train_kwargs
        Arguments of `train`; ``None`` or none: those that the model was trained with.
    seed
        Seed of the shuffling and the Poisson draws.

    Returns
    -------
    One row per question, with `reference`, `control`, `excess`, `limit` and `passed` (`excess` at most `limit`):

    - ``"skill from neighbors alone"``: 1 - MSE / MSE of the gene means on entries held out in training (as in
      :func:`skill_per_gene`, all genes together), a spot's own entries hidden; on the real slide and shuffled. The excess is the
      shuffled one, limit 0.02;
    - ``"skill from everything"``: the same with the spot's own entries. The excess is what space contributes, real minus shuffled;
      no limit;
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
    if not model.is_trained:
        raise ValueError("the model is not trained yet; call model.train() first")
    kwargs, rng = dict(train_kwargs or {}), np.random.default_rng(seed)
    rows: dict[str, tuple[float, float, float, float]] = {}
    if "shuffled" in controls:
        shuffled = model.retrain(_shuffled(model, rng), **kwargs)
        for name, alone in (("skill from neighbors alone", True), ("skill from everything", False)):
            real, control = (_explained(m.skill_table(neighbors_only=alone)) for m in (model, shuffled))
            excess, limit = (control, _LIMITS["shuffled"]) if alone else (real - control, np.nan)
            rows[name] = real, control, excess, limit
    if "poisson" in controls:
        data, added = _with_poisson_genes(model, n_poisson, rng)
        completed = model.retrain(data, setup={"layer": None}, **kwargs).get_completed_expression(return_numpy=True)
        for name, before, after in _structure(model, data, added, completed):
            rows[name] = before, after, after - before, _LIMITS["poisson"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["reference", "control", "excess", "limit"])
    table["passed"] = (table["excess"] <= table["limit"]).astype("boolean").mask(table["limit"].isna())
    return table.rename_axis("question")


def _shuffled(model: Any, rng: np.random.Generator) -> AnnData:
    """The model's data, spots permuted within each slide."""
    data = model.copy_data()
    samples, place = get_samples(data, model.get_setup_arg("sample_key")), np.arange(data.n_obs)
    for sample in np.unique(samples):
        spots = np.flatnonzero(samples == sample)
        place[spots] = rng.permutation(spots)
    spatial, graph = model.get_setup_arg("spatial_key"), model.get_setup_arg("graph_key")
    data.obsm[spatial] = np.asarray(data.obsm[spatial])[place]
    data.obsp[graph] = sparse.csr_matrix(data.obsp[graph])[place][:, place]
    return data


def _explained(table: pd.DataFrame) -> float:
    """1 - MSE / MSE of the gene means over all scored entries."""
    return float(1 - (table["n"] * table["mse_model"]).sum() / (table["n"] * table["mse: gene mean"]).sum())


def _with_poisson_genes(model: Any, n_poisson: int, rng: np.random.Generator) -> tuple[AnnData, np.ndarray]:
    """The model's data with added genes, counts in `X`; and the positions of these genes."""
    data, mask_layer = model.copy_data(), model.get_setup_arg("mask_layer")
    counts, mask = _observed(model, data, model.get_setup_arg("layer"))
    library = library_of(data, counts, model.get_setup_arg("size_factor_key"))
    mask = np.ones(data.shape, dtype=bool) if mask is None else mask
    n_poisson = int(np.clip(n_poisson, 1, max(1, data.n_vars // 5)))
    share = np.asarray(counts.sum(axis=0)).ravel() / library.sum()
    share = np.quantile(share[share > 0], np.linspace(0.1, 0.9, n_poisson))
    seen = mask.any(axis=1, keepdims=True)
    drawn = rng.poisson(library[:, None] * share) * seen
    drawn[np.argmax(library * seen[:, 0]), ~drawn.any(axis=0)] = 1  # a gene is seen somewhere
    zeros_are_missing = (counts > 0).sum() == mask.sum()
    if zeros_are_missing and mask_layer is None:
        drawn = np.maximum(drawn, 1)  # no zero anywhere: none is added
    layers = {}
    if mask_layer is not None:
        added = drawn > 0 if zeros_are_missing else np.broadcast_to(seen, drawn.shape)
        layers[mask_layer] = np.hstack([mask, added])
    if (size_factor_key := model.get_setup_arg("size_factor_key")) is not None:
        data.obs[size_factor_key] = library + drawn.sum(axis=1)
    names = [f"Poisson control {gene + 1}" for gene in range(n_poisson)]
    extended = AnnData(
        sparse.csr_matrix(sparse.hstack([sparse.csr_matrix(counts), sparse.csr_matrix(drawn)]), dtype=np.float32),
        obs=data.obs,
        var=pd.DataFrame(index=[*data.var_names, *names]),
        layers=layers,
        obsm=dict(data.obsm),
        obsp=dict(data.obsp),
    )
    return extended, np.arange(data.n_vars, extended.n_vars)


def _observed(model: Any, data: AnnData, layer: str | None) -> tuple[np.ndarray | sparse.csr_matrix, np.ndarray | None]:
    """Observed counts, 0 elsewhere, and the mask."""
    mask_layer = model.get_setup_arg("mask_layer")
    mask = None if mask_layer is None else get_mask(data, mask_layer)
    return known_counts(get_counts(data, layer), mask), mask


def _structure(
    model: Any, data: AnnData, added: np.ndarray, completed: np.ndarray
) -> Iterator[tuple[str, float, float]]:
    """Moran's I and correlation of added genes: name of the measure, its mean measured and completed."""
    counts, _ = _observed(model, data, None)
    measured = log1p_cp10k(counts, library_of(data, counts, model.get_setup_arg("size_factor_key")))
    graph = read_graph(data, model.get_setup_arg("graph_key"))
    samples = get_samples(data, model.get_setup_arg("sample_key"))
    for name, measure in (
        ("Moran's I of Poisson genes", lambda values: np.nanmean(morans_i(values[:, added], graph, samples))),
        ("correlation of Poisson genes", lambda values: mean_correlation(values, added).mean()),
    ):
        yield name, float(measure(measured)), float(measure(completed))
