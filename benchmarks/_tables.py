"""What a file of results says: scores of methods by slide, samples, coverage, cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks._methods import ABLATIONS, METHODS, MODELS, PEERS

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
    """One document of several; of a row that is in several, the last counts. Rows tell of their machine.

    Raises
    ------
    ValueError
        If versions, cores or threads differ.
    """
    for name in ("versions", "cores", "threads_per_method"):
        if any(document[name] != documents[0][name] for document in documents):
            raise ValueError(f"the files of results differ in {name}; make a report of each")
    key = lambda row: tuple(row.get(name) for name in ("file", "protocol", "seed", "method"))  # noqa: E731
    rows = {key(row): row for document in documents for row in with_machine(document)}
    left_out = {key(row): row for document in documents for row in document.get("left_out", [])}
    at_a_time = " or ".join(map(str, sorted({document["methods_at_a_time"] for document in documents})))
    return {
        **documents[0],
        "methods_at_a_time": at_a_time,
        "results": list(rows.values()),
        "left_out": list(left_out.values()),
    }


def with_machine(document: dict) -> list[dict]:
    """Rows with the machine that they were obtained on: that of the document, unless they say otherwise."""
    return [{"machine": document["machine"], **row} for row in document["results"]]


def frame(document: dict) -> pd.DataFrame:
    """Rows of the methods that came to an end, in the order of the registry; one column per score."""
    rows = pd.DataFrame([row for row in with_machine(document) if "failed" not in row])
    if rows.empty:
        return pd.DataFrame(
            columns=["file", "protocol", "seed", "method", "seconds", "memory_mib", "machine", "spread"]
        )
    rows["method"] = pd.Categorical(rows["method"], categories=list(METHODS), ordered=True)
    if "spread" not in rows:
        rows["spread"] = None
    for name in set(rows.columns) & _SCORES:
        rows[name] = pd.to_numeric(rows[name])  # null is NaN
    return rows.sort_values(["method", "seed"], kind="stable")


def without_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of all methods but LGDiST without its parts."""
    return rows[~rows["method"].isin(list(ABLATIONS))]


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


def samples(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of samples of LGDiST and its VAE by protocol and method, mean over the files and seeds that both have."""
    records = [
        {
            "protocol": row["protocol"],
            "method": row["method"],
            "task": (row["file"], row["seed"]),
            **_numbers(row["spread"]),
        }
        for _, row in rows.iterrows()
        if isinstance(row["spread"], dict) and row["method"] in MODELS
    ]
    if not records:
        return pd.DataFrame()
    table = pd.DataFrame(records)
    n_methods = table.groupby("protocol")["method"].transform("nunique")
    shared = table.groupby(["protocol", "task"])["method"].transform("nunique") == n_methods
    means = table[shared].groupby(["protocol", "method"], observed=True, sort=False).mean(numeric_only=True)
    order = [(protocol, method) for protocol in TITLES for method in MODELS]
    return means.reindex([key for key in order if key in means.index])


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
    """Seconds and peak memory (MiB) of each method, and on which machines."""
    by_method = rows.groupby("method", observed=True)
    return pd.DataFrame(
        {
            "seconds": by_method["seconds"].median(),
            "most_seconds": by_method["seconds"].max(),
            "memory_mib": by_method["memory_mib"].median(),
            "most_memory_mib": by_method["memory_mib"].max(),
            "machine": by_method["machine"].agg(lambda machines: "; ".join(sorted(set(machines)))),
        }
    )
