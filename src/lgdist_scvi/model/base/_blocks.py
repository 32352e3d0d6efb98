"""Completed values of some spots: the one way to them, in memory and into a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lgdist_scvi.inference import LEFT_MISSING, MEASURED
from lgdist_scvi.model.base._query import Query


@dataclass(frozen=True)
class Question:
    """What is asked of every block; see :meth:`lgdist_scvi.LGDiST.complete`."""

    query: Query
    level: float | None
    observed: str
    fill: str
    dtype: str
    with_std: bool = True  # else it is left out, with the samples that it takes

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Types of the layers, by the suffixes of their names."""
        suffixes = ("", *["_std"] * self.with_std, *["_lower", "_upper"] * (self.level is not None))
        return dict.fromkeys(suffixes, np.dtype(self.dtype)) | {"_provenance": np.dtype(np.uint8)}


@torch.inference_mode()
def completed_block(
    question: Question, rows: np.ndarray, advance: Callable[[int], Any] | None = None
) -> dict[str, np.ndarray]:
    """Values, and from one set of samples standard deviations and intervals, by suffix of their layers; (n, n_genes) each.

    A function of model, data, question and `rows` alone. `advance` is told of the number of spots whenever some are done.
    """
    query, level = question.query, question.level
    layers = {suffix: np.empty((len(rows), len(query.genes)), dtype) for suffix, dtype in question.dtypes.items()}
    origins = layers["_provenance"]
    for place, prediction in query.predictions(rows):
        values = [prediction.mean_value(query.estimand)]
        if question.with_std:
            values.append(prediction.std(query.estimand, query.calibration))
        blocks = [block.cpu().numpy()[:, query.positions] for block in values]
        if level is not None:
            blocks += prediction.interval(query.estimand, level, query.positions, query.calibration)
        measured, origins[place] = query.origins(prediction, question.observed, question.fill)
        kept = origins[place] == MEASURED
        for suffix, block in zip(layers, blocks, strict=False):  # provenance is the last
            layers[suffix][place] = np.where(kept, 0.0 if suffix == "_std" else measured, block)
        if advance is not None:
            advance(len(place))
    return layers


def n_filled(layers: dict[str, np.ndarray]) -> int:
    """Number of filled entries of a block."""
    return int((~np.isin(layers["_provenance"], (MEASURED, LEFT_MISSING))).sum())
