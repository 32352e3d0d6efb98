"""What an expert is: a second predictor of what the decoder predicts, which is averaged with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lgdist_scvi.module._spots import Inputs, Spots
from lgdist_scvi.module.likelihood import Likelihood


class ExpertSizes(Protocol):
    """Sizes of the experts; see :class:`~lgdist_scvi.LGDiST`."""

    n_factors: int
    n_profiles: int
    n_mixtures: int


@dataclass
class TrainingSpots:
    """What experts learn from: observed entries that are not held out.

    Attributes
    ----------
    spots
        The spots; their library is the visible one.
    index, valid
        Rows of the spots' neighbours among them, and 1 where there is one, (n, k).
    batches
        Batches of some of the spots, with all neighbours.
    """

    spots: Spots
    index: Tensor
    valid: Tensor
    batches: Iterable[Inputs]


class Expert(nn.Module, ABC):
    """A predictor of a spot's expected values from its visible entries and its neighbours.

    `name` is for people; `sizes` is where the expert finds its sizes.
    """

    name: ClassVar[str] = "expert"

    def __init__(self, n_genes: int, sizes: ExpertSizes):
        super().__init__()
        self.register_buffer("gene_rate", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("typical_library", torch.tensor(1.0))

    def initialise(self, likelihood: Likelihood, counts: np.ndarray, known: np.ndarray, library: np.ndarray) -> None:
        """Initialise before training, from a likelihood with the statistics of the genes and some spots of the data.

        Of these, counts, (n, n_genes), 1 where they are visible, and library sizes, (n, 1).
        """
        self.gene_rate.copy_(likelihood.gene_rate)
        self.typical_library.copy_(likelihood.typical_library)

    def fit(self, data: TrainingSpots, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn, after the network; random numbers are drawn from `generator`."""

    def release(self, share: Tensor) -> None:
        """Called after fitting: held-out entries, a share of each gene's, (n_genes,), are visible from now on."""

    @abstractmethod
    def neighborhood(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> Any:
        """What is taken from the neighbours, handed to `forward`.

        `library` is the visible one of `neighbors`, in counts, (n, 1); `index` and `valid` are as for
        :func:`~lgdist_scvi.module._spots.sum_of_neighbors`.
        """

    @abstractmethod
    def forward(self, centre: Spots, library: Tensor, neighborhood: Any) -> tuple[Tensor, Tensor | None]:
        """Expected values in the likelihood's unit, (batch, n_genes), and their reliability, 0 to 1, (batch, 1), or ``None``.

        The first expert that gives a reliability gives it for all.
        """
