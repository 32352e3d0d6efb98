"""What is asked on the command line: ``lgdist complete``, ``lgdist evaluate`` and ``lgdist demo``."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

_OK, _USER_ERROR, _INTERRUPTED = 0, 1, 130  # argparse exits with 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, of `argv` or else of the process.

    Returns
    -------
    Exit code: 0, 1 for input that cannot be used (with one sentence on the standard error), 130 if interrupted. Unknown
    options exit with 2.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    # torch and scvi-tools take seconds to import: nobody waits for them to read the help
    from lgdist_scvi.cli import _demo, _evaluate, _steps

    run = {"complete": _steps.complete, "evaluate": _evaluate.evaluate, "demo": _demo.demo}[arguments.command]
    start = time.perf_counter()
    with warnings.catch_warnings():
        _quieten(arguments)
        try:
            result = run(arguments)
        except _steps.UserError as error:
            print(f"Error: {_in_options(str(error), arguments)}", file=sys.stderr)
            return _USER_ERROR
        except (KeyboardInterrupt, UserWarning):  # of warnings, only that of an interrupted training is an error here
            print("\nInterrupted.", file=sys.stderr)
            return _INTERRUPTED
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"Done in {minutes} min {seconds} s. {result}")
    return _OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lgdist", description="Complete dropout in spatial transcriptomics.")
    commands = parser.add_subparsers(dest="command", required=True)

    slide = argparse.ArgumentParser(add_help=False)
    slide.add_argument("--layer", help="layer that holds raw counts (default: X)")
    slide.add_argument(
        "--sample-key",
        "--library-key",
        dest="sample_key",
        help='column of obs that names the slides (default: "sample", if it is there)',
    )
    slide.add_argument("--spatial-key", default="spatial", help='key of obsm with the coordinates (default: "spatial")')
    slide.add_argument("--table", help="table of a SpatialData store")
    slide.add_argument("--modality", help="modality of a MuData file")
    slide.add_argument("--bin-size", type=int, help="width of Visium HD bins in micrometres")
    slide.add_argument(
        "--n-genes", type=_positive, default=1024, help="most genes to keep, by spatial association (default: 1024)"
    )
    slide.add_argument(
        "--max-epochs", type=_positive, help="passes over the spots in each stage; a few for a quick look"
    )

    complete = commands.add_parser(
        "complete", parents=[slide], help="train on a slide and write it with completed layers to an .h5ad file"
    )
    complete.add_argument("input", type=Path, help="slide to complete: a file or folder, as datasets.read takes them")
    complete.add_argument("output", type=Path, help=".h5ad file to write")
    complete.add_argument("--mask-layer", help="bool layer, True where an entry is observed (default: all are)")
    complete.add_argument(
        "--observed", choices=("keep", "model"), default="keep", help="what becomes of measured values"
    )
    complete.add_argument("--fill", choices=("zeros", "masked"), default="zeros", help="which entries are filled")
    complete.add_argument("--genes", choices=("all", "skilled"), default="all", help="which genes are completed")

    evaluate = commands.add_parser(
        "evaluate", parents=[slide], help="hide half of the molecules, and score the model and simpler methods on them"
    )
    evaluate.add_argument("input", type=Path, help="slide to score on")
    evaluate.add_argument("--output", type=Path, help="folder for the tables (default: they are printed only)")

    demo = commands.add_parser(
        "demo", parents=[slide], help="both, with figures: score on hidden molecules, train on all, write and draw"
    )
    demo.add_argument("--input", type=Path, help="slide to complete (default: a simulated tissue)")
    demo.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _in_options(message: str, arguments: argparse.Namespace) -> str:
    """Call arguments of functions what they are called on the command line."""
    for name in vars(arguments):
        option = "--" + name.replace("_", "-")
        message = re.sub(rf"\b{name}=(\.\.\.)?", lambda found, o=option: o if found[1] else f"{o} ", message)
        if "_" in name:
            message = re.sub(rf"\b{name}\b", option, message)
    return message


def _quieten(arguments: argparse.Namespace) -> None:
    """Leave what the reader can use: our own sentences and the progress bars."""
    import matplotlib
    import scvi

    matplotlib.use("agg")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = 0
    warnings.filterwarnings("ignore")
    # what this package says to its caller, which is the command
    warnings.filterwarnings("default", category=UserWarning, module=r"lgdist_scvi\.cli\.")
    warnings.filterwarnings("ignore", message="only .* genes", category=UserWarning)  # the numbers are printed
    # a model interrupted in training can be used, but is not what was asked for here
    warnings.filterwarnings("error", message="Training was interrupted", category=UserWarning)
    warnings.showwarning = lambda message, *_: print(f"Note: {_in_options(str(message).rstrip('.'), arguments)}.")


if __name__ == "__main__":
    sys.exit(main())
