"""Show stored results: tables on the screen, or a page with figures."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from benchmarks import _tables
from benchmarks._methods import ABLATIONS
from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._results import RESULTS, read
from benchmarks._tables import LOW_IS_GOOD, SCORES, TITLES, by_file, label, slide

_DIGITS = {
    "log-likelihood per entry": 4, "CRPS": 4, "energy score": 4, "seconds, median": 0, "seconds, most": 0,
    "peak memory in GiB, median": 2, "most": 2,
}  # fmt: skip
_SAMPLES = {
    "crps": "CRPS", "energy": "energy score", "energy_modules": "energy score of modules",
    "variance_sample": "variance ratio of a sample", "variance_sample_within": "genes within 0.8–1.25",
    "variance_mean": "variance ratio of the mean",
}  # fmt: skip
ABOUT_SAMPLES = """A *sample* is one draw of the latent, decoded, plus measurement noise: a simulated second measurement. *VAE alone*
draws the latent from the VAE's Gaussian posterior, so that the difference between it and *LGDiST* is the diffusion. **CRPS** (each
entry) and **energy score** (all hidden genes of a spot together): lower is better; both punish samples that are off, too narrow or
too wide. **Energy score of modules**: the same on the ten leading principal axes of the hidden values, where the noise of single
genes averages out: it shows whether genes vary together in the samples as they do in the tissue. **Variance ratio**: variance over
spots, divided by that of the measured values; a correct sample has 1, a posterior mean less. Rows are means over the data sets that
all rows of a protocol share; rows of different protocols are not comparable."""
ABOUT_COVERAGE = """Share of hidden values inside their interval, over all scored genes and, in brackets, over the thirds with low,
middle and high expression. *Deviation / error*: root mean square of the standard deviation, divided by the root mean squared error of
the expected value, sampling noise removed from the latter; 1 is right, below 1 is over-confident."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="folder; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the tables; default: all, averaged")
    parser.add_argument("--output", type=Path, help="folder for the page and its figures, instead of printing")


def main(arguments: argparse.Namespace) -> None:
    try:
        rows = read(arguments.results)
    except ValueError as error:
        arguments.error(str(error))
    if rows.empty:
        arguments.error(f"{arguments.results} holds no results; python -m benchmarks run makes some")
    if _of(rows, arguments.seeds).empty:
        arguments.error(f"--seeds: {arguments.results} holds results of seeds {_listed(rows['seed'])} only")
    if arguments.output:
        print(f"Wrote {write(rows, arguments.output, arguments.seeds)}")
    else:
        print(markdown(rows, arguments.seeds))


def write(rows: pd.DataFrame, folder: Path, seeds: list[int] | None = None) -> Path:
    """Write a page of all tables, with figures, into a folder; its path."""
    from benchmarks._figures import CAPTIONS, draw

    folder.mkdir(parents=True, exist_ok=True)
    shown = _tables.without_variants(_tables.scored(_of(rows, seeds)))
    figures = {name: f"![{CAPTIONS[name]}]({path.name})" for name, path in draw(shown, folder).items()}
    page = folder / "benchmark_tables.md"
    page.write_text(f"# Benchmark tables\n\n{markdown(rows, seeds, figures)}\n")
    return page


def _of(rows: pd.DataFrame, seeds: list[int] | None) -> pd.DataFrame:
    rows = rows[rows["protocol"].isin(PROTOCOLS)]  # those of other commands have reports of their own
    return rows if seeds is None else rows[rows["seed"].isin(seeds)]


def markdown(rows: pd.DataFrame, seeds: list[int] | None = None, figures: dict[str, str] | None = None) -> str:
    """All tables: against the best peer of all seeds, everything else of some, averaged."""
    shown, figures = _of(rows, seeds), figures or {}
    scored = _tables.scored(shown)
    whole = _tables.without_variants(scored)
    parts = [provenance(shown), "## Against the best other method", headline(rows), figures.get("scores", "")]
    parts += [protocol_section(whole, p) for p in PROTOCOLS if (whole["protocol"] == p).any()]
    parts += [ablation_section(scored), spread_section(scored), figures.get("coverage", "")]
    if len(scored):
        parts += ["## Time and memory", markdown_table(_tables.cost(scored).rename(index=label))]
    return "\n\n".join(part for part in parts if part)


