"""Tables and figures of a file of results: ``python -m benchmarks.report results.json``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._methods import METHODS, PEERS
from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._record import REPOSITORY, read

BEGIN, END = "<!-- begin: written by python -m benchmarks.report -->", "<!-- end -->"
TITLES = {
    "entry": "Entry hold-out",
    "spot": "Hidden spots",
    "block": "Hidden blocks",
    "thinning": "Thinning, half of the molecules given",
    "shallow": "Thinning, a tenth of the molecules given",
}
LABELS = {
    "neighbor_mean": "neighbour mean",
    "pca": "PCA",
    "knn": "kNN in PCA space",
    "poisson_nmf": "Poisson NMF",
    "soft_impute": "soft-impute",
    "scvi": "scVI",
    "lgdist_vae": "LGDiST, VAE alone",
    "lgdist": "LGDiST",
    "lgdist_no_context": "LGDiST, no context genes",
    "lgdist_wide_latent": "LGDiST, latent of 256",
    "lgdist_no_neighbors": "LGDiST, no neighbours",
    "lgdist_centre_hidden": "LGDiST, centre hidden",
    "lgdist_two_rounds": "LGDiST, two rounds",
}
FILES = {
    "human_dlpfc_151673": "cortex 151673",
    "human_dlpfc_151675": "cortex 151675",
    "mouse_muscle_Vis7B_5dpi": "muscle",
    "human_breast_visium_subset": "breast",
    "mouse_hippocampus_slideseqv2_subset": "hippocampus",
    "mouse_embryo_cytassist": "embryo",
    "her2st_A": "HER2ST A",
    "her2st_C": "HER2ST C",
}


NAMES = {
    "mse": "MSE", "excess": "excess MSE", "mae": "MAE", "pcc_gene": "PCC per gene", "pcc_spot": "PCC per spot",
    "d2": "D2", "variance_explained": "R2 of rates", "log_likelihood": "log-likelihood per entry",
}  # fmt: skip
_SCORES = {*NAMES, "floor", "seconds", "memory_mib"}


def label(method: str) -> str:
    """Name of a method in tables and figures."""
    return LABELS.get(method, method.replace("_", " "))


def merged(documents: list[dict]) -> dict:
    """One document of several from the same machine; of a row that is in several, the last counts.

    Raises
    ------
    ValueError
        If versions or machines differ.
    """
    for name in ("versions", "machine", "cores", "threads_per_method"):
        if any(document[name] != documents[0][name] for document in documents):
            raise ValueError(f"the files of results differ in {name}; make a report of each")
    key = lambda row: tuple(row.get(name) for name in ("file", "protocol", "seed", "method"))  # noqa: E731
    rows = {key(row): row for document in documents for row in document["results"]}
    left_out = {key(row): row for document in documents for row in document.get("left_out", [])}
    at_a_time = " or ".join(map(str, sorted({document["methods_at_a_time"] for document in documents})))
    return {
        **documents[0],
        "methods_at_a_time": at_a_time,
        "results": list(rows.values()),
        "left_out": list(left_out.values()),
    }


def frame(document: dict) -> pd.DataFrame:
    """Rows of the methods that came to an end, in the order of the registry; one column per score."""
    rows = pd.DataFrame([row for row in document["results"] if "failed" not in row])
    if rows.empty:
        return pd.DataFrame(columns=["file", "protocol", "seed", "method", "seconds", "memory_mib", "spread"])
    rows["method"] = pd.Categorical(rows["method"], categories=list(METHODS), ordered=True)
    if "spread" not in rows:
        rows["spread"] = None
    for name in set(rows.columns) & _SCORES:
        rows[name] = pd.to_numeric(rows[name])  # null is NaN
    return rows.sort_values(["method", "seed"], kind="stable")


def by_file(rows: pd.DataFrame, protocol: str, score: str) -> pd.DataFrame:
    """A score of each method (rows) on each file, mean over seeds; methods failing on a file are NaN there."""
    part = rows[rows["protocol"] == protocol]
    if score not in part:
        return pd.DataFrame()
    return part.pivot_table(index="method", columns="file", values=score, observed=True, sort=False).sort_index()


def summary(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Scores of each method that came to an end on all files, mean over files and seeds."""
    part = rows[rows["protocol"] == protocol]
    names = [name for name in NAMES if name in part and part[name].notna().any()]
    means = part.groupby(["method", "file"], observed=True)[names].mean()
    n_files = means.groupby("method", observed=True).size()
    # a score that is missing on one file has no mean to compare with the others'
    averages = means.groupby("method", observed=True).agg(lambda values: values.mean(skipna=False))
    return averages[n_files == part["file"].nunique()]


