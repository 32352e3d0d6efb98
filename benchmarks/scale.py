"""Time, memory and bytes of completing simulated Visium HD slides on disk, and how they grow with the number of bins."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks._bins import write_slide
from benchmarks._methods import Method
from benchmarks._results import RESULTS, Results, code_digest, machine, read
from benchmarks._shared import peak_memory, quiet
from benchmarks.report import markdown_table, provenance
from benchmarks.run import in_processes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from lgdist_scvi import LGDiST

PROTOCOL = "scale"
STEPS = {
    "setup": "registration",
    "train": "training",
    "mean": "posterior mean",
    "intervals": "with standard deviations and 90 % intervals",
}
_COMPLETE = ("mean", "intervals")
CAPTION = "Seconds and peak memory of each step against the number of bins; both axes are logarithmic."
_NOTHING = "No results are stored; `python -m benchmarks scale` obtains them."


@dataclass(frozen=True)
class Slide:
    """A slide on disk, or one in memory where `store` is ``None``."""

    n_spots: int
    n_genes: int
    molecules: float
    store: Path | None

    @property
    def name(self) -> str:
        size = f"{self.n_spots}x{self.n_genes}"
        return f"spots {size}, in memory" if self.store is None else f"bins {size}, {self.molecules:g} molecules"

    def open(self) -> AnnData:
        """The slide, its counts left on disk if they are there."""
        from lgdist_scvi import datasets

        if self.store is not None:
            return datasets.read(self.store, lazy=True)
        adata = datasets.simulated_visium(n_spots=self.n_spots, n_genes=self.n_genes)
        del adata.layers["rate"]  # dense, and not part of real data
        return adata


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    parser.add_argument("--spots", nargs="+", type=int, default=[10_000, 100_000, 600_000], help="default: %(default)s")
    parser.add_argument("--genes", type=int, default=1024, help="default: %(default)s")
    parser.add_argument("--molecules", type=float, default=80, help="of a bin, on average; default: %(default)s")
    parser.add_argument("--memory", action="store_true", help="slides of Visium in memory, and layers as well")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument("--complete-genes", type=int, help="number of genes that are completed; default: all")
    parser.add_argument("--workers", type=int, default=1, help="processes that complete a store; default: %(default)s")
    parser.add_argument("--block-size", type=int, help="bins that are completed together; default: the model's own")
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the model; default: %(default)s")
    parser.add_argument("--threads", type=int, default=cores, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--cache", type=Path, help="folder of slides, models and layers; default: cache in output")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")
    parser.add_argument("--report", action="store_true", help="print the tables of the stored results, and run nothing")


def main(arguments: argparse.Namespace) -> None:
    if not arguments.report:
        _run(arguments)
    print(markdown(read(arguments.output)))


def _run(arguments: argparse.Namespace) -> None:
    """Each step of each size in a process of its own, so that its peak memory is its own."""
    cache = arguments.cache or arguments.output / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    results, here = Results(arguments.output, arguments.again, digest), machine()
    code, began = digest("train"), time.monotonic()
    shared = {"protocol": PROTOCOL, "seed": arguments.seed, "code": code, "machine": here}
    shared |= {"threads": arguments.threads, "n_genes": arguments.genes}
    for n_spots in arguments.spots:
        size = n_spots, arguments.genes, arguments.molecules
        store = None if arguments.memory else cache / f"bins_{n_spots}x{size[1]}_{size[2]:g}.zarr"
        slide = Slide(*size, store)
        file = slide.name
        if arguments.epochs is not None:
            file += f", epochs {arguments.epochs}"
        if arguments.complete_genes is not None:
            file += f", {arguments.complete_genes} genes completed"
        if arguments.block_size is not None:
            file += f", blocks of {arguments.block_size}"
        if arguments.workers > 1:
            file += f", {arguments.workers} workers"
        todo = [step for step in arguments.steps if not results.has(file, PROTOCOL, arguments.seed, step)]
        if todo and store is not None and not store.exists():
            ((_, state, answer),) = in_processes([(file, write_slide, (store, *size))])
            if state == "failed":
                arguments.error(f"{file}: the slide could not be written ({answer})")
        model = cache / f"{slide.name} {arguments.seed} {code}".replace(", ", "_").replace(" ", "_")
        for step in todo:
            workers = arguments.workers if step in _COMPLETE and store is not None else 1
            completion = Completion(arguments.complete_genes, arguments.block_size, workers)
            call = (slide, step, model, completion, arguments.epochs, arguments.seed, arguments.threads)
            ((_, state, answer),) = in_processes([(step, measure, call)])
            row = {
                **shared,
                "workers": workers,
                "file": file,
                "method": step,
                "n_spots": n_spots,
                "date": date.today().isoformat(),
            }
            results.add({**row, **(answer if state == "done" else {"failed": answer})})
            text = f"failed: {answer}"
            if state == "done":
                text = f"{answer['seconds']:.1f} s, {(answer['memory_mib'] - answer['libraries_mib']) / 1024:.2f} GiB"
            print(f"[{(time.monotonic() - began) / 60:.0f} min] {file}, {step}: {text}", flush=True)


def measure(
    slide: Slide, step: str, folder: Path, completion: Completion, epochs: int | None, seed: int, threads: int
) -> dict:
    """One step from a slide as it is stored: what a row says. Only the step is timed; memory is that of the process."""
    quiet()
    import scvi
    import torch
    from threadpoolctl import threadpool_limits

    from lgdist_scvi import LGDiST

    torch.set_num_threads(threads)
    scvi.settings.seed = seed
    row, layers = {"libraries_mib": round(peak_memory(), 1)}, folder.with_name(f"{folder.name}_{step}.zarr")
    with threadpool_limits(threads):
        if step == "setup":
            row |= timed(partial(_register, slide))
        elif step == "train":
            model = _register(slide)
            row |= timed(partial(model.train, max_epochs=epochs, enable_progress_bar=False))
            model.save(folder, overwrite=True)
        else:
            if not folder.exists():
                raise FileNotFoundError("there is no trained model of this slide and code; run the step train first")
            adata = slide.open()
            model = LGDiST.load(folder, adata=adata)
            question = {"level": None, "n_samples": 0} if step == "mean" else {"level": 0.9}
            question["silent"] = True
            if completion.n_genes is not None:
                question["genes"] = list(adata.var_names[: completion.n_genes])
            _remove(layers)  # of a step that was stopped, which would go on
            if slide.store is not None:
                question |= {"store": layers, "block_size": completion.block_size}
            try:
                with completion.client(threads) as client:
                    before = _of_workers(client, time.process_time)
                    row |= timed(partial(model.complete, adata, client=client, **question))
                    row["cpu_seconds"] += round(sum(_of_workers(client, time.process_time)) - sum(before), 2)
                    row["memory_mib"] = round(max(_of_workers(client, peak_memory), default=0), 1)
                row["written_mib"] = round(_bytes(layers) / 2**20, 3)
            finally:
                _remove(layers)
        row["memory_mib"] = max(round(peak_memory(), 1), row.get("memory_mib", 0))
    return row


@dataclass(frozen=True)
class Completion:
    """How a store is completed: number of genes, ``None`` for all, bins in a block, and processes."""

    n_genes: int | None
    block_size: int | None
    n_workers: int

    @contextmanager
    def client(self, threads: int) -> Iterator[Any]:
        """A client of as many workers, each in a process of its own that has imported the package; ``None`` of one."""
        if self.n_workers == 1:
            yield None
            return
        from distributed import Client, LocalCluster

        kwargs = {"n_workers": self.n_workers, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
        with LocalCluster(**kwargs) as cluster, Client(cluster) as client:
            client.run(_prepare, threads)
            yield client


def _of_workers(client: Any, function: Callable[[], float]) -> list[float]:
    """What a function gives in each worker."""
    return [] if client is None else list(client.run(function).values())


def _prepare(threads: int) -> None:
    import torch

    import lgdist_scvi  # noqa: F401

    torch.set_num_threads(threads)


digest = partial(
    code_digest,
    methods=dict.fromkeys(STEPS, Method(measure)),
    shared=("benchmarks/_bins.py", "benchmarks/scale.py", "src/lgdist_scvi/**/*.py"),
)


def _register(slide: Slide) -> LGDiST:
    from lgdist_scvi import LGDiST

    adata = slide.open()
    LGDiST.setup_anndata(adata)
    return LGDiST(adata)


def timed(run: Any) -> dict[str, float]:
    """Seconds of the clock and of the processor, with child processes."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    run()
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(sum(os.times()[:4]) - used, 2),
    }


