"""Comparison of methods, and predicted against held-out values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi.metrics import completion_scores
from lgdist_scvi.pl._figure import GREY, figure_of, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "mse": "MSE",
    "mae": "MAE",
    "pcc_gene": "correlation\nwithin genes",
    "pcc_spot": "correlation\nwithin spots",
    "r2_gene": "R²\nwithin genes",
    "r2_spot": "R²\nwithin spots",
    "d2": "deviance explained",
}
_SMALLER_IS_BETTER = ("mse", "mae", "crps", "energy_score")


def held_out(
    truth: Any,
    prediction: Any,
    mask: np.ndarray,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (4.6, 4.0),
) -> Figure:
    """Plot predicted against held-out values, as densities of entries.

    Parameters
    ----------
    truth
        Measured values, log1p(CP10K), (n_obs, n_vars); dense, sparse or a data frame.
    prediction
        Predicted values, the same scale and shape.
    mask
        True for the held-out entries.
    title
        Text above the scores, such as the name of the method.
    ax, figsize
        Axes to draw into; ``None`` makes a figure of this width and height in inches.

    Returns
    -------
    The figure; its title gives MSE and correlation of :func:`~lgdist_scvi.metrics.completion_scores`.

    Raises
    ------
    ValueError
        As :func:`~lgdist_scvi.metrics.completion_scores`.
    """
    from matplotlib.ticker import MaxNLocator

    from lgdist_scvi.metrics._arrays import scored_entries, take

    scores = completion_scores(truth, prediction, mask)
    entries = scored_entries(mask)
    true, predicted = take(truth, *entries, "truth"), take(prediction, *entries, "prediction")
    low = float(min(true.min(), predicted.min()))
    high = float(max(np.quantile(true, 0.9995), np.quantile(predicted, 0.9995)))
    margin = 0.03 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    figure, ax = figure_of(ax, figsize)
    density = ax.hexbin(
        true,
        predicted,
        gridsize=55,
        extent=(low, high, low, high),
        bins="log",
        mincnt=1,
        cmap="viridis",
        linewidths=0.1,
    )
    ax.plot([low, high], [low, high], color="0.25", lw=1, ls="--")
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set(xlabel="held out, log1p(CP10K)", ylabel="predicted, log1p(CP10K)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    caption = f"MSE {scores['mse']:.3f}, correlation {scores['pcc_gene']:.2f} within genes"
    ax.set_title(caption if title is None else f"{title}\n{caption}", fontsize=10)
    bar = figure.colorbar(density, ax=ax, shrink=0.8, aspect=24, pad=0.02)
    bar.set_label(f"entries (of {scores['n']:,})", fontsize=9)
    bar.outline.set_visible(False)
    tidy(ax)
    return figure


def scores(
    table: pd.DataFrame | Mapping[str, Mapping[str, float]],
    metrics: Sequence[str] = ("mse", "pcc_gene", "pcc_spot"),
    *,
    highlight: str | Sequence[str] | None = None,
    floor: float | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Compare methods, one panel for each score, best on top by the first.

    Parameters
    ----------
    table
        Scores of methods: {method: result of :func:`~lgdist_scvi.metrics.completion_scores`}, or a data frame with
        methods in rows.
    metrics
        Scores to show; those that the table does not have are left out.
    highlight
        Method or methods to set apart by colour.
    floor
        :func:`~lgdist_scvi.metrics.poisson_floor`, drawn into the panel of the MSE.
    figsize
        Width and height in inches.

    Returns
    -------
    The figure.

    Raises
    ------
    ValueError
        If the table is empty or has none of the scores.
    """
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table).T
    shown = [metric for metric in metrics if metric in frame.columns]
    if not shown or frame.empty:
        raise ValueError(
            f"none of the scores {list(metrics)} is in the table; available: {list(map(str, frame.columns)) or 'none'}"
        )
    frame = frame.sort_values(shown[0], ascending=shown[0] not in _SMALLER_IS_BETTER, kind="stable")
    apart = {highlight} if isinstance(highlight, str) else set(highlight or ())
    colors = ["C1" if method in apart else "C0" for method in frame.index]
    n_methods = len(frame)
    figure, axes = new_figure(1, len(shown), figsize or (1.3 + 2.3 * len(shown), 0.9 + 0.32 * n_methods), sharey=True)
    places = np.arange(n_methods)
    for ax, metric in zip(axes[0], shown, strict=True):
        values = frame[metric].to_numpy(dtype=float)
        ax.hlines(places, 0, np.nan_to_num(values), color="0.85", lw=1.5, zorder=1)
        ax.scatter(values, places, c=colors, s=36, zorder=2)
        for place, value in zip(places, values, strict=True):
            if np.isfinite(value):
                ax.annotate(
                    f"{value:z.3f}",
                    (max(value, 0), place),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        _limits(ax, values)
        if metric == "mse" and floor is not None:
            ax.axvline(floor, color=GREY, lw=1, ls="--", zorder=0)
            ax.annotate(
                "noise floor",
                (floor, 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=8,
                color=GREY,
            )
        better = "smaller" if metric in _SMALLER_IS_BETTER else "larger"
        ax.set_xlabel(f"{_LABELS.get(metric, metric)}\n({better} is better)", fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=8)
        ax.margins(y=0.6 / max(1, n_methods))
        tidy(ax)
        ax.spines["left"].set_visible(metric == shown[0])
    axes[0, 0].set_yticks(places, [str(method).replace("_", " ") for method in frame.index])
    return figure


def _limits(ax: Axes, values: np.ndarray) -> None:
    """Start at 0 and leave room for the labels."""
    finite = values[np.isfinite(values)]
    low, high = min(0.0, *finite, 0.0), max(0.0, *finite, 0.0)
    span = high - low or 1.0
    ax.set_xlim(low - 0.03 * span, high + 0.28 * span)
