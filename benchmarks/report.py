"""Tables and figures of a file of results: ``python -m benchmarks.report results.json``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._figures import draw
from benchmarks._methods import ABLATIONS
from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._record import REPOSITORY, read
from benchmarks._tables import (
    FILES,
    NAMES,
    TITLES,
    against_peers,
    by_file,
    cost,
    coverage,
    frame,
    label,
    merged,
    samples,
    summary,
    with_machine,
    without_variants,
)

BEGIN, END = "<!-- begin: written by python -m benchmarks.report -->", "<!-- end -->"


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
        parts.append("Means over data sets, for methods that have a result on all of them:")
        parts.append(markdown_table(means, "", rules, {"log-likelihood per entry": 4}))
    parts.append(verdict(rows, protocol))
    return "\n\n".join([f"### {TITLES[protocol]}", *filter(None, parts)]) + "\n"


def verdict(rows: pd.DataFrame, protocol: str) -> str:
    """Say how LGDiST compares with the best peer of each file; nothing if it or they are not there."""
    if protocol not in GIVEN:
        found = against_peers(rows, protocol, "excess")
        return _ratio(found, "Excess MSE of LGDiST") if len(found) else ""
    found = against_peers(rows, protocol, "d2")
    if not len(found):
        return ""
    gain = found["lgdist"] - found["best_peer"]
    least = gain.idxmin()
    text = (
        f"Over the best other method on each data set, LGDiST gains {gain.mean():+.3f} D2 on average and is ahead on "
        f"{int((gain > 0).sum())} of {len(found)}. Smallest gain: {gain.min():+.3f} on {FILES.get(least, least)} "
        f"(against {label(found.loc[least, 'peer'])})."
    )
    found = against_peers(rows, protocol, "variance_explained")
    if len(found):
        found[["lgdist", "best_peer"]] = 1 - found[["lgdist", "best_peer"]]
        text += " " + _ratio(found, "Share of the variance of rates that LGDiST leaves unexplained")
    return text


def _ratio(found: pd.DataFrame, what: str) -> str:
    """Compare what LGDiST leaves with what the best other method leaves, the less the better."""
    ratio = found["lgdist"] / found["best_peer"]
    worst = ratio.idxmax()
    mean = float(np.exp(np.log(ratio[ratio > 0]).mean())) if (ratio > 0).any() else float("nan")
    return (
        f"{what}, divided by that of the best other method on each data set: {mean:.2f} (geometric mean; below 1 is better). "
        f"LGDiST is ahead on {int((ratio < 1).sum())} of {len(found)}. "
        f"Worst: {ratio.max():.2f} on {FILES.get(worst, worst)} (against {label(found.loc[worst, 'peer'])})."
    )


def ablation_section(rows: pd.DataFrame) -> str:
    """LGDiST beside itself without its parts, in the protocols and on the data sets where these were run."""
    parts = []
    for protocol in PROTOCOLS:
        table = by_file(rows, protocol, "d2" if protocol in GIVEN else "mse")
        without = table[table.index.isin(list(ABLATIONS))].dropna(axis=1, how="all")
        if not len(without):
            continue
        table = _named(table.loc[table.index.isin(["lgdist", *ABLATIONS]), without.columns])
        title = f"{TITLES[protocol]}: {'D2, higher' if protocol in GIVEN else 'MSE, lower'} is better"
        parts.append(markdown_table(table, title, dict.fromkeys(table.columns, "max" if protocol in GIVEN else "min")))
    return "\n\n".join(["### LGDiST without its parts", *parts]) if parts else ""


def spread_section(rows: pd.DataFrame) -> str:
    """What the diffusion adds, and the coverage of intervals."""
    parts = []
    table = samples(rows)
    if len(table):
        table = table.reset_index()
        names = {
            "crps": "CRPS", "energy": "energy score", "energy_modules": "energy score of modules",
            "variance_sample": "variance ratio of a sample", "variance_sample_within": "genes within 0.8–1.25",
            "variance_mean": "variance ratio of the mean",
        }  # fmt: skip
        shown = table.reindex(columns=list(names)).rename(columns=names)
        shown.index = [f"{TITLES[p]}: {label(m)}" for p, m in zip(table["protocol"], table["method"], strict=True)]
        parts.append(
            "### Samples\n\nMeans over the data sets that all rows of a protocol share; rows of different protocols are not "
            "comparable.\n\n" + markdown_table(shown, "", digits=dict.fromkeys(("CRPS", "energy score"), 4))
        )
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
            "### Coverage of intervals, and size of the standard deviation\n\nShare of hidden values inside their interval, over "
            "all scored genes and, in brackets, over the thirds with low, middle and high expression. *Deviation / error*: root "
            "mean square of the standard deviation, divided by the root mean squared error of the expected value, sampling noise "
            "removed from the latter; 1 is right, below 1 is over-confident.\n\n" + markdown_table(shown)
        )
    return "\n\n".join(parts)


def _of_strata(values: pd.Series) -> str:
    """Coverage over all genes, and in thirds."""
    return f"{_cell(values['all'])} ({', '.join(_cell(values[third]) for third in ('low', 'middle', 'high'))})"


def cost_section(rows: pd.DataFrame) -> str:
    """Time and memory."""
    table = cost(rows).rename(index=label)
    table[["memory_mib", "most_memory_mib"]] /= 1024
    table.columns = ["seconds, median", "seconds, most", "peak memory in GiB, median", "most", "on"]
    if table["on"].nunique() == 1:
        table = table.drop(columns="on")
    digits = dict(zip(table.columns, (0, 0, 2, 2), strict=False))
    return "### Time and memory\n\n" + markdown_table(table, "", digits=digits)


def provenance(document: dict) -> str:
    """What the results were obtained with, what was left out, and what failed."""
    rows = document["results"]
    dates = sorted({row["date"] for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    used = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    machines = " and ".join(sorted({row["machine"] for row in with_machine(document)} or {document["machine"]}))
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "no date"
    text = (
        f"{days}; seeds {', '.join(map(str, seeds))}; {machines}, {document['cores']} cores, "
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
        "scores": "Scores of the methods that have a result on all data sets. Hold-outs: excess MSE as a fraction of the gene "
        "mean's (0: only sampling noise is left). Thinning: deviance explained. One dot per data set, the bar is their mean.",
        "coverage": "Coverage of prediction intervals on hidden entries against their level: mean over data sets, and the band "
        "from the lowest to the highest.",
        "cost": "Seconds per data set: median, and range over data sets and protocols.",
    }
    pictures = {name: f"![{links[name]}]({path})\n\n*{links[name]}*" for name, path in figures.items()}
    parts = [provenance(document), pictures.get("scores", "")]
    whole = without_variants(rows)
    parts += [protocol_section(whole, p) for p in PROTOCOLS if (whole["protocol"] == p).any()]
    parts.append(ablation_section(rows))
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
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="files of results; of a row in several, the last counts")
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / "docs" / "benchmark_tables.md", help="default: %(default)s"
    )
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
