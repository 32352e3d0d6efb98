"""Complete sections with and without their image: LGDiST that sees it, one that does not, and one that sees other spots' patches."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._results import RESULTS, Results, code_digest, machine, read
from benchmarks._shared import add_data, peak_memory, quiet
from benchmarks.report import markdown_table, provenance
from benchmarks.run import in_processes

PROTOCOLS = {"spot": "excess", "block": "excess", "shallow": "d2"}  # and the score that decides
_LABELS = {"lgdist": "LGDiST", "lgdist_image": "LGDiST with the image", "lgdist_image_shuffled": "patches shuffled"}
_WEIGHTS = {"hidden": "spots without counts", "visible": "other spots"}  # of the image


def _complete(task, seed: int, image: str | None) -> tuple[np.ndarray, dict[str, float]]:
    """Train on a task, with an obsm key or without, and answer; weights of the image besides."""
    import scvi

    from lgdist_scvi import LGDiST

    scvi.settings.seed = seed
    LGDiST.setup_anndata(
        task.adata,
        mask_layer=task.mask_layer,
        size_factor_key=task.size_factor_key,
        sample_key="sample",
        image_key=image,
    )
    model = LGDiST(task.adata, seed=seed)
    model.train(enable_progress_bar=False)
    told = {} if image is None else model.history_["experts/image"].iloc[0].add_prefix("weight_").to_dict()
    return model.get_completed_expression(observed="model", estimand=task.estimand, return_numpy=True), told


@dataclass(frozen=True)
class Method:
    """A way to complete; `sources` are what its result depends on."""

    run: Callable[..., tuple[np.ndarray, dict[str, float]]]
    sources: tuple[str, ...] = (
        "src/lgdist_scvi/[dim]*/**/*.py",
        "src/lgdist_scvi/train/*.py",
        "benchmarks/_sections.py",
    )


METHODS = {
    "lgdist": Method(partial(_complete, image=None)),
    "lgdist_image": Method(partial(_complete, image="X_both")),
    "lgdist_image_shuffled": Method(partial(_complete, image="X_shuffled")),
}
digest = partial(code_digest, methods=METHODS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--file", default="her2st_C", help="sections with images <name>_he.jpg; default: %(default)s")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--cache", type=Path, help="folder of image features; default: cache in output")
    parser.add_argument("--workers", type=int, default=1, help="methods at a time; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")
    parser.add_argument("--report", action="store_true", help="print the table of the stored results, and run nothing")


def main(arguments: argparse.Namespace) -> None:
    if not arguments.report:
        _run(arguments)
    rows = read(arguments.output)
    rows = rows[rows["protocol"].isin([f"image_{name}" for name in PROTOCOLS])]
    if rows.empty:
        arguments.error(f"{arguments.output} holds no results of completion with an image; run this command first")
    print(markdown(rows))


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks import _sections

    path = arguments.data / f"{arguments.file}.h5ad"
    if not path.is_file():
        arguments.error(f"{arguments.data} holds no {path.name}")
    if not _sections.images(path):
        arguments.error(f"{path.name} has no images beside it")
    cache, results = arguments.cache or arguments.output / "cache", Results(arguments.output, arguments.again, digest)
    jobs = [(p, s, m) for s in arguments.seeds for p in arguments.protocols for m in arguments.methods]
    todo = [job for job in jobs if not results.has(arguments.file, f"image_{job[0]}", *job[1:])]
    print(f"{len(todo)} results to obtain", flush=True)
    codes, here, began = {method: digest(method) for method in arguments.methods}, machine(), time.monotonic()
    calls = ((job, measure, (path, cache, *job)) for job in todo)
    for (protocol, seed, method), state, answer in in_processes(calls, arguments.workers):
        row = {"file": arguments.file, "protocol": f"image_{protocol}", "seed": seed, "method": method}
        row |= {"date": date.today().isoformat(), "code": codes[method], "machine": here, "threads": 1}
        row |= {"workers": arguments.workers} | (answer if state == "done" else {"failed": answer})
        results.add(row)
        name = PROTOCOLS[protocol]
        text = f"failed: {row['failed']}" if "failed" in row else f"{name} {row[name]:.4f} ({row['seconds']:.0f} s)"
        print(f"[{(time.monotonic() - began) / 60:.0f} min] {protocol} {seed} {method}: {text}", flush=True)


def measure(path: Path, cache: Path, protocol: str, seed: int, method: str) -> dict:
    """Hide, run the method, score: what a row says."""
    quiet()
    import torch
    from threadpoolctl import threadpool_limits

    from benchmarks._protocols import task

    torch.set_num_threads(1)
    with threadpool_limits(1):
        given = task(sections(path, cache), "sample", protocol, seed)
        row = {"hidden": given.fingerprint, "n_spots": given.adata.n_obs, "n_genes": given.adata.n_vars}
        start = time.perf_counter()
        prediction, told = METHODS[method].run(given, seed)
        row |= {"seconds": round(time.perf_counter() - start, 2), "memory_mib": round(peak_memory(), 1)}
    return row | given.score(prediction) | told


def sections(path: Path, cache: Path):
    """The sections with an image: genes as in the other protocols, features of network and colours, and shuffled ones."""
    from benchmarks import _sections
    from lgdist_scvi import pp

    images = _sections.images(path)
    features = _sections.features(path, images, cache)
    adata = _sections.read(path, list(images))
    pp.select_genes(adata, sample_key="sample")
    adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    rows = pd.Index(features["spots"]).get_indexer(adata.obs_names)
    parts = [features[key] for key in ("X_image", "X_stain")]
    adata.obsm["X_both"] = np.hstack(parts)[rows].astype(np.float32)
    adata.uns["X_both"] = adata.uns["X_shuffled"] = {"blocks": [part.shape[1] for part in parts]}
    adata.obsm["X_shuffled"] = adata.obsm["X_both"].copy()
    generator = np.random.default_rng(0)
    for spots in adata.obs.groupby("sample", observed=True).indices.values():
        adata.obsm["X_shuffled"][spots] = adata.obsm["X_both"][generator.permutation(spots)]
    return adata


def markdown(rows: pd.DataFrame) -> str:
    """Table of the stored results: the score that decides, and how it changes with the image."""
    done, records = rows[rows["failed"].isna()], {}
    for name, score in PROTOCOLS.items():
        part = done[done["protocol"] == f"image_{name}"]
        if part.empty:
            continue
        table = part.pivot_table(index=["file", "seed"], columns="method", values=score)
        for (_, seed), row in table.iterrows():
            record = {_LABELS[method]: value for method, value in row.items()}
            if {"lgdist", "lgdist_image"} <= set(row.dropna().index):
                change = row["lgdist_image"] - row["lgdist"]
                record["change"] = f"{change / row['lgdist']:+.1%}" if score == "excess" else f"{change:+.4f}"
            seen = part[(part["method"] == "lgdist_image") & (part["seed"] == seed)]
            record |= {f"weight, {_WEIGHTS[kind]}": f"{w:g}" for kind in _WEIGHTS for w in seen[f"weight_{kind}"]}
            records[f"{name}, {'excess MSE' if score == 'excess' else 'D2'}, seed {seed}"] = record
    table = pd.DataFrame.from_dict(records, orient="index")
    first = [label for label in (*_LABELS.values(), "change") if label in table]
    shown = [*first, *table.columns.difference(first)]
    return f"{provenance(rows)}\n\n{markdown_table(table[shown], 'protocol', digits=4)}"


def write(rows: pd.DataFrame, folder: Path) -> None:
    """Write the table as a part of a page into a folder."""
    rows = rows[rows["protocol"].isin([f"image_{name}" for name in PROTOCOLS])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image_completion.md").write_text(f"{markdown(rows)}\n")
