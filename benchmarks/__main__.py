"""Score methods on hidden data: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pandas as pd

FILES = ("human_dlpfc_151673", "mouse_muscle_Vis7B_5dpi", "human_breast_visium_subset", "her2st_A")
HEADLINE = {"entry": "mse", "spot": "mse", "block": "mse", "thinning": "d2", "shallow": "d2"}


def main() -> None:
    from benchmarks._methods import METHODS
    from benchmarks._protocols import PROTOCOLS

    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of .h5ad files")
    parser.add_argument("--files", nargs="+", default=list(FILES), help="file names without .h5ad")
    parser.add_argument("--protocols", nargs="+", default=["entry", "thinning"], choices=PROTOCOLS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is not a folder; name the folder of .h5ad files with --data")
    rows = run(arguments)
    print_tables(rows)
    if arguments.output:
        write(rows, arguments.output)


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Run every method on every task, one after the other."""
    import scvi
    import torch

    from benchmarks._methods import METHODS
    from benchmarks._protocols import read, task

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rows = []
    for name in arguments.files:
        adata, sample_key = read(arguments.data / f"{name}.h5ad")
        for protocol in arguments.protocols:
            for seed in arguments.seeds:
                for method in arguments.methods:
                    given = task(adata, sample_key, protocol, seed)
                    start = time.perf_counter()
                    prediction = METHODS[method](given, seed)
                    seconds = time.perf_counter() - start
                    row = {"file": name, "protocol": protocol, "seed": seed, "method": method, "seconds": seconds}
                    rows.append({**row, **given.score(prediction)})
                    headline = HEADLINE[protocol]
                    print(
                        f"{name} {protocol} seed {seed} {method}: {headline} {rows[-1][headline]:.4f} ({seconds:.0f} s)",
                        flush=True,
                    )
    return pd.DataFrame(rows)


def print_tables(rows: pd.DataFrame) -> None:
    """Print the mean over seeds of each protocol's score."""
    for protocol, part in rows.groupby("protocol", sort=False):
        headline = HEADLINE[protocol]
        table = part.pivot_table(index="method", columns="file", values=headline, sort=False)
        if "floor" in part and part["floor"].notna().any():
            table.loc["Poisson floor"] = part.groupby("file")["floor"].mean()
        print(f"\n{protocol}: {headline}, mean over seeds {sorted(part['seed'].unique())}")
        print(table.to_string(float_format=lambda value: f"{value:.4f}"))


def write(rows: pd.DataFrame, path: Path) -> None:
    """Store results with what they were obtained with; an existing file is replaced at once."""
    packages = ("lgdist-scvi", "scvi-tools", "torch", "scanpy", "squidpy", "anndata", "scikit-learn")
    document = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {package: version(package) for package in packages},
        "results": json.loads(rows.to_json(orient="records")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1))
    partial.replace(path)


if __name__ == "__main__":
    main()
