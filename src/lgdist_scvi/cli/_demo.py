"""``lgdist demo``: score, complete and draw, from start to end."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lgdist_scvi import LGDiST, datasets, pl
from lgdist_scvi.cli._evaluate import TABLES, Evaluation, score
from lgdist_scvi.cli._steps import (
    check_output,
    check_writable,
    choose,
    complete_slide,
    read,
    refused,
    say,
    set_up,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIMULATED = {"n_spots": 1000, "n_genes": 300}
_COMPLETED = "completed.h5ad"
_FIGURES: dict[str, Callable[[LGDiST, Evaluation], Figure]] = {
    "completion.png": lambda model, _: pl.completion(model.adata),
    "training.png": lambda model, _: pl.training_history(model),
    "scores.png": lambda _, evaluation: pl.scores(evaluation.table, ("d2", "pcc_gene"), highlight="LGDiST"),
    "held_out.png": lambda _, evaluation: pl.held_out(
        evaluation.measured, evaluation.captured, evaluation.measured > 0, title="captured in the hidden half"
    ),
}


def demo(arguments: argparse.Namespace) -> str:
    """Do what the other commands do, on a simulated tissue if no slide is given, and draw it; give a sentence about the files."""
    folder = arguments.output
    with refused():
        check_output(folder, folder / _COMPLETED, arguments.input)
        if arguments.input is None:
            say("Simulating a tissue whose true rates are known.")
            adata = datasets.simulated_visium(**_SIMULATED, seed=0)
        else:
            adata = read(arguments)
        adata, setup = choose(adata, arguments)
    check_writable(adata, folder / _COMPLETED)
    evaluation = score(adata, setup, arguments.max_epochs)
    for name in (*TABLES, _COMPLETED, *_FIGURES):
        (folder / name).unlink(missing_ok=True)  # of an earlier run: they would belong to another slide
    files = evaluation.write(folder)

    with refused():
        model = set_up(adata, setup)
    complete_slide(model, arguments)
    columns = ["deviance_explained", "predictable"]
    adata.var[columns] = evaluation.genes[columns]
    files.append(write(folder / _COMPLETED, lambda file: adata.write_h5ad(file, compression="gzip")))

    say("Drawing figures.")
    for name, draw in _FIGURES.items():
        files += _draw(folder / name, partial(draw, model, evaluation))
    return f"{folder} holds {', '.join(file.name for file in files)}."


def _draw(file: Path, draw: Callable[[], Figure]) -> list[Path]:
    """Draw a figure and write it; one that fails costs a line, not the results."""
    try:
        return [write(file, lambda part: draw().savefig(part, dpi=130))]
    except Exception as error:  # noqa: BLE001 (of any kind: everything else is done)
        print(
            f"Note: {file.name} could not be drawn ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
        )
        return []
