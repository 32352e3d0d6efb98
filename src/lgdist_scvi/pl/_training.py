"""Curves of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi.pl._figure import new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {"train": {"color": "C0", "alpha": 0.9}, "validation": {"color": "C1"}}
_LOG_FROM = 10.0  # ratio of the largest to the smallest loss above which a log axis reads better


def training_history(
    history: Mapping[str, pd.DataFrame] | Any, *, score: str = "loss", figsize: tuple[float, float] | None = None
) -> Figure:
    """Plot training and validation curves, one panel for each stage.

    Parameters
    ----------
    history
        A trained model, or its `history_`: data frames indexed by epoch under keys such as ``"vae/train_loss"`` and
        ``"vae/validation_loss"``; keys without a stage form one panel.
    score
        What to plot: keys that end in ``train_<score>`` and ``validation_<score>``.
    figsize
        Width and height in inches.

    Returns
    -------
    The figure. A log axis is used where losses are positive and span a factor of 10; the best validation epoch is marked.

    Raises
    ------
    ValueError
        If there is no such curve: before training, or where another logger took the losses.
    """
    stages = _stages(getattr(history, "history_", history), score, bool(getattr(history, "is_trained", False)))
    n_stages = len(stages)
    figure, axes = new_figure(1, n_stages, figsize or (4.4 * n_stages, 3.2))
    for ax, (stage, curves) in zip(axes[0], stages.items(), strict=True):
        for name, curve in curves.items():
            marker = "o" if len(curve) == 1 else None
            ax.plot(curve.index, curve.to_numpy(), label=name, lw=1.6, marker=marker, **_STYLES[name])
        _mark_best(ax, curves.get("validation"))
        values = np.concatenate([curve.to_numpy() for curve in curves.values()])
        if values.min() > 0 and values.max() / values.min() > _LOG_FROM:
            _log_axis(ax)
        ax.set(title=stage, xlabel="epoch", ylabel=score.replace("_", " "))
        ax.legend(frameon=False)
        ax.grid(axis="y", color="0.92")
        tidy(ax)
    return figure


def _log_axis(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _mark_best(ax: Axes, curve: pd.Series | None) -> None:
    if curve is not None and len(curve) > 1:
        ax.plot(curve.idxmin(), curve.min(), "o", ms=5, color=_STYLES["validation"]["color"])
        ax.axvline(curve.idxmin(), color="0.8", lw=1, ls=":", zorder=0)


def _stages(
    history: Mapping[str, pd.DataFrame] | None, score: str, is_trained: bool
) -> dict[str, dict[str, pd.Series]]:
    """Sort curves into {stage: {"train" or "validation": values by epoch}}; values that are not finite are left out."""
    stages: dict[str, dict[str, pd.Series]] = {}
    for key, frame in (history or {}).items():
        stage, _, name = key.rpartition("/")
        for part in _STYLES:
            if name == f"{part}_{score}":
                curve = pd.DataFrame(frame).iloc[:, 0].astype(float)
                curve = curve[np.isfinite(curve)]
                if len(curve):
                    stages.setdefault(stage or "training", {})[part] = curve
    if not stages:
        remedy = "train first"
        if is_trained:
            remedy = (
                "the model is trained, but kept no such curve: losses went to another logger or to none (train(logger=...)); "
                "train without logger to keep them, or read them where that logger wrote them"
            )
        known = ", ".join(repr(key) for key in (history or {})) or "none"
        raise ValueError(f"no curve 'train_{score}' or 'validation_{score}' in history; available: {known}; {remedy}")
    return stages
