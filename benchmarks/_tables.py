"""What stored results say: scores by slide, against the best peer, of samples and intervals, cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks._methods import ABLATIONS, METHODS, MODELS, PEERS
from benchmarks._protocols import GIVEN, PROTOCOLS
from benchmarks._spread import LEVELS, THIRDS

TITLES = {
    "entry": "Entry hold-out",
    "spot": "Hidden spots",
    "block": "Hidden blocks",
    "thinning": "Thinning, half of the molecules given",
    "shallow": "Thinning, a tenth of the molecules given",
}
_LABELS = {
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
_FILES = {
    "human_dlpfc_151673": "cortex 151673",
    "human_dlpfc_151675": "cortex 151675",
    "mouse_muscle_Vis7B_5dpi": "muscle",
    "human_breast_visium_subset": "breast",
    "mouse_hippocampus_slideseqv2_subset": "hippocampus",
    "mouse_embryo_cytassist": "embryo",
    "her2st_A": "HER2ST A",
    "her2st_C": "HER2ST C",
}
SCORES = {
    "mse": "MSE", "excess": "excess MSE", "mae": "MAE", "pcc_gene": "PCC per gene", "pcc_spot": "PCC per spot",
    "d2": "D2", "variance_explained": "R2 of rates", "log_likelihood": "log-likelihood per entry",
}  # fmt: skip
LOW_IS_GOOD = ("mse", "excess", "mae")


def label(method: str) -> str:
    """Name of a method in tables and figures."""
    return _LABELS.get(method, method.replace("_", " "))


def slide(file: str) -> str:
    """Name of a slide in tables and figures."""
    return _FILES.get(file, file)


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the methods that came to an end, in the order of the registry."""
    rows = rows[rows["failed"].isna() & rows["protocol"].isin(PROTOCOLS) & rows["method"].isin(list(METHODS))].copy()
    rows["method"] = pd.Categorical(rows["method"], categories=list(METHODS), ordered=True)
    if {"mse", "floor"} <= set(rows):
        rows["excess"] = rows["mse"] - rows["floor"]
    return rows.sort_values(["method", "file", "seed"], kind="stable")


def without_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of all methods but LGDiST without its parts."""
    return rows[~rows["method"].isin(list(ABLATIONS))]


def by_file(rows: pd.DataFrame, protocol: str, score: str) -> pd.DataFrame:
    """A score of each method (rows) on each file, mean over seeds; methods failing on a file are NaN there."""
    part = rows[rows["protocol"] == protocol]
    if score not in part:
        return pd.DataFrame()
    return part.pivot_table(index="method", columns="file", values=score, observed=True).sort_index()


def summary(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Scores of each method that came to an end on all files, mean over files and seeds."""
    part = rows[rows["protocol"] == protocol]
    names = [name for name in SCORES if name in part and part[name].notna().any()]
    means = part.groupby(["method", "file"], observed=True)[names].mean()
    n_files = means.groupby("method", observed=True).size()
    # a score that is missing on one file has no mean to compare with the others'
    averages = means.groupby("method", observed=True).agg(lambda values: values.mean(skipna=False))
    return averages[n_files == part["file"].nunique()]


def against_peers(rows: pd.DataFrame, protocol: str, score: str) -> pd.DataFrame:
    """LGDiST and the best peer on each file, by one score, with the peer's name."""
    table = by_file(rows, protocol, score)
    peers = table[table.index.isin(list(PEERS))].dropna(axis=1, how="all")
    if "lgdist" not in table.index or peers.empty:
        return pd.DataFrame()
    low = score in LOW_IS_GOOD
    best = peers.idxmin() if low else peers.idxmax()
    result = pd.DataFrame({"lgdist": table.loc["lgdist", peers.columns], "peer": best.astype(str)})
    result["best_peer"] = peers.min() if low else peers.max()
    return result.dropna()


