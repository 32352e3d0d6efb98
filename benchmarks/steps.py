"""Samples from few and from many evaluations of the denoiser, scored on hidden values: ``python -m benchmarks.steps``."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from benchmarks._commands import parse, quiet, with_slides
from benchmarks._protocols import PROTOCOLS, read, task

_MAX_SPOTS = 200  # many evaluations of many samples take long


def main(argv: list[str] | None = None) -> None:
    parser = with_slides("benchmarks.steps", __doc__)
    parser.add_argument("--file", default="mouse_muscle_Vis7B_5dpi", help="file name without .h5ad")
    parser.add_argument("--protocols", nargs="+", default=["entry", "spot"], choices=PROTOCOLS)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 20, 50, 250], help="numbers of evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")
    arguments = parse(parser, argv)

    from benchmarks._methods import trained
    from benchmarks._spread import draw
    from lgdist_scvi import metrics

    quiet()
    adata, sample_key = read(arguments.data / f"{arguments.file}.h5ad")
    for protocol in arguments.protocols:
        given = task(adata, sample_key, protocol, arguments.seed)
        model = trained(given, arguments.seed, train_kwargs={"max_epochs": arguments.epochs})
        spots, genes = np.flatnonzero(given.scored.any(axis=1)), np.flatnonzero(given.scored.any(axis=0))
        spots = np.sort(np.random.default_rng(arguments.seed).permutation(spots)[:_MAX_SPOTS])
        truth, scored = given.measured[np.ix_(spots, genes)], given.scored[np.ix_(spots, genes)]
        rows = {}
        for n_steps in arguments.steps:
            start = time.perf_counter()
            latents, samples = draw(model, given, spots, genes, arguments.seed, n_steps)
            rows[n_steps] = {
                "mse_of_a_sample": metrics.completion_scores(truth, latents[0], scored)["mse"],
                "energy": metrics.energy_score(samples, truth, scored),
                "energy_latent": metrics.energy_score(latents, truth, scored),
                "seconds": time.perf_counter() - start,
            }
        table = pd.DataFrame(rows).T.rename_axis("evaluations")
        relative = (table / table.iloc[-1] - 1).drop(columns="seconds").add_suffix("_change")
        print(
            f"\n{arguments.file}, {protocol}, seed {arguments.seed}; change against {arguments.steps[-1]} evaluations"
        )
        print(table.join(relative).round(4).to_string(), flush=True)


if __name__ == "__main__":
    main()
