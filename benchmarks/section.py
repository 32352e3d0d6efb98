"""Predict a section that was never sequenced from its image: leave one section out, score on its counts."""

from __future__ import annotations

import argparse
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks import _image_peers
from benchmarks._image_peers import CONTROLS, METHODS, MODELS, PEERS, YARDSTICKS
from benchmarks._results import RESULTS, Results, code_digest, machine, read
from benchmarks._shared import add_data, peak_memory, quiet
from benchmarks.report import markdown_table, provenance
from benchmarks.run import in_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOLS = ("section", "pairs")
N_PAIRS = (25, 50, 100, 200)
PAIRS_HELD_OUT = 2  # of the sections, the first and the third of her2st_C: C2 and C4
_SHARED = ("benchmarks/_sections.py", "benchmarks/_image_peers.py", "src/lgdist_scvi/metrics/_poisson.py")
digest = partial(code_digest, methods=METHODS, shared=_SHARED)

_LABELS = {
    "depth": "*depth only*",
    "depth_and_image": "*depth and image*",
    "stain_raw": "ridge, stain",
    "ridge": "ridge, own patch",
    "context": "ridge, own + neighbouring patches",
    "everything": "ridge, own + neighbouring patches, with stain",
    "knn": "kNN retrieval",
    "poisson": "Poisson ridge",
    "mlp": "MLP",
    "stem": "Stem",
    "measured_neighbors": "*measured neighbours*",
}
_TARGETS = {
    "raw": "raw",
    "pca": "rank-20 PCA",
    "completed": "completed",
    "unscaled": "genes not scaled to their means",
    "pooled": "features not standardised in sections",
    "network": "network alone, completed",
    "paper": "gene-space transformer of the paper, small",
}
_SCORES = {
    "d2": "D2",
    "variance_explained": "R2 of rates",
    "pcc_gene": "PCC per gene",
    "pcc_depth": "PCC of depth alone",
    "pcc_given_depth": "PCC per gene, depth taken off",
    "mse": "MSE",
    "mse_nonzero": "misleading (non-zero only) MSE",
}
_SPREAD = {
    "energy": "energy score",
    "energy_noise": "mean with independent noise",
    "energy_modules": "energy score of modules",
    "energy_modules_noise": "the same of mean with independent noise",
    "variance_sample": "variance ratio of a sample",
    "variance_sample_within": "genes within 0.8–1.25",
    "coverage_90": "coverage of 90 % intervals",
}
_CLAIM = ("ridge", "context", "everything", "knn", "poisson", "mlp", "stem")


_SHORT = {
    "ridge": "ridge,\nown patch",
    "context": "ridge, own +\nneighbouring",
    "everything": "the same,\nwith stain",
    "knn": "kNN\nretrieval",
}
CLAIM_CAPTION = (
    "The same predictors on raw and on completed training targets, scored on raw counts of the section that was held out: a grey line for each "
    "section and seed, their mean in colour."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--file", default="her2st_C", help="sections with images <name>_he.jpg; default: %(default)s")
    parser.add_argument("--sections", nargs="+", help="to hold out; default: all that have an image")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["section"], help="default: section")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help="default: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--cache", type=Path, help="folder of features and completed targets; default: cache in output")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")
    parser.add_argument("--report", action="store_true", help="print the tables of the stored results, and run nothing")


