"""A module and the data that it predicts: batches of neighbouring spots, and their predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lgdist_scvi import _keys as keys
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference._compact import compact_parts, fits_in_memory
from lgdist_scvi.inference._prediction import Prediction
from lgdist_scvi.module import LGDiSTModule
from lgdist_scvi.module.lgdist import Hide

if TYPE_CHECKING:
    from lgdist_scvi.inference._region_effects import EstimatedEffects

BATCH_SIZE = 512
_BATCH_ENTRIES = 2**21  # of whole transcriptomes fewer spots: their neighbours may be ten times as many


@dataclass(frozen=True)
class Predictor:
    """A trained module and the data that it predicts.

    `region_effects` are effects of slides and surroundings on the entries of spots, by their rows; ``None`` without.
    """

    module: LGDiSTModule
    dataset: NeighborhoodDataset
    region_effects: EstimatedEffects | np.ndarray | None = None

    @property
    def n_genes(self) -> int:
        """Number of registered genes."""
        return len(self.module.likelihood.gene_rate)

    @property
    def batch_size(self) -> int:
        """Number of spots in a batch."""
        return min(BATCH_SIZE, max(1, _BATCH_ENTRIES // self.n_genes))

    def with_region_effects(self, region_effects: EstimatedEffects | np.ndarray | None) -> Predictor:
        """The same with other region effects."""
        return replace(self, region_effects=region_effects)

    def without(self, spots: np.ndarray) -> Predictor:
        """The same as if nothing were observed of some spots."""
        return replace(self, dataset=self.dataset.without(spots))

    def judging(self) -> np.ndarray:
        """Rows of spots that judge predictions of entries: not held out whole, and of a part of the data that was not seen."""
        n_obs = len(self.dataset)
        rows = np.setdiff1d(np.arange(n_obs), self.module.spots_set_aside(n_obs))
        fold = self.dataset.fields.get(keys.FOLD)
        return rows if fold is None else rows[fold[rows, 0] < self.module.n_judged]

    def batches(
        self, rows: np.ndarray | None = None, batch_size: int | None = None, silent: bool = True
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Batches of neighbouring spots: positions in `rows` (``None``: all spots), and tensors."""
        # no data loader: it would draw from torch's global generator
        rows, size = np.arange(len(self.dataset)) if rows is None else rows, batch_size or self.batch_size
        device = self.module.device  # looks at every parameter
        with tqdm(total=len(rows), desc="Spots", unit=" spots", disable=silent, leave=False) as progress:
            for place in self.places(rows, size):
                spots = rows[place]
                batch = {key: torch.from_numpy(value).to(device) for key, value in self.dataset[spots].items()}
                if self.region_effects is not None:
                    batch[keys.REGION_EFFECT] = torch.from_numpy(self.region_effects[spots]).to(device)
                yield place, batch
                progress.update(len(place))

    def places(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        """Positions in `rows`, in batches of neighbouring spots: along the graph, or in compact parts of slides if there are many."""
        if not fits_in_memory(len(self.dataset), self.n_genes):
            return compact_parts(self.dataset.coordinates[rows], self.dataset.samples[rows], size)
        order = self.dataset.along_graph(rows)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def predictions(
        self, rows: np.ndarray | None = None, batch_size: int | None = None, silent: bool = True, **sampling: Any
    ) -> Iterator[tuple[np.ndarray, Prediction]]:
        """Positions in `rows` and :class:`Prediction` of batches; `sampling` are its `n_samples`, `seed` and `n_steps`."""
        for place, batch in self.batches(rows, batch_size, silent):
            yield place, Prediction(self.module, batch, shared=self._shared(batch), **sampling)

    def _shared(self, batch: dict[str, Tensor]) -> Tensor | None:
        """What was computed of the spots of a batch on the way to their region effects."""
        if self.region_effects is None or isinstance(self.region_effects, np.ndarray):
            return None
        shared = self.region_effects.shared(batch[keys.SPOT].cpu().numpy().ravel())
        return None if shared is None else torch.from_numpy(shared).to(self.module.device)

    @torch.inference_mode()
    def completed(self, rows: np.ndarray, hide: Hide = "nothing") -> np.ndarray:
        """Posterior mean of everything of some spots, log1p(CP10K), float16, (n_spots, n_genes): a prefill for a second round.

        With ``hide="set_aside"`` nothing that training holds out is looked at.
        """
        likelihood = self.module.likelihood
        filled = np.empty((len(rows), self.n_genes), dtype=np.float16)
        for place, batch in self.batches(rows):
            condition = self.module.condition(batch, hide)
            decoded = self.module.decode(self.module.latent_mean(condition), condition)
            filled[place] = likelihood.in_log1p(decoded).cpu().numpy()
        return filled