def against_peers(rows: pd.DataFrame, protocol: str, score: str) -> pd.DataFrame:
    """LGDiST and the best peer on each file: a score, excess MSE or one that is best when high, with the peer's name."""
    table = by_file(rows, protocol, score)
    peers = table[table.index.isin(list(PEERS))].dropna(axis=1, how="all")
    if "lgdist" not in table.index or peers.empty:
        return pd.DataFrame()
    best = peers.idxmin() if score == "excess" else peers.idxmax()
    result = pd.DataFrame({"lgdist": table.loc["lgdist", peers.columns], "peer": best.astype(str)})
    result["best_peer"] = [peers.loc[peer, file] for file, peer in best.items()]
    return result.dropna()


def diffusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of samples by protocol and method, mean over the files and seeds that all of them have."""
    records = [
        {
            "protocol": row["protocol"],
            "method": row["method"],
            "task": (row["file"], row["seed"]),
            **_numbers(row["spread"]),
        }
        for _, row in rows.iterrows()
        if isinstance(row["spread"], dict)
    ]
    if not records:
        return pd.DataFrame()
    table = pd.DataFrame(records)
    n_methods = table.groupby("protocol")["method"].transform("nunique")
    shared = table.groupby(["protocol", "task"])["method"].transform("nunique") == n_methods
    return table[shared].groupby(["protocol", "method"], observed=True, sort=False).mean(numeric_only=True)


def _numbers(spread: dict) -> dict[str, float]:
    return {name: value for name, value in spread.items() if isinstance(value, int | float)}


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage and width of intervals, by protocol, method, file, level and stratum, and size of the deviation; mean over seeds."""
    records = [
        {
            "protocol": row["protocol"],
            "method": row["method"],
            "file": row["file"],
            "deviation_over_error": row["spread"].get("deviation_over_error", np.nan),
            **record,
        }
        for _, row in rows.iterrows()
        if isinstance(row["spread"], dict)
        for record in row["spread"]["coverage"]
    ]
    if not records:
        return pd.DataFrame()
    keys = ["protocol", "method", "file", "level", "stratum"]
    values = ["coverage", "width", "deviation_over_error"]
    return pd.DataFrame(records).groupby(keys, observed=True, sort=False)[values].mean().reset_index()


