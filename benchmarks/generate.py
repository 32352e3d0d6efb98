"""Generate patches for the spots of a section that was held out: how real they are, whether they show the expression, and
whether a predictor learns from them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks import _augmentation, _generation, _sections
from benchmarks._augmentation import EXTRA, METHODS, N_PAIRS, PREDICTORS, AugmentationBudget, Cell
from benchmarks._generation import KINDS, N_ASKED, POSTERIORS, Budget
from benchmarks._results import RESULTS, Results, code_digest, machine, read
from benchmarks._shared import add_data, quiet
from benchmarks.report import markdown_table, provenance
from benchmarks.run import in_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL, POSTERIOR, AUGMENTATION = "generation", "posterior", "augmentation"
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
    f"Expression that the model itself finds in patches of {N_ASKED} spots, among as many profiles": (
        "rank", "rank_se", "probability", "d2_posterior", "d2_prior",
    ),
}  # fmt: skip
_COST = ("n_tiles", "n_steps", "seconds_central", "seconds_adapter", "seconds_per_patch", "memory_mib")


_LABELS = {"real": "real pairs", "copies": "real pairs and copies", "synthetic": "real and synthetic pairs"}
_COLORS = {"real": "#64748b", "copies": "#0e7490", "synthetic": "#c2410c"}
_STYLES = {"real": "-", "copies": (0, (5, 5)), "synthetic": (0, (1, 2))}  # curves may be the same
CURVE_CAPTION = "D2 of held-out sections by the number of real pairs: thin lines for each section and draw of pairs, thick ones for their mean."


@dataclass(frozen=True)
class _Kind:
    """A row of the tables, for the digest of its source."""

    run: Callable = _generation.score
    sources: tuple[str, ...] = ()


_OF_AUGMENTATION = (
    "benchmarks/_augmentation.py", "benchmarks/_image_peers.py", "src/lgdist_scvi/**/*stem*.py", "src/lgdist_scvi/module/stem/*.py",
)  # fmt: skip
_METHODS = dict.fromkeys(KINDS, _Kind())
_METHODS |= dict.fromkeys(POSTERIORS, _Kind(_generation.posterior))
_METHODS |= dict.fromkeys(METHODS, _Kind(_augmentation.measure, _OF_AUGMENTATION))
_ROWS = {PROTOCOL: KINDS, POSTERIOR: POSTERIORS, AUGMENTATION: METHODS}
digest = partial(code_digest, methods=_METHODS, shared=_SHARED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    usual = Budget()
    parser.add_argument("--file", default="her2st_C", help="sections with images <name>_he.jpg; default: %(default)s")
    parser.add_argument("--sections", nargs="+", default=list(HELD_OUT), help="to hold out; default: C2 C4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument(
        "--protocols", nargs="+", choices=list(_ROWS), default=[PROTOCOL, POSTERIOR], help="default: %(default)s"
    )
    parser.add_argument(
        "--pairs", nargs="+", type=int, help="numbers of real pairs of the augmentation, 0 for all; default: 25 100 0"
    )
    parser.add_argument("--predictors", nargs="+", choices=PREDICTORS, default=PREDICTORS, help="default: both")
    parser.add_argument(
        "--synthetic", type=int, default=AugmentationBudget.n_synthetic, help="pairs; default: %(default)s"
    )
    parser.add_argument(
        "--adapter-steps",
        type=int,
        default=AugmentationBudget.n_adapter_steps,
        help="of the augmentation; default: %(default)s",
    )
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
    rows = _done(read(arguments.output))
    if rows.empty:
        arguments.error(f"{arguments.output} holds no results of generated patches; run this command without --report")
    print(markdown(rows))


def _done(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["protocol"].isin((PROTOCOL, AUGMENTATION)) & rows["failed"].isna()]


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
    augmentation = AugmentationBudget(arguments.synthetic, arguments.adapter_steps)
    began, codes = time.monotonic(), {part: digest(methods[0]) for part, methods in _ROWS.items()}
    for file, part, seed, section, n_pairs in _jobs(arguments):
        methods, protocol = _ROWS[part], AUGMENTATION if part == AUGMENTATION else PROTOCOL  # one table of patches
        if part == AUGMENTATION:
            methods = [name for name in methods if name.split("_")[0] in arguments.predictors]
        if all(results.has(file, protocol, seed, method) for method in methods):
            continue
        shared = {"file": file, "protocol": protocol, "seed": seed, "date": date.today().isoformat()}
        shared |= {"machine": here, "threads": arguments.threads, "workers": 1, **asdict(budget)}
        scored = _generation_rows if part == PROTOCOL else _generation.posterior
        if part == AUGMENTATION:
            shared |= asdict(augmentation)
            scored = partial(_augmentation_rows, n_pairs, augmentation, tuple(arguments.predictors))
        call = ("rows", measure, (scored, path, section, cache, seed, budget, arguments.threads))
        ((_, state, answer),) = in_processes([call])
        if state == "failed":
            results.add({**shared, "code": codes[part], "method": methods[0], "failed": answer})
        for row in answer if state == "done" else ():
            results.add({**shared, "code": codes[part], **row})
        print(
            f"[{(time.monotonic() - began) / 60:.0f} min] {file} {part}: {state if state == 'done' else answer}",
            flush=True,
        )


def _jobs(arguments: argparse.Namespace) -> list[tuple]:
    """File as in the table, what is measured, seed, held-out section, and number of real pairs, ``None`` for all."""
    jobs = []
    for seed in arguments.seeds:
        for section in arguments.sections:
            file = f"{arguments.file} {section}"
            parts = [part for part in (PROTOCOL, POSTERIOR) if part in arguments.protocols]
            jobs += [(file, part, seed, section, None) for part in parts]
            if AUGMENTATION in arguments.protocols:
                numbers = N_PAIRS if arguments.pairs is None else [n or None for n in arguments.pairs]
                jobs += [(f"{file} {n or 'all'}", AUGMENTATION, seed, section, n) for n in numbers]
    return jobs


def measure(scored: Callable[..., list[dict]], *arguments: object) -> list[dict]:
    """All rows of a held-out section; the last argument is the number of threads."""
    *arguments, threads = arguments
    quiet()
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        return scored(*arguments)


def _generation_rows(path: Path, section: str, cache: Path, seed: int, budget: Budget) -> list[dict]:
    """Train on the other sections, generate, score."""
    cost = _generation.train(path, section, cache, seed, budget)
    return [{**cost, **row} for row in _generation.score(path, section, cache, seed, budget)]


def _augmentation_rows(
    n_pairs: int | None, augmentation: AugmentationBudget, predictors: tuple[str, ...], *arguments: object
) -> list[dict]:
    """Train predictors on some pairs of the other sections, with and without further patches."""
    path, section, cache, seed, budget = arguments
    return _augmentation.measure(Cell(path, section, cache, seed, n_pairs, budget, augmentation, predictors))


def markdown(rows: pd.DataFrame) -> str:
    """All tables of the stored results."""
    parts = [provenance(rows), *generation_tables(rows[rows["protocol"] == PROTOCOL])]
    return "\n\n".join(parts + augmentation_tables(rows[rows["protocol"] == AUGMENTATION]))


def generation_tables(rows: pd.DataFrame) -> list[str]:
    """What generated patches are like, and what they cost, for each held-out section."""
    parts, costs = [], {}
    for file, its_rows in rows.groupby("file"):
        by_kind = its_rows.groupby("method").mean(numeric_only=True).reindex([*KINDS, *POSTERIORS]).dropna(how="all")
        for title, columns in _TABLES.items():
            there = by_kind[[name for name in columns if name in by_kind]].dropna(how="all")
            parts += [] if there.empty else [markdown_table(there, f"{file}. {title}")]
        costs[file] = by_kind[[name for name in _COST if name in by_kind]].iloc[0]
    return [*parts, markdown_table(pd.DataFrame(costs).T, "Cost")] if costs else []


def _by_number(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """A score of each predictor and kind of training pairs (rows) on each section and draw, by the number of real pairs."""
    words = rows["file"].str.split(" ")
    rows = rows.assign(section=words.str[1], real_pairs=words.str[2].replace("all", "0").astype(int))
    table = rows.pivot_table(index="method", columns=["real_pairs", "section", "seed"], values=score)
    order = sorted(table, key=lambda column: (column[0] or 10**9, *column[1:]))  # 0 are all
    return table.reindex(index=[name for name in METHODS if name in table.index], columns=order)


def augmentation_tables(rows: pd.DataFrame) -> list[str]:
    """D2 by the number of real pairs, what further patches add, and the weights that were chosen."""
    if rows.empty:
        return []
    d2, weight = _by_number(rows, "d2"), _by_number(rows, "weight")
    means, gains = {}, {}
    for name in d2.index:
        predictor, kind, *always = name.split("_")
        label = f"{predictor}, {_LABELS[kind]}" + ", of the same weight" * len(always)
        means[label] = d2.loc[name].groupby(level=0, sort=False).mean()
        if kind != "real" and f"{predictor}_real" in d2.index:
            gain = (d2.loc[name] - d2.loc[f"{predictor}_real"]).dropna()
            gains[label] = {
                "gain": gain.mean(),
                "least gain": gain.min(),
                "largest gain": gain.max(),
                "cells": str(len(gain)),
            }
            gains[label] |= {
                "weight 0 in": f"{(weight.loc[name, gain.index] == 0).sum()}",
                "mean weight": weight.loc[name].mean(),
            }
    means = pd.DataFrame(means).T.rename(columns=lambda n: str(n or "all"))
    parts = [markdown_table(means, "D2 by the number of real pairs")]
    return parts + (
        [markdown_table(pd.DataFrame(gains).T.infer_objects(), "D2 beyond that of real pairs alone", digits=4)]
        if gains
        else []
    )


def augmentation_figure(rows: pd.DataFrame) -> Figure | None:
    """D2 of each predictor by the number of real pairs, with and without further patches; ``None`` without results."""
    from matplotlib.figure import Figure

    rows = _done(rows)
    rows = rows[rows["protocol"] == AUGMENTATION]
    if rows.empty:
        return None
    d2 = _by_number(rows, "d2")
    predictors = list(dict.fromkeys(name.split("_")[0] for name in d2.index))
    figure = Figure(figsize=(3.2 * len(predictors) + 0.8, 3.0), layout="constrained")
    axes = figure.subplots(1, len(predictors), sharey=True, squeeze=False)[0]
    numbers = list(dict.fromkeys(d2.columns.get_level_values(0)))
    for ax, predictor in zip(axes, predictors, strict=True):
        for kind in EXTRA:
            if f"{predictor}_{kind}" not in d2.index:
                continue
            curves = d2.loc[f"{predictor}_{kind}"].unstack([1, 2]).reindex(numbers)  # number x (section, seed)
            ax.plot(range(len(numbers)), curves.to_numpy(), color=_COLORS[kind], linewidth=0.7, alpha=0.4)
            mean = curves.mean(axis=1)
            style = {"color": _COLORS[kind], "linestyle": _STYLES[kind], "linewidth": 2.5, "marker": "o"}
            ax.plot(range(len(numbers)), mean, label=_LABELS[kind], **style)
        ax.set_xticks(range(len(numbers)), [str(n or "all") for n in numbers])
        ax.set_title({"ridge": "ridge, own patch", "stem": "Stem"}[predictor], fontsize=9)
        ax.set_xlabel("real pairs", fontsize=9)
        ax.axhline(0, color="#94a3b8", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("D2 of the held-out section", fontsize=9)
    axes[-1].legend(fontsize=8, frameon=False)
    return figure


def write(rows: pd.DataFrame, folder: Path) -> None:
    """Write parts of a page into a folder: what generated patches are like, what pairs are worth, or that it was not measured."""
    rows = _done(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for protocol, tables in ((PROTOCOL, generation_tables), (AUGMENTATION, augmentation_tables)):
        its_rows = rows[rows["protocol"] == protocol]
        parts = ["No results are stored."] if its_rows.empty else [provenance(its_rows), *tables(its_rows)]
        if protocol == AUGMENTATION and (figure := augmentation_figure(its_rows)) is not None:
            figure.savefig(folder / "augmentation.png", dpi=110, bbox_inches="tight")
            parts.insert(1, f"![{CURVE_CAPTION}](/generated/augmentation.png)")
        (folder / f"{protocol}.md").write_text("\n\n".join(parts) + "\n")
