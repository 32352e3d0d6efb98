"""What is computed of data in compact parts of slides, when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np

from lgdist_scvi.inference._compact import runs, spots_at_a_time
from lgdist_scvi.inference._predictor import Predictor

_CACHE_COMPLETED = 2**28  # bytes


class ComputedParts(ABC):
    """Compact parts of slides, the last of which are kept: what is computed of one is a function of model and data alone.

    Parameters
    ----------
    predictor
        Of the data.
    n_bytes
        That may be kept.
    of_entry
        Bytes that are kept of a spot and a gene.
    """

    def __init__(self, predictor: Predictor, n_bytes: int, of_entry: float):
        self.predictor = predictor
        self.size = spots_at_a_time(predictor.n_genes)  # of a run
        n_obs = len(predictor.dataset)
        # number of the part that each spot is in, and its place there
        self.part, self.place = np.empty((2, n_obs), dtype=np.int32)
        self.parts: list[np.ndarray] = []
        for rows in runs(n_obs, self.size):
            for place in predictor.places(rows, predictor.batch_size):
                self.part[rows[place]], self.place[rows[place]] = len(self.parts), np.arange(len(place))
                self.parts.append(rows[place])
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self.part_bytes = max(1, int(of_entry * n_obs / len(self.parts) * predictor.n_genes))  # on average
        self.n_kept = max(1, n_bytes // self.part_bytes)
        self._lock = Lock()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {**state, "_lock": Lock()}

    @abstractmethod
    def compute(self, rows: np.ndarray) -> Any:
        """What is kept of the spots of a part, given by their rows."""

    def of_part(self, number: int) -> Any:
        """What is kept of a part."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
            else:
                self.keep(number, self.compute(self.parts[number]))
            return self._kept[number]

    def keep(self, number: int, part: Any) -> None:
        """Keep what was computed of a part."""
        self._kept[number] = part
        while len(self._kept) > self.n_kept:
            self._kept.popitem(last=False)

    def forget(self) -> None:
        """Keep no parts any more."""
        self._kept.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept at most, and that a part takes beside them."""
        return (self.n_kept + 1) * self.part_bytes


class CompletedRows(ComputedParts):
    """Posterior means as :meth:`Predictor.completed` gives them, of the spots that are asked for."""

    def __init__(self, predictor: Predictor):
        super().__init__(predictor, _CACHE_COMPLETED, of_entry=2)

    def compute(self, rows: np.ndarray) -> np.ndarray:
        return self.predictor.completed(rows)

    def __getitem__(self, spots: np.ndarray) -> np.ndarray:
        """Of some spots, by their rows, float16, (n_spots, n_genes)."""
        values, part = np.empty((len(spots), self.predictor.n_genes), dtype=np.float16), self.part[spots]
        for number in np.unique(part):
            here = part == number
            values[here] = self.of_part(int(number))[self.place[spots[here]]]
        return values
