"""What a model predicts better than cheap baselines, gene by gene."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

MIN_ENTRIES = 20


def skill_per_gene(model: Any, estimand: str | None = None, min_entries: int = MIN_ENTRIES) -> pd.DataFrame:
    r"""Compare a trained model with the best cheap baseline, on entries held out in training.

    .. math:: \mathrm{skill}_g = 1 - \mathrm{MSE}_g(\text{model}) / \min_b \mathrm{MSE}_g(\text{baseline } b)

    over the held-out entries of gene g, in log1p(CP10K). Neither model nor baselines see any held-out entry, also not of the
    neighbours. All predict the same quantity, the *expected measured value*: squared error is smallest for exactly that, so that
    no method can win by bias. For ``"rate"`` all held-out entries are scored, zeros included, and the model's rate is turned into
    E[log1p(CP10K)] of the count it implies at the spot's depth (the completed layer holds log1p of the rate itself, which is not
    the mean of measured values). For ``"captured"`` the entries with counts are scored, by the expected value given a count.

    The baselines are the mean of the gene (``"gene mean"``) and that of the spatial neighbours, shrunk toward it
    (``"neighbor mean"``). Both know the depth of the spot, as the model does: each is a mean of values with a linear trend in the
    logarithm of the library size, or a share of molecules at the spot's depth, whichever does better on the slide. That choice,
    the shrinkage and the better baseline of each gene are made on the scored entries, which favours the baselines. A median is
    not among them: as an estimate of a mean it loses to the neighbour mean.

    Parameters
    ----------
    model
        Trained :class:`~lgdist_scvi.LGDiST`. The skill is measured once, at the end of training, on at most 4,096 spots.
    estimand
        ``"rate"`` or ``"captured"``; ``None``: what the likelihood offers, rate first.
    min_entries
        Fewest held-out entries of a gene that can be called skilled.

    Returns
    -------
    One row per registered gene:

    - `n`: scored entries;
    - `mse_model`, `mse_baseline`: mean squared errors, log1p(CP10K) squared;
    - `baseline`: name of the best baseline;
    - `skill`: 1 is perfect, 0 as good as the best baseline; NaN without entries, or if a baseline makes no error;
    - `skill_se`: its standard error over entries. On a slide of 1,000 spots about 50 entries of a gene are held out, and
      an estimate from 50 entries is rough;
    - `skilled`: whether `n` reaches `min_entries` and `skill` exceeds its standard error. A gene without skill passes in about
      one case of six, one with little skill may fail: do not read much into a single gene near the line.

    Raises
    ------
    ValueError
        If the model is not trained, or its likelihood does not offer the estimand.
    """
    table = model.skill_table(estimand)
    table = table[[name for name in table.columns if not name.startswith("mse: ")]].copy()
    table["skilled"] = (table["n"] >= min_entries) & (table["skill"] > table["skill_se"])
    return table


def compare(genes: np.ndarray, n_genes: int, model: np.ndarray, baselines: dict[str, np.ndarray]) -> dict[str, Any]:
    """Summarise squared errors of the model, (n_entries,), and of baselines by name, by the gene of each entry.

    Returns
    -------
    Columns of :func:`skill_per_gene` but `skilled`, (n_genes,) each, and the error of every baseline as ``"mse:
    <name>"``.
    """
    n = np.bincount(genes, minlength=n_genes)
    errors = np.stack(list(baselines.values()))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(genes, values, minlength=n_genes) / np.maximum(n, 1)

    mse_model, means = mean(model), np.stack([mean(error) for error in errors])
    best, mse_baseline = means.argmin(axis=0), means.min(axis=0)
    chosen = errors[best[genes], np.arange(len(genes))]
    scored = (n > 0) & (mse_baseline > 1e-12)
    ratio = np.divide(mse_model, mse_baseline, out=np.full(n_genes, np.nan), where=scored)
    # delta method for a ratio of means of paired errors
    residual = model - np.nan_to_num(ratio)[genes] * chosen
    spread = np.sqrt(np.bincount(genes, residual**2, minlength=n_genes)) / np.maximum(n - 1, 1)
    standard_error = np.divide(spread, mse_baseline, out=np.full(n_genes, np.nan), where=scored & (n > 1))
    return {
        "n": n,
        "mse_model": np.where(n > 0, mse_model, np.nan),
        "mse_baseline": np.where(n > 0, mse_baseline, np.nan),
        "baseline": np.array(list(baselines))[best],
        "skill": 1 - ratio,
        "skill_se": standard_error,
        **{f"mse: {name}": values for name, values in zip(baselines, means, strict=True)},
    }
