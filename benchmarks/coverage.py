"""How often prediction intervals cover values that training never saw: ``python -m benchmarks.coverage --help``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks._commands import parse, quiet, with_slides
from benchmarks._protocols import PROTOCOLS, Task, read, task
from benchmarks._spread import LEVELS, THIRDS, _thirds

if TYPE_CHECKING:
    from anndata import AnnData

FILES = ("mouse_muscle_Vis7B_5dpi", "human_breast_visium_subset", "her2st_A", "human_dlpfc_151673")
_HIDDEN_SHARE = 0.2
_BATCH = 128


def main() -> None:
    parser = with_slides("benchmarks.coverage", __doc__)
    parser.add_argument("--files", nargs="+", default=list(FILES), help="file names without .h5ad")
    parser.add_argument(
        "--protocols", nargs="+", default=["entry", "counts", "thinning"], choices=[*PROTOCOLS, "counts"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="optimisation steps of each stage; default: the model's own")
    parser.add_argument("--output", type=Path, help="CSV file for the table")
    arguments = parse(parser)

    import torch

    quiet()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    tables = []
    for name in arguments.files:
        adata, sample_key = read(arguments.data / f"{name}.h5ad")
        for protocol in arguments.protocols:
            for seed in arguments.seeds:
                start = time.perf_counter()
                table = coverage(adata, sample_key, protocol, seed, arguments.steps)
                print(f"\n{name}, {protocol}, seed {seed} ({time.perf_counter() - start:.0f} s)")
                print(text(table), flush=True)
                tables.append(table.assign(file=name, protocol=protocol, seed=seed))
    if arguments.output:
        pd.concat(tables).to_csv(arguments.output, index=False)


def coverage(
    adata: AnnData, sample_key: str | None, protocol: str, seed: int, steps: int | None = None, **model_kwargs
) -> pd.DataFrame:
    """Hide, train, and see how many of the hidden values lie in their intervals.

    Parameters
    ----------
    adata, sample_key
        A slide as ``benchmarks._protocols.read`` gives it.
    protocol
        One of `PROTOCOLS`, with the estimand that it asks for. Or ``"counts"``: a fifth of all entries, zeros included, is
        hidden from a model of counts by its mask, and both estimands are asked for.
    seed
        Of what is hidden, and of the model.
    steps
        Optimisation steps of each stage; ``None``: as many as the model likes.
    **model_kwargs
        For the model.

    Returns
    -------
    One row per estimand, level and stratum (all, and thirds of the scored genes by expression): `coverage`, `width` (mean, in
    log1p(CP10K)), `n` (scored entries), `n_calibration` (entries that calibrated, all thirds).
    """
    from benchmarks._methods import trained

    given = counts_task(adata, sample_key, seed) if protocol == "counts" else task(adata, sample_key, protocol, seed)
    train_kwargs = {}
    if steps is not None:
        train_kwargs["max_epochs"] = max(1, round(steps / np.ceil(given.adata.n_obs / _BATCH)))
    model = trained(given, seed, train_kwargs=train_kwargs, **model_kwargs)
    estimands = ("rate", "captured") if protocol == "counts" else (given.estimand,)
    genes = np.flatnonzero(given.scored.any(axis=0))
    strata = np.full(given.adata.n_vars, -1)
    strata[genes] = _thirds(given, genes)
    rows = []
    for estimand in estimands:
        scored = given.scored & (given.measured > 0) if estimand == "captured" else given.scored
        n_calibration = sum(model.calibration_["n_entries"][estimand])
        for level in LEVELS:
            lower, upper = model.get_prediction_interval(
                level, observed="model", estimand=estimand, seed=seed, return_numpy=True
            )
            inside, width = (lower <= given.measured) & (given.measured <= upper), upper - lower
            for stratum in ("all", *THIRDS):
                entries = scored if stratum == "all" else scored & (strata == THIRDS.index(stratum))
                scores = {"coverage": inside[entries].mean(), "width": width[entries].mean(), "n": int(entries.sum())}
                key = {"estimand": estimand, "level": level, "stratum": stratum}
                rows.append({**key, **scores, "n_calibration": n_calibration})
    return pd.DataFrame(rows)


def counts_task(adata: AnnData, sample_key: str | None, seed: int) -> Task:
    """Hide random entries, zeros included, from a model to which zeros are data."""
    given = adata.copy()
    counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    hidden = np.random.default_rng([seed, 11]).random(adata.shape) < _HIDDEN_SHARE
    given.X = np.where(hidden, 0, counts)
    given.layers["observed"] = ~hidden
    library = adata.obs["total_counts"].to_numpy(dtype=np.float64) - (counts * hidden).sum(axis=1)
    given.obs["total_counts"] = library
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = np.log1p(counts / library[:, None] * 1e4)
    scored = hidden & (library > 0)[:, None]

    def score(prediction: np.ndarray) -> dict[str, float]:
        return {"mse": float(((prediction - measured)[scored] ** 2).mean())}

    return Task(given, "observed", "total_counts", "rate", score, sample_key, library, measured, scored)


def text(table: pd.DataFrame) -> str:
    """Coverage minus level, in per cent, and mean width, by level and stratum."""
    lines = []
    for (estimand, level), part in table.groupby(["estimand", "level"], sort=False):
        part = part.set_index("stratum")
        shown = "  ".join(
            f"{stratum} {100 * (row.coverage - level):+5.1f} ({row.width:.2f})" for stratum, row in part.iterrows()
        )
        lines.append(f"  {estimand:8s} {level:.2f}: {shown}")
    n = table.groupby("estimand", sort=False).first()["n_calibration"]
    header = "coverage - level in per cent (mean width); calibrated by " + ", ".join(f"{v:,} {k}" for k, v in n.items())
    return "\n".join([header, *lines])


if __name__ == "__main__":
    main()
