"""``lgdist evaluate``: the model and simpler methods on the half of the molecules that they have not seen."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi import metrics, pp
from lgdist_scvi._units import from_cp10k, library_size, log1p_cp10k, to_cp10k
from lgdist_scvi.cli._steps import check_output, choose, read, refused, say, set_up, write

BASELINES = {
    "Poisson NMF": "poisson_nmf",
    "soft-impute": "soft_impute",
    "neighbor mean": "neighbor_mean",
    "gene mean": "gene_mean",
}
TABLES = ("scores.csv", "scores.md", "genes.csv")
_HEADINGS = {
    "d2": "deviance explained",
    "variance_explained": "without sampling noise",
    "pcc_gene": "correlation within genes",
    "mse_known_rate": "MSE to the known rates",
    "seconds": "seconds",
}
_NOTE = """
Deviance explained: 0 predicts every gene's mean, 1 every count; sampling noise keeps all methods below 1. Without that
noise: the share of the variance of expected counts that is explained, 1 for a perfect prediction.
"""


class Evaluation(NamedTuple):
    """Scores of methods, skill by gene, and the hidden half with what the model says of it.

    Attributes
    ----------
    table
        One row per method.
    genes
        One row per gene: Moran's I, deviance explained, and whether it is predicted better than by its mean.
    measured, captured
        log1p(CP10K) of the hidden half, and its prediction had it been captured, (n_obs, n_vars).
    """

    table: pd.DataFrame
    genes: pd.DataFrame
    measured: np.ndarray
    captured: np.ndarray

    def markdown(self) -> str:
        """Write the table of scores in Markdown."""
        digits = [".0f" if column == "seconds" else ".3f" for column in self.table.columns]
        table = (self.table.round(3) + 0.0).rename(columns=_HEADINGS)  # no -0.000
        return table.to_markdown(floatfmt=("", *digits)) + "\n" + _NOTE

    def write(self, folder: Path) -> list[Path]:
        """Write all tables to a folder."""
        scores_csv, scores_md, genes_csv = (folder / name for name in TABLES)
        return [
            write(scores_csv, self.table.to_csv),
            write(scores_md, lambda file: file.write_text(self.markdown(), encoding="utf-8")),
            write(genes_csv, self.genes.to_csv),
        ]


def evaluate(arguments: argparse.Namespace) -> str:
    """Score on hidden molecules and print the table; give a sentence about the files."""
    with refused():
        if arguments.output is not None:
            check_output(arguments.output, arguments.output / TABLES[0], arguments.input)
        adata, setup = choose(read(arguments), arguments)
    evaluation = score(adata, setup, arguments.max_epochs)
    if arguments.output is None:
        return "With --output the tables are written to a folder."
    files = evaluation.write(arguments.output)
    return f"{arguments.output} holds {', '.join(file.name for file in files)}."


def score(adata: AnnData, setup: dict[str, str | None], max_epochs: int | None) -> Evaluation:
    """Hide half of the molecules of every spot, predict them from the other half, and print how well."""
    say("Hiding half of the molecules of every spot, to score on them what is predicted from the other half.")
    with refused():
        task = _HeldOut(adata)
        model = set_up(task.given, setup)
    say("Training on the visible half.")
    start = time.perf_counter()
    model.train(max_epochs=max_epochs)
    prediction = model.get_completed_expression(observed="model", return_numpy=True)
    table = {"LGDiST": {**task.score(prediction), "seconds": time.perf_counter() - start}}
    genes = pd.DataFrame({"moranI": task.given.var["moranI"], "deviance_explained": task.deviance_by_gene(prediction)})
    genes["predictable"] = genes["deviance_explained"] > 0
    captured = model.get_completed_expression(observed="model", estimand="captured", return_numpy=True)

    print("Comparing with simpler methods.", flush=True)
    for label, name in BASELINES.items():
        start = time.perf_counter()
        prediction = getattr(metrics.baselines, name)(task.given, size_factor_key=setup["size_factor_key"])
        table[label] = {**task.score(prediction), "seconds": time.perf_counter() - start}
        if name == "neighbor_mean":
            genes["deviance_explained_neighbor_mean"] = task.deviance_by_gene(prediction)
    table = pd.DataFrame(table).T.rename_axis("method").sort_values("d2", ascending=False, kind="stable")
    evaluation = Evaluation(table, genes.rename_axis("gene"), task.values, captured)
    say("Scores on the hidden half:")
    n_unskilled = int((~genes["predictable"]).sum())
    print(
        f"{evaluation.markdown()}\nOf {len(genes):,} genes, {n_unskilled:,} are predicted no better than by their mean.",
        flush=True,
    )
    return evaluation


class _HeldOut:
    """Every molecule hidden with probability a half; what is left is given, what is hidden scores.

    Nothing is conditioned on having been captured, and given the rates the two halves are independent.
    """

    def __init__(self, adata: AnnData):
        self.given = pp.hold_out(adata, 0.5, "thinning", seed=0)
        self.counts = sparse.csr_matrix(self.given.layers["truth"] - self.given.X)
        kept = self.given.obs["total_counts"].to_numpy()
        self.library = adata.obs["total_counts"].to_numpy() - kept
        self.gene_mean = library_size(self.given.X.T) / kept.sum()
        self.values = log1p_cp10k(self.counts, self.library)
        self.known_rates = adata.layers.get("rate")

    def score(self, prediction: np.ndarray) -> dict[str, float]:
        """Score predicted rates of all entries, log1p(CP10K)."""
        rate = from_cp10k(np.expm1(prediction.astype(np.float64)))
        everything = np.ones(prediction.shape, dtype=bool)
        against_means = (self.counts, rate, self.library, self.gene_mean)
        scores = {
            "d2": metrics.poisson_deviance_explained(*against_means),
            "variance_explained": metrics.poisson_variance_explained(*against_means),
            "pcc_gene": metrics.completion_scores(self.values, prediction, everything)["pcc_gene"],
        }
        if self.known_rates is not None:
            truth = np.log1p(to_cp10k(self.known_rates))
            scores["mse_known_rate"] = metrics.completion_scores(truth, prediction, everything)["mse"]
        return scores

    def deviance_by_gene(self, prediction: np.ndarray) -> np.ndarray:
        """Deviance explained over the gene's mean, (n_vars,)."""
        rate, counts = from_cp10k(np.expm1(prediction.astype(np.float64))), self.counts.tocsc()
        return np.array(
            [
                metrics.poisson_deviance_explained(counts[:, [g]], rate[:, [g]], self.library, self.gene_mean[[g]])
                for g in range(prediction.shape[1])
            ]
        )
