"""Figure of the negative controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lgdist_scvi.pl._figure import GREY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "skill from": ("shuffled coordinates", "skill over the gene means", "real slide", "shuffled"),
    "of Poisson genes": ("Poisson genes added", "mean over the added genes", "measured", "completed"),
}
_COLORS = {True: "C2", False: "C3", None: "C0"}


def negative_controls(table: pd.DataFrame, *, figsize: tuple[float, float] | None = None) -> Figure:
    """Show what was found where there is nothing to find.

    Parameters
    ----------
    table
        Result of :func:`lgdist_scvi.metrics.negative_controls`.
    figsize
        Width and height in inches.

    Returns
    -------
    The figure, one panel per control: the reference as a ring, the control as a dot, green where it keeps its limit (the upright
    line), red where not, blue where there is no limit.

    Raises
    ------
    ValueError
        If the table has no rows of a negative control.
    """
    panels = {part: table[[part in str(name) for name in table.index]] for part in _PANELS}
    panels = {part: rows for part, rows in panels.items() if len(rows)}
    if not panels:
        raise ValueError("the table has no negative control; pass what metrics.negative_controls(model) returned")
    figure, axes = new_figure(1, len(panels), figsize or (4.6 * len(panels), 2.4))
    for ax, (part, rows) in zip(axes[0], panels.items(), strict=True):
        _panel(ax, rows, [name.replace(part, "").strip() for name in rows.index], *_PANELS[part])
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, names: list[str], title: str, label: str, before: str, after: str) -> None:
    places = np.arange(len(rows))[::-1]
    reference, control = rows["reference"].to_numpy(float), rows["control"].to_numpy(float)
    # the limit is on the excess: where the dot would have to stay left of
    limits = control - rows["excess"].to_numpy(float) + rows["limit"].to_numpy(float)
    passed = [None if pd.isna(value) else bool(value) for value in rows["passed"]]
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    ax.hlines(places, reference, control, color="0.85", lw=2, zorder=1)
    ax.scatter(reference, places, s=42, facecolors="white", edgecolors=GREY, zorder=2)
    ax.scatter(control, places, s=42, c=[_COLORS[value] for value in passed], zorder=3)
    bounded = np.isfinite(limits)
    ax.vlines(limits[bounded], places[bounded] - 0.1, places[bounded] + 0.25, color=GREY, lw=1.2)
    for place, limit in zip(places[bounded], limits[bounded], strict=True):
        ax.annotate(
            "limit", (limit, place + 0.25), (0, 2), textcoords="offset points", ha="center", fontsize=7, color=GREY
        )
    for values, name, offset, va, color in (
        (reference, before, 6, "bottom", GREY),
        (control, after, -6, "top", "0.15"),
    ):
        for place, value in zip(places, values, strict=True):
            ax.annotate(
                f"{name} {value:z.3f}",
                (value, place),
                (0, offset),
                textcoords="offset points",
                ha="center",
                va=va,
                fontsize=7.5,
                color=color,
            )
    ax.set_yticks(places, names)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.margins(x=0.2)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(label, fontsize=9)
    ax.tick_params(axis="y", length=0)
    tidy(ax)