def _remove(store: Path) -> None:
    for path in store.parent.glob(f"{store.name}*"):
        shutil.rmtree(path)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each size and step, with what the table shows."""
    rows = rows[(rows["protocol"] == PROTOCOL) & rows["failed"].isna()].copy()
    if rows.empty:
        return rows
    rows["gib"] = (rows["memory_mib"] - rows["libraries_mib"]) / 1024
    rows["bytes_a_spot"] = (rows["memory_mib"] - rows["libraries_mib"]) * 2**20 / rows["n_spots"]
    rows["spots_a_second"] = rows["n_spots"] / rows["seconds"]
    if "written_mib" not in rows:
        rows["written_mib"] = np.nan
    rows["written_gib"] = rows["written_mib"] / 1024
    rows["method"] = pd.Categorical(rows["method"], categories=list(STEPS), ordered=True)
    return rows.sort_values(["n_genes", "n_spots", "file", "method", "seed"], kind="stable")


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Of slides on disk that one process completes whole, in the model's own blocks."""
    return rows[rows["file"].str.fullmatch("bins [^,]*, [^,]* molecules")]


def growth(rows: pd.DataFrame) -> pd.DataFrame:
    """Exponents of growth with the number of bins, of each step: slopes of least squares between logarithms."""
    rows, records = _whole(rows), {}
    for (step, n_genes), part in rows.groupby(["method", "n_genes"], observed=True):
        if part["n_spots"].nunique() > 1:
            spots = np.log(part["n_spots"].to_numpy(float))
            records[f"{STEPS[step]}, {n_genes:,.0f} genes"] = {
                title: np.polyfit(spots, np.log(part[name].clip(lower=1e-3).to_numpy(float)), 1)[0]
                for name, title in (("seconds", "seconds"), ("cpu_seconds", "processor"), ("gib", "memory"))
            }
    return pd.DataFrame.from_dict(records, orient="index")


