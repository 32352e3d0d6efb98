"""What region effects are estimated from: what is found in spots against what is expected, kept, or computed when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from tqdm.auto import tqdm

from lgdist_scvi import _keys as keys
from lgdist_scvi.inference._parts import ComputedParts
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.module._spots import Condition, Inputs
from lgdist_scvi.module.lgdist import Hide

_CACHE = 3 * 2**29  # bytes

Sums = tuple[np.ndarray, np.ndarray]
"""Found and expected, as the likelihood defines them: visible and expected counts, or residual and 1; 0 where nothing is visible."""

_Part = tuple[np.ndarray | sparse.csr_matrix, np.ndarray | sparse.csr_matrix, np.ndarray | None]
"""Found, expected, and predicted without region effects."""


class Evidence(Protocol):
    """What is found and expected of every entry."""

    streams: bool  # whether it is computed when asked for
    parts: Sequence[np.ndarray]  # rows of all spots, some at a time

    def add(self, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, shared: np.ndarray) -> None:
        """Keep what was computed of some spots, and what was predicted of them, (n_spots, n_genes) each."""

    def __getitem__(self, spots: np.ndarray) -> Sums:
        """Of some spots, by their rows, (n_spots, n_genes) each."""

    def weighted(self, weights: sparse.csr_matrix) -> Sums:
        """Sums over all spots, each times weights, (n, n_obs): (n, n_genes) each."""

    def of_slides(self, samples: np.ndarray, left_out: np.ndarray) -> Sums:
        """Sums over the spots of each slide but those left out, (n_slides, n_genes) each; `samples` are the slides of all spots."""


@dataclass
class KeptEvidence:
    """In memory, (n_obs, n_genes) each."""

    found: np.ndarray
    expected: np.ndarray
    streams = False

    @property
    def parts(self) -> Sequence[np.ndarray]:
        return [np.arange(len(self.found))]

    def add(self, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, shared: np.ndarray) -> None:
        self.found[rows], self.expected[rows] = found, expected

    def __getitem__(self, spots: np.ndarray) -> Sums:
        return self.found[spots], self.expected[spots]

    def weighted(self, weights: sparse.csr_matrix) -> Sums:
        return weights @ self.found, weights @ self.expected

    def of_slides(self, samples: np.ndarray, left_out: np.ndarray) -> Sums:
        of_slide = _slides(samples, np.arange(len(samples)), samples.max() + 1, np.float32)
        of_slide.data[np.isin(of_slide.indices, left_out)] = 0.0
        return of_slide @ self.found, of_slide @ self.expected


class StreamedEvidence(ComputedParts):
    """Computed when it is asked for.

    Parameters
    ----------
    predictor
        Of the data, without region effects.
    hide
        As in :func:`evidence_of`.
    silent
        Whether to hide the progress of sums over slides.
    """

    streams = True

    def __init__(self, predictor: Predictor, hide: Hide, silent: bool = True):
        totals = predictor.dataset.totals
        found = min(4, 8 * totals.n_positive / (len(totals.counted) * predictor.n_genes))  # sparse
        super().__init__(predictor, _CACHE, of_entry=found + (8 if hide == "nothing" else 4))
        self.hide, self.silent = hide, silent
        self.sums: np.ndarray | None = None  # over slides

    def __getitem__(self, spots: np.ndarray) -> Sums:
        values = np.empty((2, len(spots), self.predictor.n_genes), dtype=np.float32)
        part, place = self.part[spots], self.place[spots]
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            for value, kept in zip(values, self.of_part(int(number)), strict=False):
                value[here] = _dense(kept[place[here]])
        return values[0], values[1]

    def shared(self, spots: np.ndarray) -> np.ndarray | None:
        """What network and experts predict of all that is observed of a part, (n_spots, n_genes); ``None`` of other spots."""
        number = int(self.part[spots[0]])
        is_part = self.hide == "nothing" and np.array_equal(self.parts[number], spots)
        return self.of_part(number)[2] if is_part else None

    @torch.inference_mode()
    def compute(self, rows: np.ndarray) -> _Part:
        ((place, batch),) = self.predictor.batches(rows)
        sums, _, shared = evidence_of(self.predictor, batch, self.hide)
        return self._in_order(rows[place], *sums, shared.cpu().numpy())

    def add(self, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, shared: np.ndarray) -> None:
        self.keep(int(self.part[rows[0]]), self._in_order(rows, found, expected, shared))

    def _in_order(self, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, shared: np.ndarray) -> _Part:
        """What is kept of a part, in the order of its spots."""
        order = np.argsort(self.place[rows])
        # what is predicted of less than what is observed is of no use to other questions
        return _small(found[order]), _small(expected[order]), shared[order] if self.hide == "nothing" else None

    def weighted(self, weights: sparse.csr_matrix) -> Sums:
        """Part by part: all that the weights reach may be many spots."""
        sums = np.zeros((2, weights.shape[0], self.predictor.n_genes), dtype=np.float32)
        row = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
        part, place = self.part[weights.indices], self.place[weights.indices]
        for number in np.unique(part):
            inside = np.flatnonzero(part == number)
            rows, of_row = np.unique(row[inside], return_inverse=True)
            shape = len(rows), len(self.parts[number])
            here = sparse.csr_matrix((weights.data[inside], (of_row, place[inside])), shape=shape)
            for total, kept in zip(sums, self.of_part(int(number)), strict=False):
                total[rows] += _dense(here @ kept)
        return sums[0], sums[1]

    # ---- sums over slides

    @property
    def needs_sums(self) -> bool:
        """Whether effects of slides need sums that are not known yet."""
        return self.sums is None and bool(torch.isfinite(self.predictor.module.region_shrinkage[0]))

    def of_slides(self, samples: np.ndarray, left_out: np.ndarray) -> Sums:
        if self.sums is None:
            numbers = range(self.n_runs)
            self.sums = sum(
                self.of_run(number) for number in tqdm(numbers, desc="Slides", disable=self.silent, leave=False)
            )
        sums = self.sums
        if len(left_out):
            sums = sums - self.summed(left_out)
        return tuple(sums.astype(np.float32))

    @property
    def n_runs(self) -> int:
        """Number of runs of spots that sums are taken over."""
        return -(-len(self.part) // self.size)

    def of_run(self, number: int) -> np.ndarray:
        """Sums of found and expected over the spots of each slide in a run, (2, n_slides, n_genes), in double precision."""
        return self.summed(np.arange(number * self.size, min((number + 1) * self.size, len(self.part))))

    def summed(self, spots: np.ndarray) -> np.ndarray:
        """Sums over some spots of each slide, as :meth:`of_run`."""
        samples = self.predictor.dataset.samples
        n_slides = samples.max() + 1
        total = np.zeros((2, n_slides, self.predictor.n_genes))
        for number in np.unique(self.part[spots]):
            here = spots[self.part[spots] == number]
            of_slide = _slides(samples[here], np.arange(len(here)), n_slides, np.float64)
            total += [of_slide @ part for part in self[here]]
        return total


def _small(values: np.ndarray) -> np.ndarray | sparse.csr_matrix:
    """The same, sparse if that is smaller."""
    return sparse.csr_matrix(values) if 2 * np.count_nonzero(values) < values.size else values


def _dense(values: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else values


def _slides(samples: np.ndarray, columns: np.ndarray, n_slides: int, dtype: type) -> sparse.csr_matrix:
    """1 where a spot lies on a slide, (n_slides, n)."""
    return sparse.csr_matrix((np.ones(len(samples), dtype), (samples, columns)), shape=(n_slides, len(samples)))


def evidence_of(
    predictor: Predictor, batch: dict[str, torch.Tensor], hide: Hide
) -> tuple[np.ndarray, Inputs, torch.Tensor]:
    """Found and expected of a batch, (2, batch, n_genes); what was looked at, and what was predicted without region effects.

    `hide` is ``"nothing"``, or ``"set_aside"`` for what training saw.
    """
    module, likelihood = predictor.module, predictor.module.likelihood
    inputs = module.inputs(batch, hide)
    condition: Condition = module.condition_of(inputs)
    shared = module.shared(module.latent_mean(condition), condition)  # (batch, n_genes)
    exposure, library = module.exposure(batch), likelihood.usable(batch[keys.LIBRARY])
    evidence = likelihood.region_evidence(shared, inputs.centre, condition.own, exposure, library)
    return np.stack([part.cpu().numpy() for part in evidence]), inputs, shared