def headlines(rows: pd.DataFrame) -> pd.DataFrame:
    """LGDiST against the best peer on each data set, in every protocol and with every seed.

    One row per protocol, score and seed: ``value`` is the geometric mean of the ratio of what is left (excess MSE, or 1 - R2 of
    rates), or the mean gain in D2; ``worst`` the least good of it, on the slide ``on``, against ``peer``.
    """
    records = []
    for protocol in PROTOCOLS:
        for seed, part in rows[rows["protocol"] == protocol].groupby("seed"):
            for score in ("d2", "variance_explained") if protocol in GIVEN else ("excess",):
                found = against_peers(part, protocol, score)
                if found.empty:
                    continue
                if score == "d2":
                    value = found["lgdist"] - found["best_peer"]
                    mean, worst, ahead = value.mean(), value.idxmin(), value > 0
                else:
                    left = found[["lgdist", "best_peer"]]
                    left = 1 - left if score == "variance_explained" else left
                    value = left["lgdist"] / left["best_peer"]
                    mean, worst, ahead = np.exp(np.log(value[value > 0]).mean()), value.idxmax(), value < 1
                records.append({
                    "protocol": protocol, "score": score, "seed": int(seed), "value": float(mean), "ahead": int(ahead.sum()),
                    "n": len(value), "worst": float(value[worst]), "on": worst, "peer": found.loc[worst, "peer"],
                })  # fmt: skip
    return pd.DataFrame(records)


def samples(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of samples of LGDiST and its VAE by protocol and method, mean over the files and seeds that both have."""
    if "crps" not in rows:
        return pd.DataFrame()
    table = rows[rows["method"].isin(list(MODELS)) & rows["crps"].notna()]
    n_methods = table.groupby("protocol")["method"].transform("nunique")
    shared = table.groupby(["protocol", "file", "seed"])["method"].transform("nunique") == n_methods
    means = table[shared].groupby(["protocol", "method"], observed=True).mean(numeric_only=True)
    return means.reindex([key for protocol in PROTOCOLS for key in means.index if key[0] == protocol])


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage and width of intervals of LGDiST, and size of the standard deviation, by protocol and file; mean over seeds."""
    if "deviation_over_error" not in rows:
        return pd.DataFrame()
    part = rows[(rows["method"] == "lgdist") & rows["deviation_over_error"].notna()]
    means = part.groupby(["protocol", "file"]).mean(numeric_only=True)
    means = means[[name for name in means if name.startswith(("coverage_", "width_", "deviation"))]]
    return means.reindex([key for protocol in PROTOCOLS for key in means.index if key[0] == protocol])


def off_level(table: pd.DataFrame, tolerance: float = 0.02) -> pd.DataFrame:
    """How far coverage, as :func:`coverage` gives it, is from its level: one row per protocol.

    ``short`` and ``over`` count the thirds of genes and levels, over all data sets, that are off by more than the tolerance, of
    ``n``; ``lowest`` is the largest shortfall of a third.
    """
    records = {}
    for protocol, part in table.groupby("protocol", sort=False):
        record = {}
        for level in LEVELS:
            whole = part[f"coverage_{_percent(level)}"]
            record[f"{_percent(level)} %"] = (whole.min(), whole.max())
        off = pd.concat([part[f"coverage_{_percent(q)}_{t}"] - q for q in LEVELS for t in THIRDS])
        record |= {"short": int((off < -tolerance).sum()), "over": int((off > tolerance).sum()), "n": len(off)}
        deviation = part["deviation_over_error"]
        record |= {"lowest": -float(off.min()), "deviation": (deviation.min(), deviation.max())}
        records[protocol] = record
    return pd.DataFrame.from_dict(records, orient="index")


def _percent(level: float) -> str:
    return f"{100 * level:.0f}"


def cost(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds and peak memory (GiB) of each method, when its rows were obtained and on which machines."""
    by_method = rows.groupby("method", observed=True)
    return pd.DataFrame(
        {
            "seconds, median": by_method["seconds"].median(),
            "seconds, most": by_method["seconds"].max(),
            "peak memory in GiB, median": by_method["memory_mib"].median() / 1024,
            "most": by_method["memory_mib"].max() / 1024,
            "dates": by_method["date"].agg(lambda dates: " to ".join(dict.fromkeys([min(dates), max(dates)]))),
            "machines": by_method["machine"].agg(lambda machines: "; ".join(sorted(set(machines)))),
        }
    )
