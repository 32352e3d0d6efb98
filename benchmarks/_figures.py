"""Figures of stored results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._spread import LEVELS
from benchmarks._tables import TITLES, by_file, coverage, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "scores": "Scores of the methods that have a result on all data sets. Hold-outs: excess MSE as a fraction of the gene mean's "
    "(0: only sampling noise is left). Thinning: deviance explained. One dot per data set, the bar is their mean.",
    "coverage": "Coverage of prediction intervals on hidden entries against their level: mean over data sets, and the band from "
    "the lowest to the highest.",
}
_OURS, _PEER = "#c2410c", "#64748b"
_STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8.5, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e2e8f0", "savefig.bbox": "tight", "savefig.dpi": 110,
}  # fmt: skip


def draw(rows: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Draw what there are results for, as :func:`~benchmarks._tables.scored` gives them: name and path of each figure."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    paths = {}
    with mpl.rc_context(_STYLE):
        for name, function in (("scores", _scores), ("coverage", _coverage)):
            figure = function(rows)
            if figure is not None:
                paths[name] = folder / f"benchmark_{name}.png"
                figure.savefig(paths[name])
                plt.close(figure)
    return paths


def relative_scores(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """D2, or excess MSE relative to the gene means', methods x files."""
    table = by_file(rows, protocol, "d2" if protocol in GIVEN else "excess")
    if protocol in GIVEN or "gene_mean" not in table.index:
        return table
    return table / table.loc["gene_mean"]


def _scores(rows: pd.DataFrame) -> Figure | None:
    import matplotlib.pyplot as plt

    protocols = [p for p in PROTOCOLS if (rows["protocol"] == p).any()]
    if not protocols:
        return None
    n_columns = min(3, len(protocols))
    n_rows = -(-len(protocols) // n_columns)
    size = (0.4 + 3.3 * n_columns, n_rows * (0.8 + 0.24 * rows["method"].nunique()))
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(protocols) :]:
        axis.set_axis_off()
    for axis, protocol in zip(axes.flat, protocols, strict=False):
        table = relative_scores(rows, protocol).dropna()  # means over different slides do not compare
        table = table.loc[table.mean(axis=1).sort_values(ascending=protocol in GIVEN).index]
        lowest = -0.25 if protocol in GIVEN else 0.0
        for place, (method, values) in enumerate(table.iterrows()):
            color = _OURS if str(method).startswith("lgdist") else _PEER
            values = values.clip(lower=lowest, upper=1.6)
            axis.scatter(values, np.full(len(values), place), s=14, color=color, alpha=0.65, linewidths=0)
            axis.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
        axis.set_yticks(range(len(table)), [label(str(method)) for method in table.index])
        axis.set_title(TITLES[protocol].replace(" of the molecules", ""), loc="left")
        axis.set_xlabel("deviance explained, D2" if protocol in GIVEN else "excess MSE / the gene mean's")
        axis.set_xlim(left=None if protocol in GIVEN else 0)
    return figure


def _coverage(rows: pd.DataFrame) -> Figure | None:
    import matplotlib.pyplot as plt

    table = coverage(rows)
    if table.empty:
        return None
    protocols = list(dict.fromkeys(table.index.get_level_values("protocol")))
    size = (2.4 * len(protocols) + 0.4, 2.6)
    figure, axes = plt.subplots(1, len(protocols), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, protocol in zip(axes[0], protocols, strict=True):
        values = table.loc[protocol, [f"coverage_{100 * level:.0f}" for level in LEVELS]]
        axis.plot([0.45, 1], [0.45, 1], color="#94a3b8", linewidth=1, linestyle="--")
        axis.fill_between(LEVELS, values.min(), values.max(), color=_OURS, alpha=0.15, linewidth=0)
        axis.plot(LEVELS, values.mean(), color=_OURS, marker="o", markersize=3.5, linewidth=1.3)
        axis.set_title(TITLES[protocol].replace("Thinning, ", "").capitalize(), loc="left")
        axis.set_xlabel("level")
    axes[0, 0].set_ylabel("share inside")
    return figure
