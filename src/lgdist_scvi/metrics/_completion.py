"""Scores of a completion on entries that were hidden from it."""

from __future__ import annotations

import numpy as np

from lgdist_scvi.metrics._arrays import Matrix, check_alike, dense, scored_entries, take


def completion_scores(truth: Matrix, prediction: Matrix, mask: Matrix, *, min_entries: int = 5) -> dict[str, float]:
    """Score predicted expression on held-out entries.

    Correlations and R2 are computed within each gene (over its scored spots) or each spot (over its scored genes) and
    averaged, every gene or spot counting alike. Those with fewer than `min_entries` scored entries or with constant truth
    are left out. A constant prediction of a truth that varies counts as correlation 0, so that a method cannot gain by
    giving up on hard genes.

    Parameters
    ----------
    truth
        Measured values, log1p(CP10K), (n_obs, n_vars); dense, sparse or a data frame.
    prediction
        Predicted values, the same scale and shape. Two data frames must have the same spots and genes in the same order.
    mask
        True for the entries to score, such as ``layers["held_out"]``.
    min_entries
        Fewest scored entries of a gene or spot that enters the averages.

    Returns
    -------
    - ``"mse"``, ``"mae"``: mean squared and absolute error over all scored entries;
    - ``"pcc_gene"``, ``"pcc_spot"``: mean Pearson correlation within genes and within spots;
    - ``"r2_gene"``, ``"r2_spot"``: mean coefficient of determination, 1 - squared error / squared deviation from the mean
      of the gene's (spot's) scored truth; 0 for a prediction as good as that mean;
    - ``"n"``: number of scored entries.

    Averages over no gene or spot are NaN.

    Raises
    ------
    ValueError
        If shapes or labels disagree, the mask is not bool or empty, or a scored value is NaN or infinite.
    """
    check_alike(truth=truth, prediction=prediction, mask=mask)
    rows, columns = scored_entries(mask)
    true = take(truth, rows, columns, "truth")
    predicted = take(prediction, rows, columns, "prediction")
    error = predicted - true
    scores = {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}
    by_axis = {
        "gene": _within(true, predicted, columns, min_entries),
        "spot": _within(true, predicted, rows, min_entries),
    }
    for place, score in enumerate(("pcc", "r2")):
        for axis, values in by_axis.items():
            scores[f"{score}_{axis}"] = values[place]
    return {**scores, "n": len(true)}


def _within(true: np.ndarray, predicted: np.ndarray, groups: np.ndarray, min_entries: int) -> tuple[float, float]:
    """Mean Pearson correlation and mean R2 within groups."""
    number = np.bincount(groups)

    def centre(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(groups, values) / np.maximum(number, 1))[groups]

    true_c, predicted_c = centre(true), centre(predicted)
    spread_true = np.bincount(groups, true_c**2)
    spread_predicted = np.bincount(groups, predicted_c**2)
    covariance = np.bincount(groups, true_c * predicted_c)
    # rounding leaves a trace of variance in constant values
    negligible = 1e-12 * np.maximum(1, np.bincount(groups, true**2))
    scored = (number >= max(2, min_entries)) & (spread_true > negligible)
    if not scored.any():
        return float("nan"), float("nan")
    varies = scored & (spread_predicted > 1e-12 * np.maximum(1, np.bincount(groups, predicted**2)))
    correlation = np.zeros(len(number))
    correlation[varies] = covariance[varies] / np.sqrt(spread_true[varies] * spread_predicted[varies])
    r2 = 1 - np.bincount(groups, (true - predicted) ** 2)[scored] / spread_true[scored]
    return float(correlation[scored].mean()), float(r2.mean())


def variance_ratio(observed: Matrix, completed: Matrix, mask: Matrix | None = None) -> np.ndarray:
    """Variance of each gene after completion, relative to before.

    A do-no-harm check: ratios far below 1 show over-smoothing. Means of noisy values vary less than the values, so a ratio
    somewhat below 1 is expected of any posterior mean.

    Parameters
    ----------
    observed
        Values before, log1p(CP10K), (n_obs, n_vars).
    completed
        Values after, the same scale and shape.
    mask
        True for the entries to compare; ``None`` for all.

    Returns
    -------
    Ratios, float64, (n_vars,); NaN for genes with fewer than two entries or constant before.

    Raises
    ------
    ValueError
        If shapes or labels disagree, the mask is not bool or empty, or a compared value is NaN or infinite.
    """
    if mask is None:
        mask = np.ones(observed.shape, dtype=bool)
    check_alike(observed=observed, completed=completed, mask=mask)
    rows, columns = scored_entries(dense(mask))
    n_vars = observed.shape[1]
    number = np.bincount(columns, minlength=n_vars)
    spreads = []
    for name, matrix in (("completed", completed), ("observed", observed)):
        values = take(matrix, rows, columns, name)
        mean = np.bincount(columns, values, minlength=n_vars) / np.maximum(number, 1)
        spreads.append(np.bincount(columns, (values - mean[columns]) ** 2, minlength=n_vars))
    after, before = spreads
    return np.divide(after, before, out=np.full(n_vars, np.nan), where=before > 1e-12 * np.maximum(1, number))
