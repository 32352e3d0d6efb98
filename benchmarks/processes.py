"""Score training with two processes against training with one: half of the molecules given, the other half predicted."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks._methods import Method
from benchmarks._results import REPOSITORY, RESULTS, Results, code_digest, machine
from benchmarks._shared import add_data, quiet, slides

PROTOCOL = "processes"
# number of processes, and spots that each takes in a step
METHODS = {"one": (1, 128), "two": (2, 128), "two, half a batch each": (2, 64)}
_LOOPBACK = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument(
        "--files", nargs="+", default=["human_breast_visium_subset"], help="names without .h5ad; default: %(default)s"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")


def main(arguments: argparse.Namespace) -> None:
    results = Results(arguments.output, arguments.again, digest)
    for name, path in slides(arguments).items():
        if arguments.epochs is not None:
            name += f", epochs {arguments.epochs}"
        for seed in arguments.seeds:
            for method in arguments.methods:
                if results.has(name, PROTOCOL, seed, method):
                    continue
                row = {"file": name, "protocol": PROTOCOL, "seed": seed, "method": method, "code": digest(method)}
                row |= {
                    "date": date.today().isoformat(),
                    "machine": machine(),
                    "threads": 1,
                    "workers": METHODS[method][0],
                }
                results.add({**row, **run(path, method, seed, arguments.epochs)})
        print(table(results.rows[results.rows["file"] == name]).to_string(), flush=True)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """D2 of each seed, their mean, and seconds of training, by method."""
    rows = rows[(rows["protocol"] == PROTOCOL) & rows["failed"].isna()]
    scores = rows.pivot(index="method", columns="seed", values="d2")
    return scores.assign(mean=scores.mean(axis=1), seconds=rows.groupby("method")["seconds"].mean()).round(4)


def run(path: Path, method: str, seed: int, epochs: int | None) -> dict:
    """One training in processes of its own: what a row says, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        answer = Path(folder, "answer.json")
        call = [
            sys.executable,
            "-m",
            "benchmarks.processes",
            str(path),
            method,
            str(seed),
            str(epochs or 0),
            str(answer),
        ]
        environment = {**os.environ, **_LOOPBACK}
        done = subprocess.run(call, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode or not answer.exists():
            return {"failed": " ".join(done.stderr.split())[-400:] or f"ended with {done.returncode}"}
        return json.loads(answer.read_text())


def measure(path: str, method: str, seed: str, epochs: str, answer: str) -> None:
    """Train in this process, or together with others that run the same; the first one writes the answer."""
    quiet()
    import torch

    from benchmarks._methods import trained
    from benchmarks._protocols import read, task
    from benchmarks.scale import timed

    torch.set_num_threads(1)
    (n_processes, batch_size), models = METHODS[method], []
    given = task(*read(Path(path)), "thinning", int(seed))
    how = {"batch_size": batch_size, "max_epochs": int(epochs) or None, "accelerator": "cpu"}
    if n_processes > 1:
        how |= {"devices": n_processes, "strategy": "ddp"}
    seconds = timed(lambda: models.append(trained(given, int(seed), train_kwargs=how)))
    (model,) = models
    if model.trainer.is_global_zero:
        prediction = model.get_completed_expression(observed="model", estimand="rate", return_numpy=True)
        row = {"hidden": given.fingerprint, "n_spots": given.adata.n_obs, "n_genes": given.adata.n_vars}
        row |= {**seconds, "d2": given.score(prediction)["d2"]}
        Path(answer).write_text(json.dumps(row))


digest = partial(
    code_digest,
    methods=dict.fromkeys(METHODS, Method(measure)),
    shared=("benchmarks/processes.py", "benchmarks/_protocols.py", "src/lgdist_scvi/**/*.py"),
)


if __name__ == "__main__":
    measure(*sys.argv[1:])