def cost(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds and peak memory (MiB) of each method."""
    by_method = rows.groupby("method", observed=True)
    return pd.DataFrame(
        {
            "seconds": by_method["seconds"].median(),
            "most_seconds": by_method["seconds"].max(),
            "memory_mib": by_method["memory_mib"].median(),
            "most_memory_mib": by_method["memory_mib"].max(),
        }
    )


# ---- Markdown


def _cell(value: float, best: bool = False, digits: int = 3) -> str:
    if pd.isna(value):
        return "–"
    text = f"{value:z.{digits}f}"
    if digits and abs(value) < 1:
        text = text.replace("0.", ".", 1)
    return f"**{text}**" if best else text


def markdown_table(
    table: pd.DataFrame, first: str = "", best: dict[str, str] | None = None, digits: dict[str, int] | None = None
) -> str:
    """Render a table; the best value of a column (``"min"`` or ``"max"``) is bold."""
    lines = [f"| {first} | " + " | ".join(map(str, table.columns)) + " |"]
    lines.append("|---|" + "---:|" * len(table.columns))
    digits = digits or {}
    winners = {}
    for column, rule in (best or {}).items():
        rounded = table[column].round(digits.get(column, 3))
        winners[column] = rounded == (rounded.min() if rule == "min" else rounded.max())
    for place, (name, row) in enumerate(table.iterrows()):
        cells = [
            value
            if isinstance(value, str)
            else _cell(value, column in winners and bool(winners[column].iloc[place]), digits.get(column, 3))
            for column, value in row.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(index=label, columns=lambda name: FILES.get(name, name))


def protocol_section(rows: pd.DataFrame, protocol: str) -> str:
    """Tables of one protocol."""
    thinning = protocol in GIVEN
    if thinning:
        tables = {"d2": "D2, higher is better", "variance_explained": "R2 of rates, higher is better"}
    else:
        tables = {"mse": "MSE, lower is better"}
    parts = []
    for score, title in tables.items():
        table = _named(by_file(rows, protocol, score))
        if len(table):
            parts.append(markdown_table(table, title, dict.fromkeys(table.columns, "max" if thinning else "min")))
    if not thinning:
        floor = by_file(rows, protocol, "floor").mean()
        parts[0] += "\n| *Poisson floor* | " + " | ".join(f"*{_cell(value)}*" for value in floor) + " |"
    means = summary(rows, protocol).rename(index=label, columns=NAMES)
    rules = {name: "min" if name in ("MSE", "excess MSE", "MAE") else "max" for name in means.columns}
    if len(means):
        parts.append("Means over the slides, of the methods that came to an end on all of them:")
        parts.append(markdown_table(means, "", rules, {"log-likelihood per entry": 4}))
    parts.append(verdict(rows, protocol))
    return "\n\n".join([f"### {TITLES[protocol]}", *filter(None, parts)]) + "\n"


def verdict(rows: pd.DataFrame, protocol: str) -> str:
    """Say how LGDiST compares with the best peer of each file; nothing if it or they are not there."""
    if protocol not in GIVEN:
        found = against_peers(rows, protocol, "excess")
        return _ratio(found, "the excess MSE of the best peer of each slide") if len(found) else ""
    found = against_peers(rows, protocol, "d2")
    if not len(found):
        return ""
    gain = found["lgdist"] - found["best_peer"]
    least = gain.idxmin()
    text = (
        f"Against the best peer of each slide, LGDiST explains {gain.mean():+.3f} of the deviance on average; it is ahead on "
        f"{int((gain > 0).sum())} of {len(found)}. Least gain: {gain.min():+.3f} on {FILES.get(least, least)} "
        f"(against {label(found.loc[least, 'peer'])})."
    )
    found = against_peers(rows, protocol, "variance_explained")
    if len(found):
        found[["lgdist", "best_peer"]] = 1 - found[["lgdist", "best_peer"]]
        text += " Of the variance of rates, " + _ratio(found, "what the best peer of each slide leaves unexplained")
    return text


def _ratio(found: pd.DataFrame, what: str) -> str:
    """Say how many times of what the best peer leaves, the less the better, LGDiST leaves."""
    ratio = found["lgdist"] / found["best_peer"]
    worst = ratio.idxmax()
    mean = float(np.exp(np.log(ratio[ratio > 0]).mean())) if (ratio > 0).any() else float("nan")
    return (
        f"LGDiST leaves {mean:.2f} times {what} (geometric mean); it is ahead on {int((ratio < 1).sum())} of {len(found)}. "
        f"Worst: {ratio.max():.2f} times on {FILES.get(worst, worst)} (against {label(found.loc[worst, 'peer'])})."
    )


def spread_section(rows: pd.DataFrame) -> str:
    """What the diffusion adds, and the coverage of intervals."""
    parts = []
    table = diffusion(rows)
    if len(table):
        table = table.reset_index()
        names = {
            "crps": "CRPS", "energy": "energy score", "energy_modules": "energy score of modules",
            "variance_sample": "variance ratio of a sample", "variance_sample_within": "genes within 0.8–1.25",
            "variance_mean": "variance ratio of the mean",
        }  # fmt: skip
        shown = table.reindex(columns=list(names)).rename(columns=names)
        shown.index = [f"{TITLES[p]}: {label(m)}" for p, m in zip(table["protocol"], table["method"], strict=True)]
        parts.append("### Samples\n\n" + markdown_table(shown, "", digits=dict.fromkeys(("CRPS", "energy score"), 4)))
    table = coverage(rows)
    table = table[table["method"] == "lgdist"] if len(table) else table
    if len(table):
        wide = table.pivot_table(
            index=["protocol", "file"], columns=["level", "stratum"], values="coverage", observed=True, sort=False
        )
        shown = pd.DataFrame(
            {
                f"{level:.0%}": wide[level].apply(_of_strata, axis=1)
                for level in wide.columns.get_level_values(0).unique()
            }
        )
        overall = table[(table["stratum"] == "all") & (table["level"] == 0.9)].set_index(["protocol", "file"])
        shown["width, 90%"] = overall["width"]
        shown["deviation / error"] = overall["deviation_over_error"]
        shown.index = [f"{TITLES[p]}: {FILES.get(file, file)}" for p, file in shown.index]
        parts.append(
            "### Coverage of intervals, and size of the standard deviation\n\nOver all scored genes, and in brackets over each "
            "third of them, from low to high expression. Last: standard deviation of the expected value over its error, roots "
            "of mean squares, without the noise of what it is compared with:\n\n" + markdown_table(shown)
        )
    return "\n\n".join(parts)


def _of_strata(values: pd.Series) -> str:
    """Coverage over all genes, and in thirds."""
    return f"{_cell(values['all'])} ({', '.join(_cell(values[third]) for third in ('low', 'middle', 'high'))})"


def cost_section(rows: pd.DataFrame) -> str:
    """Time and memory."""
    table = cost(rows).rename(index=label)
    table[["memory_mib", "most_memory_mib"]] /= 1024
    table.columns = ["seconds, median", "seconds, most", "peak memory in GiB, median", "most"]
    digits = dict(zip(table.columns, (0, 0, 2, 2), strict=True))
    return "### Time and memory\n\n" + markdown_table(table, "", digits=digits)


def provenance(document: dict) -> str:
    """What the results were obtained with, what was left out, and what failed."""
    rows = document["results"]
    dates = sorted({row["date"] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    used = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "no date"
    text = (
        f"{days}; seeds {', '.join(map(str, seeds))}; {document['machine']}, {document['cores']} cores, "
        f"methods at a time: {document['methods_at_a_time']}, threads of each: {document['threads_per_method']}; {used}."
    )
    if document.get("left_out"):
        lines = [
            f"- {FILES.get(r['file'], r['file'])}, {TITLES[r['protocol']]}: {r['reason']}" for r in document["left_out"]
        ]
        text += "\n\nLeft out by the rule of size:\n\n" + "\n".join(lines)
    failed = [row for row in rows if "failed" in row]
    if failed:
        lines = [
            f"- {label(r['method'])}, {FILES.get(r['file'], r['file'])}, {TITLES[r['protocol']]}, seed {r['seed']}: {r['failed']}"
            for r in failed
        ]
        text += "\n\nFailed:\n\n" + "\n".join(lines)
    return text


def markdown(document: dict, figures: dict[str, str] | None = None) -> str:
    """All tables of a file of results.

    Parameters
    ----------
    figures
        Paths of the figures by name (``"scores"``, ``"coverage"``, ``"cost"``), as the page links them.
    """
    rows, figures = frame(document), figures or {}
    links = {
        "scores": "Scores of the methods that came to an end on all slides. Hold-outs: what a method leaves of the gene means' excess over the Poisson floor (0: nothing "
        "but sampling noise). Thinning: deviance explained. One dot per slide, the bar is their mean.",
        "coverage": "Coverage of prediction intervals on hidden entries against their level; mean over slides, the band from the "
        "lowest to the highest slide.",
        "cost": "Seconds per slide: median, and range over slides and protocols.",
    }
    pictures = {name: f"![{links[name]}]({path})\n\n*{links[name]}*" for name, path in figures.items()}
    parts = [provenance(document), pictures.get("scores", "")]
    parts += [protocol_section(rows, p) for p in PROTOCOLS if (rows["protocol"] == p).any()]
    parts += [spread_section(rows), pictures.get("coverage", ""), cost_section(rows), pictures.get("cost", "")]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def print_report(document: dict) -> None:
    """Print the tables."""
    print("\n" + markdown(document))


def write_page(page: Path, text: str) -> None:
    """Put the tables between the marks of a page, or make a page of them.

    Raises
    ------
    ValueError
        If the page is there and has no marks.
    """
    if not page.exists():
        page.write_text(f"# Benchmarks\n\n{BEGIN}\n\n{text}\n{END}\n")
        return
    old = page.read_text()
    if BEGIN not in old or END not in old.split(BEGIN, 1)[1]:
        raise ValueError(f"{page} has no marks {BEGIN!r} and {END!r} to write between")
    before, rest = old.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END, 1)[1]}")


def main(argv: list[str] | None = None) -> None:
    from benchmarks._figures import draw

    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="files of results; of a row in several, the last counts")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs" / "benchmarks.md", help="default: %(default)s")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    arguments = parser.parse_args(argv)
    try:
        document = merged([read(path) for path in arguments.results])
    except ValueError as error:
        parser.error(str(error))
    if arguments.print:
        print_report(document)
        return
    folder = arguments.page.parent / "_static" / "benchmarks"
    paths = draw(document, folder)
    links = {name: path.relative_to(arguments.page.parent).as_posix() for name, path in paths.items()}
    write_page(arguments.page, markdown(document, links))
    print(f"Wrote {arguments.page} and {len(paths)} figures in {folder}")


if __name__ == "__main__":
    main()
