"""Whether further genes help or hurt: the same genes predicted from half of the molecules, with ever more genes registered."""

from __future__ import annotations

import argparse
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._methods import Method
from benchmarks._results import RESULTS, Results, code_digest, machine
from benchmarks._shared import add_data, peak_memory, quiet, slides
from benchmarks.run import in_processes
from benchmarks.scale import timed

PROTOCOL = "genes"
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument(
        "--files", nargs="+", default=["human_breast_visium_subset"], help="names without .h5ad; default: %(default)s"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument(
        "--genes", nargs="+", default=["1024", "4096", ALL], help="the first are predicted; default: %(default)s"
    )
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")
    parser.add_argument("--report", action="store_true", help="print the table of the stored results, and run nothing")


def main(arguments: argparse.Namespace) -> None:
    results = Results(arguments.output, arguments.again, digest)
    shared = {"protocol": PROTOCOL, "machine": machine(), "threads": arguments.threads, "workers": 1}
    for name, path in ({} if arguments.report else slides(arguments)).items():
        name = f"{name}, {arguments.genes[0]} genes predicted"
        if arguments.epochs is not None:
            name += f", epochs {arguments.epochs}"
        for seed in arguments.seeds:
            for genes in arguments.genes:
                if results.has(name, PROTOCOL, seed, genes):
                    continue
                call = path, arguments.genes[0], genes, seed, arguments.epochs, arguments.threads
                ((_, state, answer),) = in_processes([(genes, measure, call)])
                row = {**shared, "file": name, "seed": seed, "method": genes, "code": digest(genes)}
                row |= answer if state == "done" else {"failed": answer}
                results.add({**row, "date": date.today().isoformat()})
                print(f"{name}, seed {seed}, {genes} genes: {row.get('d2', answer)}", flush=True)
    print(table(results.rows).to_string())


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of D2 over seeds, seconds of the processor, and peak memory above the libraries, by slide and genes."""
    rows = rows[(rows["protocol"] == PROTOCOL) & rows["failed"].isna()]
    rows = rows.assign(gib=(rows["memory_mib"] - rows["libraries_mib"]) / 1024, seeds=1)
    how = {"n_genes": "first", "seeds": "sum", "d2": ["mean", "std"], "cpu_seconds": "mean", "gib": "max"}
    return rows.groupby(["file", "method"]).agg(how).round(4)


def measure(path: Path, predicted: str, registered: str, seed: int, epochs: int | None, threads: int) -> dict[str, Any]:
    """One training: what a row says."""
    quiet()
    import anndata as ad
    import scanpy as sc
    import scvi
    import torch

    from benchmarks._protocols import MIN_COUNTS
    from lgdist_scvi import LGDiST, metrics, pp
    from lgdist_scvi._units import from_cp10k  # noqa: PLC2701  the one scale

    torch.set_num_threads(threads)
    scvi.settings.seed = seed
    libraries = peak_memory()
    adata = ad.read_h5ad(path)
    sc.pp.filter_cells(adata, min_counts=MIN_COUNTS)
    targets = _chosen(adata, predicted)
    # every width is given the same molecules
    given = pp.hold_out(adata, 0.5, "thinning", seed=seed)
    rest = (given.layers["truth"] - given.X)[:, targets]
    del given.layers["truth"], given.layers["held_out"]
    mean = np.asarray(given.X.sum(axis=0), dtype=np.float64).ravel()[targets] + 0.1
    names = list(adata.var_names[targets])
    given = given[:, _chosen(adata, registered) | targets].copy()
    pp.spatial_neighbors(given)
    LGDiST.setup_anndata(given)
    model = LGDiST(given, seed=seed)
    seconds = timed(partial(model.train, max_epochs=epochs, enable_progress_bar=False))
    answer = model.get_completed_expression(gene_list=names, observed="model", estimand="rate", return_numpy=True)
    rate = np.maximum(from_cp10k(np.expm1(answer.astype(np.float64))), 1e-12)
    rate /= rate.sum(axis=1, keepdims=True)  # of what is predicted alone
    return {
        "n_spots": given.n_obs, "n_genes": given.n_vars, **seconds, "memory_mib": round(peak_memory(), 1),
        "libraries_mib": round(libraries, 1), "d2": metrics.poisson_deviance_explained(rest, rate, gene_mean=mean / mean.sum()),
    }  # fmt: skip


def _chosen(adata: Any, genes: str) -> np.ndarray:
    """As many genes as are asked for, as a slide of the benchmark has them, bool (n_vars,)."""
    from lgdist_scvi import pp

    if genes == ALL or int(genes) >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    marked = adata.copy()
    pp.select_genes(marked, n_targets=min(128, int(genes)), n_genes=int(genes))
    return (marked.var["target_gene"] | marked.var["context_gene"]).to_numpy()


def digest(genes: str) -> str:
    """Digest of the source that rows depend on, the same for any number of genes."""
    sources = "benchmarks/genes.py", "benchmarks/_protocols.py", "src/lgdist_scvi/**/*.py"
    return code_digest(PROTOCOL, {PROTOCOL: Method(measure)}, sources)
