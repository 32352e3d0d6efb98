"""What a question takes, from a timed sample."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np
from anndata import AnnData

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice
from lgdist_scvi.inference import N_SAMPLES, CompletedRows, spots_at_a_time
from lgdist_scvi.model.base._blocks import Question, completed_block
from lgdist_scvi.model.base._completion import CompletionMixin
from lgdist_scvi.model.base._expression import ExpressionMixin
from lgdist_scvi.model.base._memory import as_text
from lgdist_scvi.model.base._query import Query, samples_for_spread
from lgdist_scvi.model.base._stream import streamed_evidence

_N_SPOTS, _N_TIMES = 256, 3
_QUESTIONS = ("complete", "get_completed_expression", "get_prediction_interval")


@dataclass(frozen=True)
class Estimate:
    """What a question takes.

    Attributes
    ----------
    seconds
        Of this process alone.
    memory
        Bytes of the answer, or of what is held at a time if it goes into a store.
    disk
        Bytes at most of a store, before they are packed; 0 without one.
    """

    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:,.1f} min" if self.seconds >= 90 else f"{self.seconds:,.1f} s"
        disk = f", at most {as_text(self.disk)} on disk" if self.disk else ""
        return f"about {minutes}, {as_text(self.memory)} of memory{disk}"


class EstimateMixin(CompletionMixin, ExpressionMixin):
    """Time, memory and disk of a question, before it is asked."""

    def estimate(
        self,
        question: Literal["complete", "get_completed_expression", "get_prediction_interval"] = "complete",
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        level: float | None = 0.9,
        n_samples: int | None = None,
        n_steps: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        store: bool = False,
        block_size: int | None = None,
    ) -> Estimate:
        """Tell what a question takes, from a timed sample of a few hundred spots.

        Parameters
        ----------
        question
            Name of the method.
        store
            Whether :meth:`complete` is to write into a store.
        adata, indices, gene_list, level, n_samples, n_steps, dtype, block_size
            As the question takes them; `gene_list` stands for `genes` of :meth:`complete`.

        Returns
        -------
        :class:`Estimate`; as text, a line for people. Data that were never read are read for it.
        """
        check_choice("question", question, _QUESTIONS)
        completes, spread = question == "complete", question != "get_completed_expression"
        if n_samples is None:
            n_samples = N_SAMPLES if spread else 1
        with_std = n_samples > 0 if completes else n_samples > 1 or spread
        query = Query(
            self,
            adata,
            indices,
            gene_list,
            n_steps=n_steps,
            n_samples=samples_for_spread(n_samples) if spread else n_samples,
        )
        asked = Question(query, level if spread else None, "keep", "zeros", dtype, with_std)
        n_obs, n_genes = query.shape
        if completes and not store:
            n_genes = query.adata.n_vars  # genes that are not asked for keep what was measured
        size = sum(kind.itemsize for kind in asked.dtypes.values()) if completes else 8 if spread else 4
        seconds = _seconds(asked)
        if not (completes and store):
            return Estimate(seconds, n_obs * n_genes * size, 0)
        n_block = min(n_obs, block_size or spots_at_a_time(query.predictor.n_genes))
        evidence = streamed_evidence(query)
        kept = 0 if evidence is None else evidence.n_bytes
        prefill = query.dataset.fields.get(keys.PREFILL)  # of a second round
        kept += prefill.n_bytes if isinstance(prefill, CompletedRows) else 0
        return Estimate(seconds, n_block * n_genes * size + kept, n_obs * n_genes * size)


def _seconds(asked: Question) -> float:
    """Time that a question takes, from spots in the middle of the data."""
    query, evidence, seconds = asked.query, streamed_evidence(asked.query), 0.0
    n_obs = len(query.rows)
    if evidence is not None:
        estimated, evidence = query.predictor.region_effects, copy(evidence)  # other questions learn nothing of it
        effects = replace(estimated.effects, evidence=evidence)
        query.predictor = query.predictor.with_region_effects(replace(estimated, effects=effects))
        if evidence.needs_sums:
            begun = perf_counter()
            rows = evidence.parts[len(evidence.parts) // 2]
            evidence.sums = evidence.summed(rows)  # of some spots in the place of all: it is timed, not told
            seconds += (perf_counter() - begun) / len(rows) * len(query.dataset)
    first = max(0, (n_obs - _N_TIMES * _N_SPOTS) // 2)
    times = []
    for start in range(first, min(n_obs, first + _N_TIMES * _N_SPOTS), _N_SPOTS):
        begun, rows = perf_counter(), query.rows[start : start + _N_SPOTS]
        completed_block(asked, rows)
        times.append((perf_counter() - begun) / len(rows))
    # the first ones compute what those after them share
    return seconds + float(np.min(times)) * n_obs
