"""What several commands share: the folder of slides, a seeded model, silence."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the folder of slides."""
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of .h5ad files; default: %(default)s"
    )


def slides(arguments: argparse.Namespace) -> dict[str, Path]:
    """Name and path of each slide that is asked for; ends the command if one is missing."""
    names = arguments.files or sorted(path.stem for path in arguments.data.glob("*.h5ad"))
    paths = {name: arguments.data / f"{name}.h5ad" for name in names}
    missing = [f"{name}.h5ad" for name, path in paths.items() if not path.is_file()]
    if missing or not paths:
        arguments.error(f"{arguments.data} holds no {', '.join(missing) or '*.h5ad'}")
    return paths


def peak_memory() -> float:
    """Peak resident memory of this process so far, MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def quiet() -> None:
    """Keep the libraries' remarks out of the tables."""
    import scvi

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