def headline(rows: pd.DataFrame) -> str:
    """LGDiST against the best peer, or the scores that there are if one of them is missing."""
    scored = _tables.scored(rows)
    table = _tables.headlines(_tables.without_variants(scored))
    names = {
        "excess": "ratio of excess MSE",
        "d2": "gain in D2",
        "variance_explained": "ratio of unexplained variance of rates",
    }
    parts = []
    if len(table):
        shown = pd.DataFrame({
            "score": table["score"].map(names),
            "seed": table["seed"].astype(str),
            "mean": [_headline_cell(row["value"], row["score"]) for _, row in table.iterrows()],
            "ahead on": table["ahead"].astype(str) + " of " + table["n"].astype(str),
            "worst": [_headline_cell(row["worst"], row["score"]) for _, row in table.iterrows()],
            "on": [f"{slide(row['on'])} (against {label(row['peer'])})" for _, row in table.iterrows()],
        })  # fmt: skip
        shown.index = table["protocol"].map(TITLES)
        parts.append(
            "Ratios are geometric means over the data sets, below 1 is better; gains are means.\n\n"
            + markdown_table(shown)
        )
    if scored["file"].nunique() == 1:  # few scores: show them
        scores = {TITLES[p]: by_file(scored, p, "d2" if p in GIVEN else "mse").squeeze("columns") for p in PROTOCOLS
                  if (scored["protocol"] == p).any()}  # fmt: skip
        scores = {f"{title}, {'D2' if title.startswith('Thin') else 'MSE'}": part for title, part in scores.items()}
        parts.append(markdown_table(pd.DataFrame(scores).rename(index=label), digits=4))
    return "\n\n".join(parts)


def _headline_cell(value: float, score: str) -> str:
    return f"{value:+.3f}" if score == "d2" else f"{value:.2f}"


def protocol_section(rows: pd.DataFrame, protocol: str) -> str:
    """Tables of one protocol."""
    parts = [f"## {TITLES[protocol]}"]
    for score in ("d2", "variance_explained") if protocol in GIVEN else ("mse",):
        table = by_file(rows, protocol, score).rename(index=label, columns=slide)
        good = "lower" if score in LOW_IS_GOOD else "higher"
        parts.append(markdown_table(table, f"{SCORES[score]}, {good} is better", best=True))
    if protocol not in GIVEN:
        floor = by_file(rows, protocol, "floor").mean()
        parts[-1] += "\n| *Poisson floor* | " + " | ".join(f"*{_cell(value)}*" for value in floor) + " |"
    means = _tables.summary(rows, protocol).rename(index=label, columns=SCORES)
    if len(means):
        parts.append("Means over data sets, for methods that have a result on all of them:")
        parts.append(markdown_table(means, best=True))
    return "\n\n".join(parts)


def ablation_section(rows: pd.DataFrame) -> str:
    """LGDiST beside itself without its parts, in the protocols and on the data sets where these were run."""
    parts = []
    for protocol in PROTOCOLS:
        table = by_file(rows, protocol, "d2" if protocol in GIVEN else "mse")
        without = table[table.index.isin(list(ABLATIONS))].dropna(axis=1, how="all")
        if len(without):
            table = table.loc[table.index.isin(["lgdist", *ABLATIONS]), without.columns]
            title = f"{TITLES[protocol]}: {'D2, higher' if protocol in GIVEN else 'MSE, lower'} is better"
            parts.append(markdown_table(table.rename(index=label, columns=slide), title, best=True))
    return "\n\n".join(["## LGDiST without its parts", *parts]) if parts else ""


