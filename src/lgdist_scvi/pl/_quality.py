"""How far a model can be trusted: skill of its genes, calibration of its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi.metrics import skill_per_gene
from lgdist_scvi.pl._figure import GREY, figure_of, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL_LEVELS = (0.5, 0.8, 0.9, 0.95)  # rows of a model's calibration_.hidden.coverage
_MODEL_GENES = ("all genes", "lowest third by expression", "middle third", "highest third")  # its columns
_N_NAMED = 5


def skill(
    model: Any,
    *,
    estimand: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (5.4, 3.4),
) -> Figure:
    """Plot the skill of every gene over cheap baselines, best first.

    Parameters
    ----------
    model
        A trained model, or what :func:`lgdist_scvi.metrics.skill_per_gene` returned for it.
    estimand
        As in :func:`lgdist_scvi.metrics.skill_per_gene`; of a model only.
    ax, figsize
        Axes to draw into; ``None`` makes a figure of this width and height in inches.

    Returns
    -------
    The figure: one dot with its standard error for each gene, blue where the skill is more than chance. The best are named.

    Raises
    ------
    ValueError
        If no gene has a skill, or the model is not trained.

    Examples
    --------
    >>> pl.skill(model)  # doctest: +SKIP
    """
    table = model if isinstance(model, pd.DataFrame) else skill_per_gene(model, estimand)
    missing = {"skill", "skill_se", "skilled"} - set(table.columns)
    if missing or not table["skill"].notna().any():
        raise ValueError(
            "the table holds no skill of genes; pass a trained model, or what metrics.skill_per_gene(model) returned"
        )
    table = table[table["skill"].notna()].sort_values("skill", ascending=False, kind="stable")
    values, skilled = table["skill"].to_numpy(float), table["skilled"].to_numpy(bool)
    low = max(float(np.quantile(values, 0.02)), -1.0)
    figure, ax = figure_of(ax, figsize)
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    places = np.arange(1, len(values) + 1)
    for chosen, color, label in ((skilled, "C0", "skilled"), (~skilled, "0.7", "not clearly")):
        errors = np.nan_to_num(table["skill_se"].to_numpy(float)[chosen])
        ax.errorbar(
            places[chosen],
            values[chosen],
            errors,
            fmt="o",
            ms=2.5,
            lw=0.6,
            color=color,
            ecolor=color,
            alpha=0.7,
            label=label,
        )
    best = [str(name) for name in table.index[:_N_NAMED]]
    ax.text(0.03, 0.06, "best: " + ", ".join(best), transform=ax.transAxes, fontsize=8, fontstyle="italic", color=GREY)
    span = values.max() - min(low, 0.0)
    ax.set_ylim(min(low, 0.0) - 0.15 * span - 1e-3, values.max() + 0.15 * span + 1e-3)
    ax.set(xlabel="genes, best first", ylabel="skill over the best cheap baseline")
    ax.set_title(f"{int(skilled.sum()):,} of {len(values):,} genes clearly beat the best cheap baseline", fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="upper right")
    tidy(ax)
    return figure


def calibration(
    levels: Any,
    coverage: Sequence[Any] | Mapping[str, Sequence[Any]] | pd.DataFrame | None = None,
    *,
    estimand: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (3.6, 3.6),
) -> Figure:
    """Plot the coverage of prediction intervals on held-out entries against their nominal level.

    Parameters
    ----------
    levels
        A trained model, whose own coverage (of entries that training set aside, over all genes and in thirds by expression) is
        drawn; or nominal levels, between 0 and 1.
    coverage
        At each level what :func:`~lgdist_scvi.metrics.interval_coverage` returned, one curve for each of its strata, or the
        share of held-out values inside; or several such sequences under their names.
    estimand
        ``"rate"`` or ``"captured"``; ``None``: what the model offers, rate first. Of a model only.
    ax, figsize
        Axes to draw into; ``None`` makes a figure of this width and height in inches.

    Returns
    -------
    The figure. Above the diagonal intervals are too wide, below too narrow.

    Raises
    ------
    ValueError
        If the numbers of levels and coverages differ, or a model is not trained.

    Examples
    --------
    >>> pl.calibration(model)  # doctest: +SKIP
    >>> pl.calibration(
    ...     [0.5, 0.9], [metrics.interval_coverage(truth, *bounds, mask) for bounds in both]
    ... )  # doctest: +SKIP
    """
    if coverage is None:
        levels, curves = _of_model(levels, estimand)
    else:
        curves = {}
        for name, values in (coverage if isinstance(coverage, Mapping) else {"": coverage}).items():
            curves |= _curves(name, values)
    nominal = np.atleast_1d(np.asarray(levels, dtype=float))
    order = np.argsort(nominal)
    figure, ax = figure_of(ax, figsize)
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=0)
    for name, reached in curves.items():
        if reached.shape != nominal.shape:
            raise ValueError(f"{len(nominal)} levels but coverage of shape {reached.shape}; one for each level")
        ax.plot(nominal[order], reached[order], "o-", ms=4, lw=1.5, label=name)
    ax.text(0.04, 0.96, "too wide", color=GREY, fontsize=9, ha="left", va="top", transform=ax.transAxes)
    ax.text(0.96, 0.04, "too narrow", color=GREY, fontsize=9, ha="right", va="bottom", transform=ax.transAxes)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal level", ylabel="coverage of held-out values")
    if set(curves) != {""}:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92), fontsize=8)
    tidy(ax)
    return figure


def _of_model(model: Any, estimand: str | None) -> tuple[Sequence[float], dict[str, np.ndarray]]:
    if getattr(model, "calibration_", None) is None:
        raise ValueError("pass a trained model, or nominal levels and the coverage at each of them")
    offered = model.calibration_.hidden.coverage
    estimand = next(iter(sorted(offered, reverse=True))) if estimand is None else estimand  # "rate" before "captured"
    if estimand not in offered:
        raise ValueError(f"estimand must be one of {', '.join(map(repr, offered))} for this model, got {estimand!r}")
    columns = np.asarray(offered[estimand], dtype=float).T
    return _MODEL_LEVELS, dict(zip(_MODEL_GENES, columns, strict=True))


def _curves(name: str, values: Any) -> dict[str, np.ndarray]:
    """Coverage at each level by the name of its curve."""
    values = [values] if isinstance(values, pd.DataFrame) else list(values)
    if not any(isinstance(value, pd.DataFrame) for value in values):
        return {name: np.asarray(values, dtype=float)}
    by_level = pd.concat([table["coverage"] for table in values], axis=1).T
    if by_level.shape[1] == 1:
        return {name: by_level.iloc[:, 0].to_numpy(float)}
    return {f"{name} {stratum}".strip(): by_level[stratum].to_numpy(float) for stratum in by_level}
