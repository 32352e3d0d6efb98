"""Steps of training that no optimiser takes: each has a name, a progress line and an entry in the history."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pandas as pd
from scvi import settings
from scvi.model.base import BaseModelClass
from scvi.utils import track

from lgdist_scvi.train._processes import is_first


@contextmanager
def named_step(model: BaseModelClass, name: str, show: bool = False) -> Iterator[dict[str, Any]]:
    """Take one step of training under a name.

    The model's `history_` receives a frame of one row for everything that the step reports, under ``"{name}/..."``; a
    step that fails leaves none. `show` asks for a progress line, with the time it took; never above
    ``scvi.settings.verbosity = logging.INFO``.

    Yields
    ------
    What the step has to tell, to be filled: numbers, or mappings of names to numbers, by name.
    """
    report: dict[str, Any] = {}
    show = show and settings.verbosity <= logging.INFO and is_first()
    line = track(None, total=1, description=name.replace("_", " "), style="tqdm") if show else nullcontext()
    with line as bar:
        yield report
        if bar is not None:
            bar.update()
    model.history_ = {**(model.history_ or {}), **{f"{name}/{key}": _row(key, told) for key, told in report.items()}}


def _row(key: str, told: Any) -> pd.DataFrame:
    return pd.DataFrame({name: [value] for name, value in (told if isinstance(told, Mapping) else {key: told}).items()})
