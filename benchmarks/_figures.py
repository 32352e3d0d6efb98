"""Figures of a file of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks._methods import MODELS
from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._tables import TITLES, by_file, cost, coverage, frame, label, without_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _PEER, _VAE = "#c2410c", "#64748b", "#0f766e"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "svg.hashsalt": "lgdist",  # the same figure gives the same file
    "svg.fonttype": "path",
}


def draw(document: dict, folder: Path) -> dict[str, Path]:
    """Draw what there are results for: name and path of each figure."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    rows, paths = without_variants(frame(document)), {}
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, function in (("scores", _scores), ("coverage", _coverage), ("cost", _cost)):
            figure = function(rows)
            if figure is None:
                continue
            paths[name] = folder / f"{name}.svg"
            figure.savefig(paths[name], bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    return paths


def _color(method: str) -> str:
    return _OURS if method.startswith("lgdist") else _PEER


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
            values = values.dropna().clip(lower=lowest, upper=1.6)
            axis.scatter(values, np.full(len(values), place), s=14, color=_color(method), alpha=0.65, linewidths=0)
            axis.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=_color(method), linewidth=2)
        axis.set_yticks(range(len(table)), [label(method) for method in table.index])
        axis.set_title(TITLES[protocol].replace(" of the molecules", ""), fontsize=8.5)
        if protocol not in GIVEN:
            axis.set_xlim(left=0)
        axis.set_xlabel("deviance explained, D2" if protocol in GIVEN else "excess MSE / the gene mean's")
        axis.set_ylim(-0.6, len(table) - 0.4)
    return figure


def _coverage(rows: pd.DataFrame) -> Figure | None:
    import matplotlib.pyplot as plt

    table = coverage(rows)
    if not len(table):
        return None
    table = table[table["method"].isin(list(MODELS))]
    protocols = [p for p in PROTOCOLS if (table["protocol"] == p).any()]
    if not protocols:
        return None
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(2.4 * len(protocols) + 0.4, 2.6), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, protocol in zip(axes[0], protocols, strict=True):
        axis.plot([0.45, 1], [0.45, 1], color="#94a3b8", linewidth=1, linestyle="--")
        part = table[(table["protocol"] == protocol) & (table["stratum"] == "all")]
        for method, color in (("lgdist_vae", _VAE), ("lgdist", _OURS)):
            values = part[part["method"] == method].groupby("level")["coverage"]
            if not len(values):
                continue
            mean, low, high = values.mean(), values.min(), values.max()
            axis.fill_between(mean.index, low, high, color=color, alpha=0.15, linewidth=0)
            axis.plot(mean.index, mean, color=color, marker="o", markersize=3.5, linewidth=1.3, label=label(method))
        axis.set_title(TITLES[protocol].replace("Thinning, ", "").capitalize(), fontsize=8.5)
        axis.set_xlabel("level")
    axes[0, 0].set_ylabel("share inside")
    # what is drawn differs between protocols: the fullest panel names all
    most = max(axes[0], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    most.legend(frameon=False, fontsize=8)
    return figure


def _cost(rows: pd.DataFrame) -> Figure | None:
    import matplotlib.pyplot as plt

    if not len(rows):
        return None
    table = cost(rows).sort_values("seconds")
    least = rows.groupby("method", observed=True)["seconds"].min()
    figure, axis = plt.subplots(figsize=(5.2, 0.7 + 0.24 * len(table)), layout="constrained")
    for place, (method, row) in enumerate(table.iterrows()):
        axis.plot([max(least[method], 0.01), row["most_seconds"]], [place, place], color=_color(method), alpha=0.4)
        axis.scatter([max(row["seconds"], 0.01)], [place], s=22, color=_color(method), linewidths=0)
    axis.set_xscale("log")
    axis.set_yticks(range(len(table)), [label(method) for method in table.index])
    axis.set_xlabel("seconds per slide")
    return figure
