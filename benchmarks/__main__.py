"""Benchmarks of the package: ``python -m benchmarks COMMAND --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

# each a module of this folder with `add_arguments(parser)` and `main(arguments)`
COMMANDS = ("run", "report", "section", "image", "generate", "scale", "guards", "cost", "steps", "processes")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"benchmarks.{name}")
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(main=module.main, error=command.error)
    arguments = parser.parse_args(argv)
    data = getattr(arguments, "data", None)
    if data is not None and not data.is_dir():
        arguments.error(f"{data} is not a folder; name the folder of .h5ad files with --data")
    arguments.main(arguments)


if __name__ == "__main__":
    main()
