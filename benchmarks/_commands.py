"""What the commands of this folder share: the folder of slides, and silence."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path


def with_slides(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Parser of a command that reads slides."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of .h5ad files")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments; end with a sentence if the folder of slides is none."""
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        parser.error(f"{arguments.data} is not a folder; name the folder of .h5ad files with --data")
    return arguments


def quiet() -> None:
    """Keep the libraries' remarks out of the tables."""
    import scvi

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