def main(arguments: argparse.Namespace) -> None:
    if not arguments.report:
        _run(arguments)
    rows = read(arguments.output)
    rows = rows[rows["protocol"].isin(PROTOCOLS)]
    if rows.empty:
        arguments.error(f"{arguments.output} holds no results of sections; run this command without --report")
    print(markdown(rows))


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks import _sections

    path = arguments.data / f"{arguments.file}.h5ad"
    if not path.is_file():
        arguments.error(f"{arguments.data} holds no {path.name}")
    images = _sections.images(path)
    if unknown := sorted(set(arguments.sections or ()) - set(images)):
        arguments.error(f"--sections: {path.name} has images of sections {list(images)}, not of {unknown}")
    if len(images) < 4:  # one is left out of those that methods learn from, and another one stops training early
        arguments.error(
            f"{path.name} has images beside it of {len(images)} sections; 4 are needed, three to learn from"
        )
    cache = arguments.cache or arguments.output / "cache"
    results = Results(arguments.output, arguments.again, digest)
    todo = [job for job in _jobs(arguments, list(images)) if not results.has(*job[:4])]
    print(f"{len(todo)} results to obtain", flush=True)
    began, here, prepared = time.monotonic(), machine(), set()
    codes = {
        method: digest(method) for method in arguments.methods
    }  # of the source that runs, whatever is edited meanwhile
    for number, (file, protocol, seed, method, section, n_pairs) in enumerate(todo, start=1):
        calls = [("row", measure, (path, section, cache, seed, method, n_pairs))]
        if (section, seed) not in prepared:
            prepared.add((section, seed))
            calls.insert(0, ("prepared", prepare, (path, section, cache, seed)))
        row = {"file": file, "protocol": protocol, "seed": seed, "method": method, "date": date.today().isoformat()}
        row |= {"code": codes[method], "machine": here, "threads": 1, "workers": 1}
        for call in calls:
            ((tag, state, answer),) = in_processes([call])
            if state == "failed":
                row |= {"failed": answer}
                break
            if tag == "row":
                row |= answer
        results.add(row)
        text = f"failed: {row['failed']}" if "failed" in row else f"D2 {row['d2']:.4f} ({row['seconds']:.0f} s)"
        passed = (time.monotonic() - began) / 60
        print(f"[{number}/{len(todo)}, {passed:.0f} min] {file} {protocol} {method}: {text}", flush=True)


def _jobs(arguments: argparse.Namespace, images: list[str]) -> list[tuple]:
    """File, protocol, seed and method as in the table, held-out section, and number of pairs of each result."""
    jobs = []
    for seed in arguments.seeds:
        for section in arguments.sections or images:
            if "section" in arguments.protocols:
                name = f"{arguments.file} {section}"
                jobs += [(name, "section", seed, method, section, None) for method in arguments.methods]
        for section in arguments.sections or images[::2][:PAIRS_HELD_OUT]:
            if "pairs" in arguments.protocols:
                asked = [m for m in arguments.methods if m in {**PEERS, **MODELS} and METHODS[m].few_pairs]
                for n in N_PAIRS:
                    jobs += [(f"{arguments.file} {section} {n}", "pairs", seed, m, section, n) for m in asked]
    return jobs


def prepare(path: Path, section: str, cache: Path, seed: int) -> None:
    """Make what all methods share, where it is not stored: image features, genes, completed targets."""
    quiet()
    from threadpoolctl import threadpool_limits

    from benchmarks import _sections

    with threadpool_limits(1):
        _sections.features(path, _sections.images(path), cache)
        _sections.prepare(path, section, cache, seed)


def measure(path: Path, section: str, cache: Path, seed: int, method: str, n_pairs: int | None) -> dict:
    """Hide a section, run the method, score: what a row says."""
    quiet()
    import torch
    from threadpoolctl import threadpool_limits

    from benchmarks import _sections

    torch.set_num_threads(1)
    chosen = METHODS[method]
    with threadpool_limits(1):
        features = _sections.features(path, _sections.images(path), cache)
        prepared = _sections.prepare(path, section, cache, seed)
        stained = None
        if chosen.control == "stained":
            stained = _sections.stained_features(path, _sections.images(path), cache)
        data = _sections.hold_out(
            prepared,
            features,
            section,
            chosen.control,
            n_pairs,
            seed,
            standardized=chosen.standardized,
            stained=stained,
        )
        row = {"hidden": data.fingerprint, "n_spots": data.training.n_obs, "n_genes": data.training.n_vars}
        start = time.perf_counter()
        answer = chosen.run(data, seed)
        rate, further = answer if isinstance(answer, tuple) else (answer, {})
        row |= {"seconds": round(time.perf_counter() - start, 2), "memory_mib": round(peak_memory(), 1)}
    return row | data.score(rate) | further


def label(method: str) -> str:
    """Name of a method in tables."""
    words = method.split("_")
    if method in _LABELS or words[0] not in _LABELS:
        return _LABELS.get(method, method.replace("_", " "))
    parts = [_TARGETS.get(word, f"patches {word}") for word in words[1:]]
    return ", ".join([_LABELS[words[0]], *parts])