def spread_section(rows: pd.DataFrame) -> str:
    """Scores of samples, coverage of intervals, and size of the standard deviation."""
    parts = []
    table = _tables.samples(rows)
    if len(table):
        shown = table.reindex(columns=list(_SAMPLES)).rename(columns=_SAMPLES)
        shown.index = [f"{TITLES[protocol]}: {label(method)}" for protocol, method in table.index]
        parts += ["## Samples", ABOUT_SAMPLES, markdown_table(shown)]
    table = _tables.coverage(rows)
    if len(table):
        off = _tables.off_level(table).rename(index=TITLES)
        ranges = off.apply(
            lambda column: column.map(lambda v: f"{_cell(v[0])}–{_cell(v[1])}" if isinstance(v, tuple) else v)
        )
        ranges.columns = [
            *ranges.columns[:4], "thirds short by > .02", "over by > .02", "of", "largest shortfall", "deviation / error",
        ]  # fmt: skip
        shown = pd.DataFrame({
            f"{level} %": [
                f"{_cell(row[f'coverage_{level}'])} "
                f"({', '.join(_cell(row[f'coverage_{level}_{third}']) for third in ('low', 'middle', 'high'))})"
                for _, row in table.iterrows()
            ]
            for level in (50, 80, 90, 95)
        }, index=[f"{TITLES[protocol]}: {slide(file)}" for protocol, file in table.index])  # fmt: skip
        shown["width, 90 %"] = table["width_90"].to_numpy()
        shown["deviation / error"] = table["deviation_over_error"].to_numpy()
        parts += ["## Coverage of intervals, and size of the standard deviation", ABOUT_COVERAGE]
        parts += ["From the lowest to the highest data set:", markdown_table(ranges), markdown_table(shown)]
    return "\n\n".join(parts)


def provenance(rows: pd.DataFrame) -> str:
    """What the results were obtained with, what was left out, and what failed."""
    done = rows[rows["failed"].isna()]
    lines = []
    if len(done):
        lines.append(
            f"Obtained {done['date'].min()} to {done['date'].max()}, seeds {_listed(done['seed'])}, on {_listed(done['machine'])}; "
            f"methods at a time: {_listed(done['workers'])}, threads of each: {_listed(done['threads'])}. "
            f"Versions: {_listed(done['versions'])} of `benchmarks/results/versions.csv`."
        )
    failed = rows[rows["failed"].notna()].drop_duplicates(["file", "protocol", "method", "failed"])
    lines += [
        f"- {slide(r['file'])}, {TITLES.get(r['protocol'], r['protocol'])}, {label(r['method'])}: {r['failed']}"
        for r in failed.to_dict("records")
    ]
    return "\n".join(lines[:1]) + ("\n\n" + "\n".join(lines[1:]) if len(lines) > 1 else "")


def _listed(column: pd.Series) -> str:
    return " and ".join(str(int(v)) if isinstance(v, float) else str(v) for v in sorted(column.dropna().unique()))


def _cell(value: float, best: bool = False, digits: int = 3) -> str:
    if pd.isna(value):
        return "–"
    text = f"{value:z.{digits}f}"
    if digits and abs(value) < 1:
        text = text.replace("0.", ".", 1)
    return f"**{text}**" if best else text


def markdown_table(table: pd.DataFrame, first: str = "", best: bool = False, digits: int = 3) -> str:
    """Render a table: integers and text as they are, other numbers with some digits; the best of a column is bold.

    By hand, since `DataFrame.to_markdown` needs tabulate, which is not installed with the package.
    """
    cells = {}
    low = {name for key, name in SCORES.items() if key in LOW_IS_GOOD}
    for name, column in table.items():
        if column.dtype.kind != "f":
            cells[name] = column.astype(str)
            continue
        rounded = column.round(_DIGITS.get(name, digits))
        least = name in low or any(first.startswith(f"{score},") for score in low) or ": MSE," in first
        winner = rounded == (rounded.min() if least else rounded.max())
        cells[name] = [
            _cell(v, best and bool(w), _DIGITS.get(name, digits)) for v, w in zip(column, winner, strict=True)
        ]
    marks = "".join("---|" if dtype.kind == "O" else "---:|" for dtype in table.dtypes)
    lines = [f"| {first} | " + " | ".join(map(str, table.columns)) + " |", f"|---|{marks}"]
    rows = zip(*cells.values(), strict=True)
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in zip(table.index, rows, strict=True)]
    return "\n".join(lines)
