"""Score samples from few and from many evaluations of the denoiser on hidden values."""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from benchmarks._protocols import PROTOCOLS, read, task
from benchmarks._shared import add_data, quiet, slides

_MAX_SPOTS = 200  # many evaluations of many samples take long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--files", nargs="+", default=["mouse_muscle_Vis7B_5dpi"], help="names without .h5ad")
    parser.add_argument("--protocols", nargs="+", default=["entry", "spot"], choices=PROTOCOLS)
    parser.add_argument("--steps", nargs="+", type=int, default=[3, 5, 10, 20, 50, 250], help="numbers of evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")


def main(arguments: argparse.Namespace) -> None:
    from benchmarks._methods import trained
    from benchmarks._spread import draw
    from lgdist_scvi import metrics

    paths, seed = slides(arguments), arguments.seed
    quiet()
    for name, path in paths.items():
        for protocol in arguments.protocols:
            given = task(*read(path), protocol, seed)
            model = trained(given, seed, train_kwargs={"max_epochs": arguments.epochs})
            spots, genes = np.flatnonzero(given.scored.any(axis=1)), np.flatnonzero(given.scored.any(axis=0))
            spots = np.sort(np.random.default_rng(seed).permutation(spots)[:_MAX_SPOTS])
            truth, scored = given.measured[np.ix_(spots, genes)], given.scored[np.ix_(spots, genes)]
            rows = {}
            for n_steps in arguments.steps:
                start = time.perf_counter()
                latents, samples = draw(model, given, spots, genes, seed, n_steps)
                rows[n_steps] = {
                    "mse_of_a_sample": metrics.completion_scores(truth, latents[0], scored)["mse"],
                    "energy": metrics.energy_score(samples, truth, scored),
                    "energy_latent": metrics.energy_score(latents, truth, scored),
                    "seconds": time.perf_counter() - start,
                }
            table = pd.DataFrame(rows).T.rename_axis("evaluations")
            relative = (table / table.iloc[-1] - 1).drop(columns="seconds").add_suffix("_change")
            print(f"\n{name}, {protocol}, seed {seed}; change against {arguments.steps[-1]} evaluations")
            print(table.join(relative).round(4).to_string(), flush=True)
