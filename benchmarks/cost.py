"""Time and memory of LGDiST with default settings on a simulated slide: ``python -m benchmarks.cost``."""

from __future__ import annotations

import argparse
import logging
import resource
import time
import warnings


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.cost", description=__doc__)
    parser.add_argument("--spots", type=int, default=3639)
    parser.add_argument("--genes", type=int, default=1024)
    parser.add_argument("--epochs", type=int, help="epochs of each stage; default: the model's own")
    arguments = parser.parse_args()

    import scvi

    from lgdist_scvi import LGDiST, datasets

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    scvi.settings.seed = 0
    adata = datasets.simulated_visium(n_spots=arguments.spots, n_genes=arguments.genes)
    del adata.layers["rate"]  # dense, and not part of real data
    report("simulated", 0.0)
    with_time("setup", lambda: LGDiST.setup_anndata(adata))
    model = LGDiST(adata)
    with_time("train", lambda: model.train(max_epochs=arguments.epochs, enable_progress_bar=False))
    seconds = with_time("posterior mean", lambda: model.get_completed_expression(return_numpy=True))
    print(f"posterior mean: {arguments.spots / seconds:,.0f} spots per second")


def with_time(name: str, run) -> float:
    """Run, report, and give the seconds it took."""
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    report(name, seconds)
    return seconds


def report(name: str, seconds: float) -> None:
    """Print seconds and the peak memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {seconds:.1f} s, peak memory so far {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