def markdown(rows: pd.DataFrame) -> str:
    """All tables of the stored results."""
    done, parts = _done(rows), [provenance(rows)]
    whole = done[done["protocol"] == "section"]
    if len(whole):
        parts += [*_section_tables(whole), _claim(whole), _controls(whole), _spread(whole)]
    return "\n\n".join(part for part in [*parts, _pairs(done[done["protocol"] == "pairs"], whole)] if part)


def _done(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a score, whose methods come in the order of tables."""
    done = rows[rows["failed"].isna() & rows["method"].isin(list(METHODS))]
    return done.assign(method=pd.Categorical(done["method"], categories=list(METHODS), ordered=True))


def write(rows: pd.DataFrame, folder: Path) -> None:
    """Write a page of all tables, and a part of one with the figure of raw against completed targets, into a folder."""
    rows = rows[rows["protocol"].isin(PROTOCOLS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "section_page.md").write_text(
        f"---\norphan: true\n---\n\n# Sections that were never sequenced: all tables\n\n{markdown(rows)}\n"
    )
    done = _done(rows)
    done, few = (done[done["protocol"] == name] for name in PROTOCOLS)
    (folder / "section_scores.md").write_text(_section_tables(done)[0] + "\n")
    (folder / "section_pairs.md").write_text(_pairs(few, done) + "\n")
    claim = [_claim(done).split("\n\n", 1)[-1]]
    if (figure := claim_figure(rows)) is not None:
        figure.savefig(folder / "section_claim.png", dpi=110, bbox_inches="tight")
        claim.insert(0, f"![{CLAIM_CAPTION}](/generated/section_claim.png)")
    (folder / "section_claim.md").write_text("\n\n".join(claim) + "\n")


def claim_figure(rows: pd.DataFrame) -> Figure | None:
    """D2 of each predictor on raw and on completed targets, a line for each held-out section and seed; ``None`` without."""
    from matplotlib.figure import Figure

    whole = rows[(rows["protocol"] == "section") & rows["failed"].isna()]
    d2 = whole.pivot_table(index="method", columns=["file", "seed"], values="d2")
    shown = [name for name in _CLAIM if {f"{name}_raw", f"{name}_completed"} <= set(d2.index)]
    if not shown:
        return None
    figure = Figure(figsize=(1.5 * len(shown) + 1, 3.2), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, shown, strict=True):
        pair = d2.loc[[f"{name}_raw", f"{name}_completed"]].dropna(axis=1)
        ax.plot([0, 1], pair.to_numpy(), color="#cbd5e1", marker="o", markersize=3, linewidth=1)
        ax.plot([0, 1], pair.mean(axis=1), color="#c2410c", marker="o", linewidth=2)
        ax.set_title(_SHORT.get(name, label(f"{name}_raw").removesuffix(", raw")), fontsize=8)
        ax.set_xticks([0, 1], ["raw", "completed"], fontsize=8)
        ax.set_xlim(-0.3, 1.3)
        ax.axhline(0, color="#94a3b8", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("D2 of the held-out section")
    return figure


def _by_file(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    return rows.pivot_table(index="method", columns="file", values=score, observed=True).sort_index()


def _complete(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """A score of the methods that have it on every section."""
    return _by_file(rows, score).dropna()


def _section_tables(rows: pd.DataFrame) -> list[str]:
    shown = rows[~rows["method"].isin([*CONTROLS, *_image_peers.AS_IT_IS])]
    d2 = _by_file(shown, "d2")
    d2["mean"] = d2.mean(axis=1, skipna=False)
    is_peer = ~d2.index.isin(list(YARDSTICKS))
    tables = [markdown_table(d2[is_peer].rename(index=label), "D2, higher is better", best=True)]
    if not is_peer.all():
        tables[0] += markdown_table(d2[~is_peer].rename(index=label)).split("\n", 2)[2].join(("\n", ""))
    whole = d2.index[d2["mean"].notna()]
    means = shown[shown["method"].isin(whole)].groupby("method", observed=True)[[*_SCORES, "seconds"]].mean()
    return [*tables, "Means over the sections:", markdown_table(means.rename(index=label, columns=_SCORES), "method")]


def _claim(rows: pd.DataFrame) -> str:
    """Each predictor trained on raw and on completed targets."""
    records = {}
    pairs = [(f"{name}_raw", f"{name}_completed") for name in _CLAIM]
    pairs += [(f"everything_raw_{how}", f"everything_completed_{how}") for how in ("unscaled", "pooled")]
    d2, misleading, mse = (_complete(rows, score) for score in ("d2", "mse_nonzero", "mse"))
    for raw, completed in pairs:
        if {raw, completed} <= set(d2.index):
            title = label(raw).replace(", raw", "")
            gain = d2.loc[completed] - d2.loc[raw]
            records[title] = {
                "D2, raw": d2.loc[raw].mean(),
                "D2, completed": d2.loc[completed].mean(),
                "gain": gain.mean(),
                "least gain": gain.min(),
                "ahead on": f"{(gain > 0).sum()} of {len(gain)}",
                "MSE, raw": mse.loc[raw].mean(),
                "MSE, completed": mse.loc[completed].mean(),
                "misleading (non-zero only) MSE, raw": misleading.loc[raw].mean(),
                "the same, completed": misleading.loc[completed].mean(),
            }
    if not records:
        return ""
    return "Trained on raw and on completed targets:\n\n" + markdown_table(
        pd.DataFrame.from_dict(records, orient="index"), "predictor"
    )


def _controls(rows: pd.DataFrame) -> str:
    """D2 with the patches of other spots."""
    rows = rows[rows["seed"].isin(rows.loc[rows["method"].isin(list(CONTROLS)), "seed"])]
    d2, records = _by_file(rows, "d2"), {}
    for name in {**PEERS, **MODELS}:
        here = {control: f"{name}_{control}" for control in ("shuffled", "shifted", "stained")}
        here = {control: d2.loc[row].dropna() for control, row in here.items() if row in d2.index}
        if name in d2.index and here:
            of = {control: d2.loc[name, scores.index].mean() for control, scores in here.items()}
            records[label(name)] = {"sections": max(map(len, here.values())), "D2": next(iter(of.values()))}
            for control, scores in here.items():
                records[label(name)] |= {
                    f"patches {control}": scores.mean(),
                    f"share left, {control}": scores.mean() / of[control],
                }
    if not records:
        return ""
    return "Controls:\n\n" + markdown_table(pd.DataFrame.from_dict(records, orient="index"), "method")


def _spread(rows: pd.DataFrame) -> str:
    """Samples and intervals of the models, by section."""
    if "coverage_90" not in rows:
        return ""
    rows = rows[rows["coverage_90"].notna() & ~rows["method"].isin(list(CONTROLS))]
    table = rows.groupby(["method", "file"], observed=True)[list(_SPREAD)].mean()
    table.index = [f"{label(method)}: {file.split(' ')[-1]}" for method, file in table.index]
    return (
        "Samples and intervals:\n\n" + markdown_table(table.rename(columns=_SPREAD), "held out") if len(table) else ""
    )


def _pairs(rows: pd.DataFrame, whole: pd.DataFrame) -> str:
    """D2 by the number of training spots, mean over the sections held out; of all spots by the rows of whole sections."""
    if rows.empty:
        return ""
    rows = rows.assign(n=rows["file"].str.rsplit(" ", n=1).str[1].astype(int))
    rows["held_out"] = rows["file"].str.split(" ").str[1]
    table = rows.pivot_table(index="method", columns="n", values="d2", observed=True).sort_index()
    files, same = rows["file"].str.rsplit(" ", n=1).str[0].unique(), whole[whole["seed"].isin(rows["seed"])]
    everything = _by_file(same, "d2").reindex(columns=files).mean(axis=1, skipna=False)
    table = table.rename(columns=str).assign(all=everything.reindex(table.index).to_numpy())
    title = f"D2 by the number of training spots (held out: {', '.join(sorted(rows['held_out'].unique()))})"
    return markdown_table(table.rename(index=label), title, best=True)
