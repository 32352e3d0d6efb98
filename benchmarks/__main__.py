"""Score methods on hidden data: ``python -m benchmarks --help``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks._commands import parse, with_slides

RESULTS = Path(__file__).parent / "results"
# Below ten minutes on two cores. The masked transformer alone would take longer, and the VAE alone adds minutes.
QUICK = {
    "files": ["human_breast_visium_subset"],
    "protocols": ["entry", "thinning"],
    "seeds": [0],
    "methods": [
        "gene_mean", "neighbor_mean", "adaptive_median", "knn", "ridge", "pca", "poisson_nmf", "soft_impute",
        "scvi", "lgdist",
    ],
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    from benchmarks._methods import ABLATIONS, METHODS, MODELS, PEERS
    from benchmarks._protocols import PROTOCOLS
    from benchmarks._record import Results
    from benchmarks._run import run
    from benchmarks.report import print_report

    cores = os.cpu_count() or 1
    parser = with_slides("benchmarks", __doc__)
    parser.add_argument("--quick", action="store_true", help="one small slide, two protocols, one seed: minutes")
    parser.add_argument("--ablations", action="store_true", help="LGDiST without its parts, in the same table")
    parser.add_argument(
        "--files", nargs="+", help="names without .h5ad; default: all in the folder that are large enough"
    )
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all but the ablations")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1")
    parser.add_argument("--output", type=Path, help="file of results; default: benchmarks/results/{full,quick}.json")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, if nothing has changed")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of results")
    parser.add_argument(
        "--workers", type=int, default=min(cores, 4), help="methods run at a time; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, help="per method; default: the cores divided by the workers")
    parser.add_argument("--time-limit", type=float, help="seconds after which a method is given up")
    parser.add_argument("--no-spread", action="store_true", help="leave out the scores of samples and intervals")
    arguments = parse(parser, argv)

    if arguments.workers < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--workers and --threads must be at least 1")
    preset = QUICK if arguments.quick else {"protocols": list(PROTOCOLS), "seeds": [0, 1]}
    files = arguments.files or preset.get("files") or sorted(path.stem for path in arguments.data.glob("*.h5ad"))
    paths = {name: arguments.data / f"{name}.h5ad" for name in files}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing or not paths:
        parser.error(f"{arguments.data} holds no {', '.join(missing) or '*'}.h5ad")
    methods = arguments.methods or preset.get("methods") or [*PEERS, *MODELS]
    if arguments.ablations:
        methods = list(dict.fromkeys([*methods, *ABLATIONS]))
    output = arguments.output or RESULTS / ("quick.json" if arguments.quick else "full.json")
    if output.exists() and not (arguments.resume or arguments.overwrite):
        parser.error(f"{output} exists; pass --resume to go on with it, or --overwrite")

    threads = arguments.threads or max(1, cores // arguments.workers)
    results = Results(output, threads, arguments.workers, arguments.resume)
    if results.dropped:
        print(f"{results.dropped} rows of {output} failed or come from another version or code, and are run again")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        run(
            paths,
            arguments.protocols or preset["protocols"],
            arguments.seeds or preset["seeds"],
            methods,
            results,
            Path(scratch),
            threads,
            arguments.workers,
            arguments.time_limit,
            spread=not arguments.no_spread,
            say=lambda line: print(line, flush=True),
        )
    print_report(results.document)
    print(
        f"\nStored in {output}; python -m benchmarks.report {output} writes the tables and figures of the documentation."
    )


if __name__ == "__main__":
    main()
