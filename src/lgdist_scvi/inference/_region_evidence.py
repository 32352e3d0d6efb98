"""What region effects are estimated from: what is found in spots against what is expected, kept, or computed when asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from tqdm.auto import tqdm

from lgdist_scvi import _keys as keys
from lgdist_scvi.inference._compact import runs, spots_at_a_time
from lgdist_scvi.inference._predictor import BATCH_SIZE, Predictor
from lgdist_scvi.module._spots import Condition, Inputs
from lgdist_scvi.module.lgdist import Hide

_CACHE = 3 * 2**28  # bytes
_PER_ENTRY = 12  # found, expected and predicted

Sums = tuple[np.ndarray, np.ndarray]
"""Found and expected, as the likelihood defines them: visible and expected counts, or residual and 1; 0 where nothing is visible."""


class Evidence(Protocol):
    """What is found and expected of every entry."""

    streams: bool  # whether it is computed when asked for

    def __getitem__(self, spots: np.ndarray) -> Sums:
        """Of some spots, by their rows, (n_spots, n_genes) each."""

    def of_slides(self, samples: np.ndarray, left_out: np.ndarray) -> Sums:
        """Sums over the spots of each slide but those left out, (n_slides, n_genes) each; `samples` are the slides of all spots."""


@dataclass
class KeptEvidence:
    """In memory, (n_obs, n_genes) each."""

    found: np.ndarray
    expected: np.ndarray
    streams = False

    def __getitem__(self, spots: np.ndarray) -> Sums:
        return self.found[spots], self.expected[spots]

    def of_slides(self, samples: np.ndarray, left_out: np.ndarray) -> Sums:
        of_slide = _slides(samples, np.arange(len(samples)), samples.max() + 1, np.float32)
        of_slide.data[np.isin(of_slide.indices, left_out)] = 0.0
        return of_slide @ self.found, of_slide @ self.expected


class StreamedEvidence:
    """Computed in compact parts of slides, the last of which are kept: a part is a function of model and data alone.

    Parameters
    ----------
    predictor
        Of the data, without region effects.
    hide
        As in :func:`evidence_of`.
    silent
        Whether to hide the progress of these sums.
    """

    streams = True

    def __init__(self, predictor: Predictor, hide: Hide, silent: bool = True):
        self.predictor, self.hide, self.silent = predictor, hide, silent
        self.size = spots_at_a_time(predictor.n_genes)  # of a run
        n_obs = len(predictor.dataset)
        # number of the part that each spot is in, and its place there
        self.part, self.place = np.empty((2, n_obs), dtype=np.int32)
        self.parts: list[np.ndarray] = []
        for rows in runs(n_obs, self.size):
            for place in predictor.places(rows, BATCH_SIZE):
                self.part[rows[place]], self.place[rows[place]] = len(self.parts), np.arange(len(place))
                self.parts.append(rows[place])
        self.sums: np.ndarray | None = None  # over slides
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.n_kept = max(1, _CACHE // (_PER_ENTRY * BATCH_SIZE * predictor.n_genes))
        self._lock = Lock()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {**state, "_lock": Lock()}

    def __getitem__(self, spots: np.ndarray) -> Sums:
        values = np.empty((2, len(spots), self.predictor.n_genes), dtype=np.float32)
        part, place = self.part[spots], self.place[spots]
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            values[:, here] = self._of_part(int(number))[:2, place[here]]
        return values[0], values[1]

    def shared(self, spots: np.ndarray) -> np.ndarray | None:
        """What network and experts predict of all that is observed of a part, (n_spots, n_genes); ``None`` of other spots."""
        number = int(self.part[spots[0]])
        is_part = self.hide == "nothing" and np.array_equal(self.parts[number], spots)
        return self._of_part(number)[2] if is_part else None

    def _of_part(self, number: int) -> np.ndarray:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            values = self._kept[number] = self._compute(self.parts[number])
            if len(self._kept) > self.n_kept:
                self._kept.popitem(last=False)
            return values

    @torch.inference_mode()
    def _compute(self, rows: np.ndarray) -> np.ndarray:
        values = np.empty((3, len(rows), self.predictor.n_genes), dtype=np.float32)
        for place, batch in self.predictor.batches(rows, BATCH_SIZE):
            evidence, _, shared = evidence_of(self.predictor, batch, self.hide)
            values[:2, place], values[2, place] = evidence, shared.cpu().numpy()
        return values

    def forget(self) -> None:
        """Keep no parts any more; sums over slides stay."""
        self._kept.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept at most, and that a part takes beside them."""
        return (self.n_kept + 1) * _PER_ENTRY * BATCH_SIZE * self.predictor.n_genes

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
