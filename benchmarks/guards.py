"""What completion does to analyses of whole slides, and what it finds where there is nothing: ``python -m benchmarks.guards``."""

from __future__ import annotations

import time

from benchmarks._commands import parse, quiet, with_slides
from benchmarks._protocols import read

FILES = ("human_dlpfc_151673", "human_dlpfc_151675")


def main(argv: list[str] | None = None) -> None:
    parser = with_slides("benchmarks.guards", __doc__)
    parser.add_argument("--files", nargs="+", default=list(FILES), help="file names without .h5ad")
    parser.add_argument(
        "--labels", default="layer_manual", help="column of obs with tissue domains; left out if absent"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the models; each is clustered 5 times")
    parser.add_argument("--controls", action="store_true", help="negative controls as well: two more trainings")
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")
    arguments = parse(parser, argv)

    import scvi

    from lgdist_scvi import LGDiST, metrics

    quiet()
    for name in arguments.files:
        adata, sample_key = read(arguments.data / f"{name}.h5ad")
        labels_key = arguments.labels if arguments.labels in adata.obs else None
        for seed in arguments.seeds:
            start = time.perf_counter()
            scvi.settings.seed = seed
            LGDiST.setup_anndata(adata, sample_key=sample_key)
            model = LGDiST(adata, seed=seed)
            model.train(max_epochs=arguments.epochs, enable_progress_bar=False)
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
