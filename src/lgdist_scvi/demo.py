"""Complete a slide from start to end: ``python -m lgdist_scvi.demo --output demo [--input slide.h5ad]``."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, metrics, pl, pp
from lgdist_scvi._checks import list_names
from lgdist_scvi._units import COUNTS_PER, library_size, log1p_cp10k

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

_SIMULATED = {"n_spots": 1000, "n_genes": 300}
_MOST_GENES = 1024
_FEWEST_COUNTS = 200  # of a spot; a tenth of the median where that is less
_BASELINES = {
    "Poisson NMF": "poisson_nmf",
    "soft-impute": "soft_impute",
    "neighbor mean": "neighbor_mean",
    "gene mean": "gene_mean",
}
_N_SHOWN = 4  # genes on the tissue
_MOST_SLIDES = 6  # drawn
_FILES = ("completed.h5ad", "scores.csv", "scores.md", "genes.csv", "training.png", "scores.png", "held_out.png")
_FIGURE_OF_SLIDE = "completion*.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; give the exit code: 0, 1 for input that cannot be used, 130 if interrupted."""
    arguments = _parse(argv)
    start = time.perf_counter()
    with warnings.catch_warnings():
        _quieten()
        try:
            output = _output_folder(arguments)
            adata, sample_key = _load(arguments)
            adata, size_factor_key = _choose(adata, sample_key)
            setup = {"sample_key": sample_key, "size_factor_key": size_factor_key}
            LGDiST.setup_anndata(adata, **setup)
            # beside the results, where there is room for them
            folder = tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=_ready(output.parent))
        except (KeyError, OSError, ValueError) as error:
            # str() of a KeyError quotes its message
            print(f"Error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
            return 1
        try:
            with folder as name:
                files = _run(adata, setup, Path(name), arguments.max_epochs)
                _publish(files, output)
        except (KeyboardInterrupt, UserWarning):
            print("\nInterrupted; nothing was written.", file=sys.stderr)
            return 130
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"Done in {minutes} min {seconds} s. {arguments.output} holds {', '.join(file.name for file in files)}.")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lgdist_scvi.demo",
        description="Complete a slide: score the model on hidden molecules, train it on all, write values and figures.",
    )
    parser.add_argument("--input", type=Path, help="slide to complete (default: a simulated tissue); see datasets.read")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--layer", help="layer that holds raw counts (default: X)")
    parser.add_argument("--sample-key", help='column of obs that names the slides (default: "sample", if it is there)')
    parser.add_argument("--max-epochs", type=int, help="passes over the spots in each stage; a few for a quick look")
    return parser.parse_args(argv)


def _quieten() -> None:
    """Leave what the reader can use: our own sentences and the progress bars."""
    import matplotlib
    import scvi

    matplotlib.use("agg")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = 0
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", message=".*occur more than once", category=UserWarning)
    # a model interrupted in training can be used, but is not what was asked for here
    warnings.filterwarnings("error", message="Training was interrupted", category=UserWarning)
    warnings.showwarning = lambda message, *_: print(f"Note: {message}.")


def _say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)


# ---- input and output


def _output_folder(arguments: argparse.Namespace) -> Path:
    output = arguments.output.resolve()
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(arguments.output)!r} is a file; name a folder for the results with --output")
    if arguments.input is not None and arguments.input.resolve() == output / _FILES[0]:
        raise ValueError(f"{str(arguments.input)!r} would be written over; name another folder with --output")
    if arguments.max_epochs is not None and arguments.max_epochs < 1:
        raise ValueError(f"--max-epochs must be at least 1, got {arguments.max_epochs}")
    return output