def markdown(rows: pd.DataFrame) -> str:
    """All tables of the stored results."""
    rows = rows[rows["protocol"] == PROTOCOL]
    shown, parts = measured(rows), [provenance(rows)]
    if rows.empty:
        return _NOTHING
    if len(shown):
        table = pd.DataFrame(
            {
                "seconds": shown["seconds"],
                "of the processor": shown["cpu_seconds"],
                "spots a second": shown["spots_a_second"].round().astype(int),
                "peak memory above the libraries, GiB": shown["gib"],
                "bytes a spot": shown["bytes_a_spot"].round().astype(int),
                "written, GiB": shown["written_gib"],
            }
        ).set_axis([f"{file}: {STEPS[step]}" for file, step in zip(shown["file"], shown["method"], strict=True)])
        parts.append(markdown_table(table, "slide and step", digits=2))
        if len(exponents := growth(shown)):
            parts.append(markdown_table(exponents, "exponent of growth with the number of bins", digits=2))
    return "\n\n".join(part for part in parts if part)


def figure(rows: pd.DataFrame) -> Figure | None:
    """Seconds and memory of each step against the number of bins; ``None`` without two sizes."""
    from matplotlib.figure import Figure

    shown = _whole(measured(rows))
    if shown["n_spots"].nunique() < 2:
        return None
    shown = shown[shown["n_genes"] == shown["n_genes"].mode()[0]]
    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    for ax, (name, title) in zip(drawn.subplots(1, 2), (("seconds", "seconds"), ("gib", "GiB")), strict=True):
        for step, part in shown.groupby("method", observed=True):
            ax.plot(part["n_spots"], part[name], marker="o", markersize=4, label=STEPS[step])
        ax.set(xscale="log", yscale="log", xlabel="bins", ylabel=title)
        ax.spines[["top", "right"]].set_visible(False)
    drawn.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(STEPS), fontsize=8, frameon=False
    )
    return drawn


def write(rows: pd.DataFrame, folder: Path) -> None:
    """Write the part of a page with all tables and the curves into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [markdown(rows)]
    if (drawn := figure(rows)) is not None:
        drawn.savefig(folder / "scale.png", dpi=110, bbox_inches="tight")
        parts.insert(0, f"![{CAPTION}](/generated/scale.png)")
    (folder / "scale.md").write_text("\n\n".join(parts) + "\n")
