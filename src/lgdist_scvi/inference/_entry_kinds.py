"""Kinds of entries that are calibrated apart, and held-out entries of each kind with their predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lgdist_scvi import _keys as keys
from lgdist_scvi.inference._holes import holes
from lgdist_scvi.inference._prediction import N_SAMPLES, Prediction
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.inference._region_effects import RegionEffects
from lgdist_scvi.module.likelihood import HoldOut, counts_in_library

N_NOISE_SAMPLES = 8
_N_SPOTS, _N_WHOLE_SPOTS, _N_NOISE_SPOTS = 4096, 512, 512  # that calibrate, chosen at random
_N_VISIBLE_SPOTS = 1024  # whose visible counts do: of these one factor alone is asked
_N_SPLITS = 2  # of the molecules of visible counts, each drawn anew

Batch = dict[str, Tensor]


@dataclass
class CalibrationCase:
    """A batch of spots of which something is hidden, and its prediction.

    Attributes
    ----------
    place
        Positions of the spots among those asked for, (batch,).
    prediction
        Made without what is hidden; its library is the one that predictions are for.
    hidden
        Entries that are predicted, bool, (batch, n_genes).
    counts
        Their counts, (batch, n_genes).
    per_count
        What each of these molecules counts for in the library of the prediction, (batch, 1): 1 where that is its own.
    share
        Share of the library that the hidden counts were found in.
    """

    place: np.ndarray
    prediction: Prediction
    hidden: Tensor
    counts: Tensor
    per_count: Tensor
    share: float = 1.0

    @property
    def counts_there(self) -> Tensor:
        """Counts as they might be in the library of the prediction, (batch, n_genes)."""
        return counts_in_library(self.counts, self.per_count)


@dataclass
class HeldOutSpots:
    """Training data, and the spots that calibrate.

    Attributes
    ----------
    predictor
        Of the training data, with region effects that do not know what is held out.
    region_effects
        What these are estimated from; ``None`` without region effects.
    for_noise, for_visible, partly, wholly
        Rows of spots that the noise is estimated from, whose visible counts calibrate, that are held out in part, and that are
        held out whole.
    in_holes
        The last, in the order in which the spots around them are hidden.
    """

    predictor: Predictor
    region_effects: RegionEffects | None
    for_noise: np.ndarray
    for_visible: np.ndarray
    partly: np.ndarray
    wholly: np.ndarray
    in_holes: np.ndarray

    @classmethod
    def choose(cls, predictor: Predictor, region_effects: RegionEffects | None) -> HeldOutSpots:
        """Choose spots at random, always the same."""
        rng = np.random.default_rng(0)
        whole = predictor.module.spots_set_aside(len(predictor.dataset))
        order = rng.permutation(predictor.judging())
        wholly = np.sort(rng.permutation(whole)[:_N_WHOLE_SPOTS])
        return cls(
            predictor,
            region_effects,
            for_noise=np.sort(order[:_N_NOISE_SPOTS]),
            for_visible=np.sort(order[:_N_VISIBLE_SPOTS]),
            partly=np.sort(order[:_N_SPOTS]),
            wholly=wholly,
            in_holes=rng.permutation(wholly),
        )


class EntryKind(ABC):
    """A kind of entry: where it applies, and held-out entries of it.

    Of several kinds that apply to an entry the last in `ENTRY_KINDS` counts.
    """

    name: ClassVar[str]
    hold_out: ClassVar[HoldOut] = "set_aside"  # skipped where the module does not have it
    has_intervals: ClassVar[bool] = True  # else only its standard deviation is calibrated

    @abstractmethod
    def applies(self, batch: Batch) -> np.ndarray:
        """Which entries of a batch are of this kind, bool, (batch, n_genes) or (batch, 1)."""

    @abstractmethod
    def cases(self, spots: HeldOutSpots) -> Iterator[Sequence[CalibrationCase]]:
        """Held-out entries of this kind; repeated cases of the same spots come together."""


class HiddenEntries(EntryKind):
    """Entries hidden from spots of which others are visible; stands in for all kinds without intervals of their own."""

    name = "hidden"

    def applies(self, batch: Batch) -> np.ndarray:
        return np.ones((len(batch[keys.SPOT]), 1), dtype=bool)

    def cases(self, spots: HeldOutSpots) -> Iterator[Sequence[CalibrationCase]]:
        return hidden_cases(spots.predictor, spots.partly)


class VisibleEntries(EntryKind):
    """Entries whose own count is visible: half of the molecules are shown, and predict the other half.

    On entries that training held out, in neighbours too: of others it has seen both halves.
    """

    name, hold_out, has_intervals = "visible", "split", False

    def applies(self, batch: Batch) -> np.ndarray:
        return (batch[keys.MASK] > 0).cpu().numpy()

    def cases(self, spots: HeldOutSpots) -> Iterator[Sequence[CalibrationCase]]:
        module, generator = spots.predictor.module, torch.Generator().manual_seed(0)
        for place, batch in spots.predictor.batches(spots.for_visible):
            cases = []
            for _ in range(_N_SPLITS):
                inputs = module.inputs(batch, "split", generator)
                prediction = Prediction(module, batch, module.condition_of(inputs), N_NOISE_SAMPLES)
                per_count = torch.ones_like(inputs.target[:, :1])
                cases.append(CalibrationCase(place, prediction, inputs.score > 0, inputs.target, per_count, share=0.5))
            yield cases


class HiddenSpots(EntryKind):
    """Entries of spots of which nothing is visible."""

    name = "hidden_spots"

    def applies(self, batch: Batch) -> np.ndarray:
        return ~(batch[keys.MASK] > 0).any(dim=1, keepdim=True).cpu().numpy()

    def cases(self, spots: HeldOutSpots) -> Iterator[Sequence[CalibrationCase]]:
        return hidden_cases(spots.predictor, spots.wholly)


class Holes(HiddenSpots):
    """Entries of spots of which nothing is visible, and of no neighbour either."""

    name = "holes"

    def applies(self, batch: Batch) -> np.ndarray:
        return super().applies(batch) & batch[keys.NEIGHBORS_FAR].cpu().numpy()

    def cases(self, spots: HeldOutSpots) -> Iterator[Sequence[CalibrationCase]]:
        """Spots in the middle of holes, as if nothing of the spots around them were visible, nor used by region effects."""
        predictor, dataset = spots.predictor, spots.predictor.dataset
        shrinkage = predictor.module.region_shrinkage.cpu().numpy()
        for middles, hidden in holes(dataset.graph, spots.in_holes, dataset.samples, dataset.has_content):
            in_hole = predictor.without(hidden)
            if spots.region_effects is not None:
                effects = spots.region_effects.without(hidden).estimate(shrinkage)
                in_hole = in_hole.with_region_effects(effects)
            yield from hidden_cases(in_hole, middles)


class UnseenSlides(HiddenEntries):
    """Entries of slides that had no part in training, predicted from something else than counts."""

    name, hold_out = "unseen_slide", "unseen_slide"


# a further kind is a further object here
ENTRY_KINDS: list[EntryKind] = [HiddenEntries(), VisibleEntries(), HiddenSpots(), Holes(), UnseenSlides()]


def hidden_cases(
    predictor: Predictor, spots: np.ndarray, n_samples: int = N_SAMPLES
) -> Iterator[Sequence[CalibrationCase]]:
    """Spots without the entries that training held out.

    They are hidden as users hide entries, from the mask and from the library, while everything else that is observed is
    visible: then their predictions are what users get. Of a hidden spot, a library that is not the sum over the genes is known.
    """
    module, likelihood = predictor.module, predictor.module.likelihood
    for place, batch in predictor.batches(spots):
        pattern = module.set_aside(batch[keys.SPOT])
        hidden = pattern & (batch[keys.MASK] > 0)
        shown = _without(batch, hidden, keep_library=pattern.all(dim=1, keepdim=True) & (not likelihood.compositional))
        per_count = _per_count(batch, shown, likelihood.typical_library)
        prediction = Prediction(module, shown, n_samples=n_samples)
        yield [CalibrationCase(place, prediction, hidden, batch[keys.COUNTS], per_count)]


def _without(batch: Batch, hidden: Tensor, keep_library: Tensor) -> Batch:
    """A batch as it would be if these entries of its spots were missing, (batch, n_genes); some keep their library, (batch, 1)."""
    left = (~hidden).float()
    lost = (batch[keys.COUNTS] * hidden).sum(dim=1, keepdim=True) * ~keep_library
    library = (batch[keys.LIBRARY] - lost).clamp(min=0.0)
    return {
        **batch,
        keys.COUNTS: batch[keys.COUNTS] * left,
        # as in the data set, a spot without counts is unobserved
        keys.MASK: batch[keys.MASK] * left * (library > 0),
        keys.LIBRARY: library,
    }


def _per_count(batch: Batch, shown: Batch, typical: Tensor) -> Tensor:
    """What a molecule of a batch counts for in the library it is predicted in, (batch, 1): the typical one where none is left."""
    library = batch[keys.LIBRARY]
    nothing_left = (shown[keys.LIBRARY] == 0) & (library > 0)
    return torch.where(nothing_left, typical / library.clamp(min=1.0), 1.0)