def _ready(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _publish(files: Sequence[Path], output: Path) -> None:
    """Put results in the place of those of an earlier run; other files there stay."""
    _ready(output)
    for old in (*(output / name for name in _FILES), *output.glob(_FIGURE_OF_SLIDE)):
        old.unlink(missing_ok=True)
    for file in files:
        shutil.move(file, output / file.name)


def _load(arguments: argparse.Namespace) -> tuple[AnnData, str | None]:
    """Read or simulate; give the column that names the slides, if there are several."""
    if arguments.input is None:
        _say("Simulating a tissue whose true rates are known.")
        return datasets.simulated_visium(**_SIMULATED, seed=0), None
    _say(f"Reading {arguments.input}.")
    sample_key = arguments.sample_key
    if sample_key is None:
        try:
            adata = datasets.read(arguments.input, layer=arguments.layer, sample_key="sample")
            sample_key = "sample"
        except KeyError:  # no such column; whatever else is missing, reading again says
            adata = datasets.read(arguments.input, layer=arguments.layer)
    else:
        adata = datasets.read(arguments.input, layer=arguments.layer, sample_key=sample_key)
    if arguments.layer is not None:
        adata.X = adata.layers[arguments.layer]
    if sample_key is not None and adata.obs[sample_key].nunique() < 2:
        sample_key = None
    return adata, sample_key


def _choose(adata: AnnData, sample_key: str | None) -> tuple[AnnData, str | None]:
    """Leave poor spots out and keep the most spatially associated genes; give the key of the library size."""
    n_spots, n_genes = adata.shape
    totals = library_size(adata.X)
    fewest = min(_FEWEST_COUNTS, int(np.median(totals) / 10)) if n_spots else 0
    adata = adata[totals >= fewest].copy()
    n_kept = min(_MOST_GENES, n_genes)
    pp.select_genes(adata, n_targets=min(128, n_kept), n_genes=n_kept, sample_key=sample_key)
    if n_genes > _MOST_GENES:
        adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    slides = 1 if sample_key is None else adata.obs[sample_key].nunique()
    zeros = 1 - np.count_nonzero(adata.X.data if sparse.issparse(adata.X) else adata.X) / (adata.n_obs * adata.n_vars)
    print(
        f"{n_spots:,} spots and {n_genes:,} genes on {slides} slide{'s' * (slides > 1)}. Kept: {adata.n_obs:,} spots with "
        f"at least {fewest} counts, and {'all' if adata.n_vars == n_genes else 'the most spatially associated'} "
        f"{adata.n_vars:,} genes, of whose entries {zeros:.0%} are zero."
    )
    return adata, None if adata.n_vars == n_genes else "total_counts"


# ---- the steps


def _run(adata: AnnData, setup: dict[str, str | None], folder: Path, max_epochs: int | None) -> list[Path]:
    """Score, train, complete and draw; give the files written to `folder`."""
    _say("Hiding half of the molecules of every spot, to score on them what is predicted from the other half.")
    task = _HeldOut(adata, setup["size_factor_key"])
    _say("Training on the visible half.")
    table, genes, held_out_figure = _score(task, setup, max_epochs)
    _say("Scores on the hidden half:")
    report = _markdown(table)
    print(report, flush=True)
    n_unskilled = int((~genes["predictable"]).sum())
    print(
        f"\nOf {len(genes):,} genes, {n_unskilled:,} are predicted no better than by their mean; var['predictable'] says which."
    )

    _say("Training on all molecules.")
    model = _train(adata, setup, max_epochs)
    _say("Completing the slide, with standard deviations and prediction intervals.")
    model.complete()
    filled = int((adata.layers["completed_provenance"] > 0).sum())
    print(
        f"{filled:,} of {adata.n_obs * adata.n_vars:,} entries were filled; all others are exactly what was measured."
    )
    adata.var[["deviance_explained", "predictable"]] = genes[["deviance_explained", "predictable"]]

    _say("Drawing figures and writing results.")
    files = [folder / name for name in _FILES]
    completed, scores_csv, scores_md, genes_csv, training, scores, held_out = files
    adata.write_h5ad(completed, compression="gzip")
    table.to_csv(scores_csv)
    scores_md.write_text(report, encoding="utf-8")
    genes.to_csv(genes_csv)
    pl.training_history(model).savefig(training, dpi=150)
    pl.scores(table, ("d2", "pcc_gene"), highlight="LGDiST").savefig(scores, dpi=150)
    held_out_figure.savefig(held_out, dpi=150)
    return files + _draw_tissue(adata, setup, folder)


class _HeldOut:
    """Every molecule hidden with probability a half; what is left is given, what is hidden scores.

    Nothing is conditioned on having been captured, and given the rates the two halves are independent.
    """

    def __init__(self, adata: AnnData, size_factor_key: str | None):
        self.given = pp.hold_out(adata, 0.5, "thinning", seed=0)
        self.size_factor_key = size_factor_key
        self.counts = sparse.csr_matrix(self.given.layers["truth"] - self.given.X)
        kept = self.given.obs["total_counts"].to_numpy()
        self.library = adata.obs["total_counts"].to_numpy() - kept
        self.gene_mean = library_size(self.given.X.T) / kept.sum()
        self.values = log1p_cp10k(self.counts, self.library)
        self.known_rates = adata.layers.get("rate")

    def score(self, prediction: np.ndarray) -> dict[str, float]:
        """Score predicted rates of all entries, log1p(CP10K)."""
        rate = np.expm1(prediction.astype(np.float64)) / COUNTS_PER
        everything = np.ones(prediction.shape, dtype=bool)
        against_means = (self.counts, rate, self.library, self.gene_mean)
        scores = {
            "d2": metrics.poisson_deviance_explained(*against_means),
            "variance_explained": metrics.poisson_variance_explained(*against_means),
            "pcc_gene": metrics.completion_scores(self.values, prediction, everything)["pcc_gene"],
        }
        if self.known_rates is not None:
            truth = np.log1p(COUNTS_PER * self.known_rates)
            scores["mse_known_rate"] = metrics.completion_scores(truth, prediction, everything)["mse"]
        return scores

    def deviance_by_gene(self, prediction: np.ndarray) -> np.ndarray:
        """Deviance explained over the gene's mean, (n_vars,)."""
        rate, counts = np.expm1(prediction.astype(np.float64)) / COUNTS_PER, self.counts.tocsc()
        return np.array(
            [
                metrics.poisson_deviance_explained(counts[:, [g]], rate[:, [g]], self.library, self.gene_mean[[g]])
                for g in range(prediction.shape[1])
            ]
        )

    def figure(self, captured: np.ndarray) -> Figure:
        """Draw captured values of the hidden half against their prediction."""
        return pl.held_out(self.values, captured, self.values > 0, title="captured in the hidden half")


def _train(adata: AnnData, setup: dict[str, str | None], max_epochs: int | None) -> LGDiST:
    LGDiST.setup_anndata(adata, **setup)
    model = LGDiST(adata)
    model.train(max_epochs=max_epochs)
    return model


def _score(
    task: _HeldOut, setup: dict[str, str | None], max_epochs: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, Figure]:
    """Scores of methods, skill by gene, and the model's predictions in a figure."""
    start = time.perf_counter()
    model = _train(task.given, setup, max_epochs)
    prediction = model.get_completed_expression(observed="model", return_numpy=True)
    table = {"LGDiST": {**task.score(prediction), "seconds": time.perf_counter() - start}}
    figure = task.figure(model.get_completed_expression(observed="model", estimand="captured", return_numpy=True))
    genes = pd.DataFrame({"moranI": task.given.var["moranI"], "deviance_explained": task.deviance_by_gene(prediction)})
    genes["predictable"] = genes["deviance_explained"] > 0

    print("Comparing with simpler methods.", flush=True)
    for label, name in _BASELINES.items():
        start = time.perf_counter()
        prediction = getattr(metrics.baselines, name)(task.given, size_factor_key=task.size_factor_key)
        table[label] = {**task.score(prediction), "seconds": time.perf_counter() - start}
        if name == "neighbor_mean":
            genes["deviance_explained_neighbor_mean"] = task.deviance_by_gene(prediction)
    table = pd.DataFrame(table).T.rename_axis("method").sort_values("d2", ascending=False, kind="stable")
    return table, genes.rename_axis("gene"), figure


_HEADINGS = {
    "d2": "deviance explained",
    "variance_explained": "without sampling noise",
    "pcc_gene": "correlation within genes",
    "mse_known_rate": "MSE to the known rates",
    "seconds": "seconds",
}


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| method | " + " | ".join(_HEADINGS[column] for column in table.columns) + " |"]
    lines.append("|---" + "|---:" * table.shape[1] + "|")
    for method, row in table.iterrows():
        cells = [f"{value:.0f}" if column == "seconds" else f"{value:z.3f}" for column, value in row.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Deviance explained: 0 predicts every gene's mean, 1 every count; sampling noise keeps all methods below 1. Without that",
        "noise: the share of the variance of expected counts that is explained, 1 for a perfect prediction.",
    ]
    return "\n".join(lines) + "\n"


# ---- figures


def _draw_tissue(adata: AnnData, setup: dict[str, str | None], folder: Path) -> list[Path]:
    sample_key = setup["sample_key"]
    slides = [None] if sample_key is None else list(pd.unique(adata.obs[sample_key].astype(str)))[:_MOST_SLIDES]
    genes = _telling_genes(adata)
    files = []
    for place, slide in enumerate(slides):
        file = folder / _FIGURE_OF_SLIDE.replace("*", "" if slide is None else f"_{place + 1}")
        figure = pl.completion(adata, genes, **setup, sample=slide)
        figure.savefig(file, dpi=120)
        files.append(file)
    print(f"Shown on the tissue: {list_names(genes)}.")
    return files


def _telling_genes(adata: AnnData) -> list[str]:
    """Genes that are detected here and there, well predicted, and differ from each other."""
    counts = sparse.csc_matrix(adata.X)
    detected = np.diff(counts.indptr) / adata.n_obs
    skill = adata.var["deviance_explained"].to_numpy()
    order = np.argsort(np.where((detected > 0.1) & (detected < 0.6), skill, skill - 2), kind="stable")[::-1]
    completed = np.asarray(adata.layers["completed"])
    chosen: list[int] = []
    for most_alike in (0.5, 0.8, 1.1):
        for gene in order:
            if len(chosen) == _N_SHOWN:
                break
            alike = [abs(np.corrcoef(completed[:, gene], completed[:, other])[0, 1]) for other in chosen]
            if gene not in chosen and not any(correlation > most_alike for correlation in alike):
                chosen.append(gene)
    return list(adata.var_names[chosen])


if __name__ == "__main__":
    sys.exit(main())
