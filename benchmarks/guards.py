"""What completion does to analyses of whole slides, and what it finds where there is nothing: ``python -m benchmarks.guards``."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

from benchmarks._protocols import read

FILES = ("human_dlpfc_151673", "human_dlpfc_151675")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.guards", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of .h5ad files")
    parser.add_argument("--files", nargs="+", default=list(FILES), help="file names without .h5ad")
    parser.add_argument(
        "--labels", default="layer_manual", help="column of obs with tissue domains; left out if absent"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the models; each is clustered 5 times")
    parser.add_argument("--controls", action="store_true", help="negative controls as well: two more trainings")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is not a folder; name the folder of .h5ad files with --data")

    import scvi

    from lgdist_scvi import LGDiST, metrics

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for name in arguments.files:
        adata, sample_key = read(arguments.data / f"{name}.h5ad")
        labels_key = arguments.labels if arguments.labels in adata.obs else None
        for seed in arguments.seeds:
            start = time.perf_counter()
            scvi.settings.seed = seed
            LGDiST.setup_anndata(adata, sample_key=sample_key)
            model = LGDiST(adata, seed=seed)
            model.train(enable_progress_bar=False)
            model.complete(level=None, silent=True)
            table = metrics.do_no_harm(adata, labels_key=labels_key)
            print(f"\n{name}, seed {seed} ({time.perf_counter() - start:.0f} s)")
            print(table.round(3).to_string(), flush=True)
            if arguments.controls:
                start = time.perf_counter()
                table = metrics.negative_controls(model, seed=seed)
                print(f"\nnegative controls ({time.perf_counter() - start:.0f} s)")
                print(table.round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
