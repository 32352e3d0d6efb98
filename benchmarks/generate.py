"""Generate patches for the spots of a section that was held out: how real they are, and whether they show the expression."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import _generation, _sections
from benchmarks._generation import KINDS, Budget
from benchmarks._results import RESULTS, Results, code_digest, machine, read
from benchmarks._shared import add_data, quiet
from benchmarks.report import markdown_table, provenance
from benchmarks.run import in_processes

PROTOCOL = "generation"
HELD_OUT = ("C2", "C4")
_SHARED = (
    "benchmarks/_sections.py", "benchmarks/_generation.py", "src/lgdist_scvi/**/*c2lst*.py", "src/lgdist_scvi/module/c2lst/*.py",
    "src/lgdist_scvi/metrics/_image*.py", "src/lgdist_scvi/metrics/_copying.py", "src/lgdist_scvi/metrics/_patch_composition.py",
)  # fmt: skip
_TABLES = {
    "Distance to real patches of the held-out section": (
        "kid", "kid_se", "kid_excess", "kid_excess_se", "frechet", "frechet_se", "frechet_excess", "frechet_excess_se",
    ),
    "Expression found back by a ridge that was trained on real patches (D2)": tuple(f"d2_{key}" for key in _sections.ENCODERS),
    "Composition: correlation over spots with the real patch (real: with a neighbouring one), and mean": tuple(
        f"{part}_{what}" for what in ("haematoxylin", "eosin", "nuclei") for part in ("pcc", "mean")
    ),
    "Copying: distance to the nearest training patch": (
        "copying_generated", "copying_real", "copying_ratio", "copying_share_close", "copying_p_value",
    ),
}  # fmt: skip
_COST = ("n_tiles", "n_steps", "seconds_central", "seconds_adapter", "seconds_per_patch", "memory_mib")


@dataclass(frozen=True)
class _Kind:
    """A row of the tables, for the digest of its source."""

    run = staticmethod(_generation.score)
    sources: tuple[str, ...] = ()


digest = partial(code_digest, methods=dict.fromkeys(KINDS, _Kind()), shared=_SHARED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    usual = Budget()
    parser.add_argument("--file", default="her2st_C", help="sections with images <name>_he.jpg; default: %(default)s")
    parser.add_argument("--sections", nargs="+", default=list(HELD_OUT), help="to hold out; default: C2 C4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--tiles", type=int, default=usual.n_tiles, help="of tissue, at most; default: %(default)s")
    parser.add_argument("--steps", type=int, default=usual.n_steps, help="of the central model; default: %(default)s")
    parser.add_argument("--epochs", type=int, help="of the adapter; default: as C2LST.train")
    parser.add_argument("--guidance", type=float, default=usual.guidance_scale, help="default: %(default)s")
    parser.add_argument("--sampling-steps", type=int, default=usual.n_sampling_steps, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--cache", type=Path, help="folder of patches and models; default: cache in output")
    parser.add_argument("--again", action="store_true", help="score what is stored and current as well")
    parser.add_argument("--report", action="store_true", help="print the tables of the stored results, and run nothing")


def main(arguments: argparse.Namespace) -> None:
    if not arguments.report:
        _run(arguments)
    rows = read(arguments.output)
    rows = rows[(rows["protocol"] == PROTOCOL) & rows["failed"].isna()]
    if rows.empty:
        arguments.error(f"{arguments.output} holds no results of generated patches; run this command without --report")
    print(markdown(rows))


def _run(arguments: argparse.Namespace) -> None:
    path = arguments.data / f"{arguments.file}.h5ad"
    if not path.is_file():
        arguments.error(f"{arguments.data} holds no {path.name}")
    images = _sections.images(path)
    if unknown := sorted(set(arguments.sections) - set(images)):
        arguments.error(f"--sections: {path.name} has images of sections {list(images)}, not of {unknown}")
    if len(images) < 3:
        arguments.error(f"{path.name} has images beside it of {len(images)} sections; 3 are needed, two to learn from")
    cache = arguments.cache or arguments.output / "cache"
    budget = Budget(arguments.tiles, arguments.steps, arguments.epochs, arguments.sampling_steps, arguments.guidance)
    results, here = Results(arguments.output, arguments.again, digest), machine()
    began, code = time.monotonic(), digest(KINDS[0])
    for seed in arguments.seeds:
        for section in arguments.sections:
            file = f"{arguments.file} {section}"
            if all(results.has(file, PROTOCOL, seed, kind) for kind in KINDS):
                continue
            shared = {"file": file, "protocol": PROTOCOL, "seed": seed, "date": date.today().isoformat(), "code": code}
            shared |= {"machine": here, "threads": arguments.threads, "workers": 1, **asdict(budget)}
            call = ("rows", measure, (path, section, cache, seed, budget, arguments.threads))
            ((_, state, answer),) = in_processes([call])
            if state == "failed":
                results.add({**shared, "method": KINDS[0], "failed": answer})
            for row in answer if state == "done" else ():
                results.add({**shared, **row})
            print(
                f"[{(time.monotonic() - began) / 60:.0f} min] {file}: {state if state == 'done' else answer}",
                flush=True,
            )


def measure(path: Path, section: str, cache: Path, seed: int, budget: Budget, threads: int) -> list[dict]:
    """Train on the other sections, generate, score: all rows of a held-out section."""
    quiet()
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        cost = _generation.train(path, section, cache, seed, budget)
        return [{**cost, **row} for row in _generation.score(path, section, cache, seed, budget)]


def markdown(rows: pd.DataFrame) -> str:
    """All tables of the stored results."""
    parts = [provenance(rows)]
    for file, its_rows in rows.groupby("file"):
        by_kind = its_rows.groupby("method").mean(numeric_only=True).reindex(KINDS).dropna(how="all")
        for title, columns in _TABLES.items():
            there = by_kind[[name for name in columns if name in by_kind]].dropna(how="all")
            parts.append(markdown_table(there, f"{file}. {title}"))
        cost = by_kind[[name for name in _COST if name in by_kind]].iloc[:1]
        parts.append(markdown_table(cost.set_axis(["all"]), f"{file}. Cost"))
    return "\n\n".join(parts)
