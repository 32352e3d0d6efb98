"""What completion does to analyses of whole slides, and what it finds where there is nothing."""

from __future__ import annotations

import argparse

from benchmarks._protocols import read
from benchmarks._shared import add_data, quiet, slides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    files = ["human_dlpfc_151673", "human_dlpfc_151675"]
    parser.add_argument("--files", nargs="+", default=files, help="names without .h5ad")
    parser.add_argument(
        "--labels", default="layer_manual", help="column of obs with tissue domains; left out if absent"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the models; each is clustered 5 times")
    parser.add_argument("--controls", action="store_true", help="negative controls as well: two more trainings")
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")


def main(arguments: argparse.Namespace) -> None:
    import scvi

    from lgdist_scvi import LGDiST, metrics

    paths = slides(arguments)
    quiet()
    for name, path in paths.items():
        adata, sample_key = read(path)
        labels_key = arguments.labels if arguments.labels in adata.obs else None
        for seed in arguments.seeds:
            scvi.settings.seed = seed
            LGDiST.setup_anndata(adata, sample_key=sample_key)
            model = LGDiST(adata, seed=seed)
            model.train(max_epochs=arguments.epochs, enable_progress_bar=False)
            model.complete(level=None, silent=True)
            tables = {"": metrics.do_no_harm(adata, labels_key=labels_key)}
            if arguments.controls:
                tables[", negative controls"] = metrics.negative_controls(model, seed=seed)
            for title, table in tables.items():
                print(f"\n{name}, seed {seed}{title}\n{table.round(3).to_string()}", flush=True)
