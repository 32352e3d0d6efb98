"""What training set aside calibrates: regional deviations, noise, intervals, and the size of the standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi._units import COUNTS_PER
from lgdist_scvi.metrics._poisson import variance_given_positive
from lgdist_scvi.model._batches import N_SAMPLES
from lgdist_scvi.model._conformal import N_THIRDS, REPORTED_LEVELS, Scores, calibrate, expression_strata
from lgdist_scvi.model._holes import holes
from lgdist_scvi.model._prediction import PredictionMixin
from lgdist_scvi.model._regions import Strays
from lgdist_scvi.train import named_step

if TYPE_CHECKING:
    from lgdist_scvi.data import NeighborhoodDataset
    from lgdist_scvi.module._neighborhood import Condition

_N_SPOTS, _N_HIDDEN_SPOTS, _N_NOISE_SPOTS = 4096, 512, 512  # that calibrate, chosen at random
_N_NOISE_SAMPLES = 8
_MIN_SPOTS = 5  # that tell of the size of the error
_N_SPLITS = 2  # of the molecules of visible counts: each tells by other molecules
_PRIOR_ERROR, _SMALLEST_RATIO = 2.0, 0.5  # of the ratio of variances


@dataclass
class _Case:
    """A batch of spots of which something is hidden, and what is said of it.

    Attributes
    ----------
    place
        Positions of the spots among those asked for, (batch,).
    shown
        The batch without what is hidden; its library is the one that predictions are for.
    hidden
        Entries that are asked about, bool, (batch, n_genes).
    counts
        What they are compared with, (batch, n_genes).
    per_count
        What each of these molecules counts for in the library of `shown`, (batch, 1): 1 where that is its own.
    condition, latents
        What is known, and samples of the latent.
    spread
        Mean and variance over samples of what is modelled.
    """

    place: np.ndarray
    shown: dict[str, torch.Tensor]
    hidden: torch.Tensor
    counts: torch.Tensor
    per_count: torch.Tensor
    condition: Condition
    latents: torch.Tensor
    spread: tuple[torch.Tensor, torch.Tensor]

    @property
    def counts_there(self) -> torch.Tensor:
        """Counts as they might be in the library of `shown`, (batch, n_genes): whole, and positive where they were."""
        brought = torch.round(self.counts * self.per_count).clamp(min=1.0) * (self.counts > 0)
        return torch.where(self.per_count == 1.0, self.counts, brought)


class CalibrationMixin(PredictionMixin):
    """Calibration of :class:`~lgdist_scvi.LGDiST`."""

    @torch.inference_mode()
    def _calibrate(self, step: Callable[[str], AbstractContextManager] | None = None) -> None:
        """Learn what to make of regions, the size of the noise, how far intervals reach, and the size of the standard deviation.

        `step` gives each of these a name, see :func:`lgdist_scvi.train.named_step`.
        """
        step = step or partial(named_step, self)
        self.module.eval()
        self._complete_first_round(self.adata, "set_aside")
        with step("region_effects") as report:
            strays = self._fit_regions()
            report["shrinkage"] = dict(
                zip(("slide", "surroundings"), self.module.vae.regional_shrinkage.tolist(), strict=True)
            )
        rng = np.random.default_rng(0)
        whole = self.module.spots_set_aside(self.adata.n_obs)
        order = rng.permutation(np.setdiff1d(np.arange(self.adata.n_obs), whole))
        with step("noise") as report:
            report["variance"] = self._fit_noise(np.sort(order[:_N_NOISE_SPOTS]))
        with step("intervals") as report:
            spots = np.sort(order[:_N_SPOTS])
            calibration, of_hidden = self._from_cases(self._cases(spots, N_SAMPLES))
            counts_are_modelled = self.module.vae.counts_are_modelled
            of_visible = self._std_factor_visible(spots) if counts_are_modelled else of_hidden
            whole = np.sort(rng.permutation(whole)[:_N_HIDDEN_SPOTS])
            calibration["hidden_spots"], of_spots = self._from_cases(self._cases(whole, N_SAMPLES))
            dataset = self.adata_manager.create_torch_dataset()
            around = holes(dataset.graph, rng.permutation(whole), dataset.samples, dataset.has_content)
            calibration["holes"], of_holes = self._from_cases(
                case for middles, hidden in around for case in self._cases_in_holes(middles, hidden, dataset, strays)
            )
            calibration["std_factors"] = {
                "visible": of_visible, "hidden": of_hidden, "hidden_spots": of_spots, "holes": of_holes
            }  # fmt: skip
            report["std_factors"] = calibration["std_factors"]
            for estimand, coverage in calibration[
                "coverage"
            ].items():  # by the half of the spots that did not calibrate
                levels = map(str, REPORTED_LEVELS)
                report[f"coverage_{estimand}"] = dict(zip(levels, coverage[:, 0].tolist(), strict=True))
        self.calibration_ = calibration  # whole or not at all: Ctrl-C may come at any time

    def _cases(self, spots: np.ndarray, n_samples: int, dataset: NeighborhoodDataset | None = None) -> Iterator[_Case]:
        """Spots without the entries that training set aside.

        They are hidden as users hide entries, from the mask and from the library, while everything else that is known is
        visible: then their predictions are what users get. Of a hidden spot, a library that is not the sum over the genes is known.
        """
        vae = self.module.vae
        for place, tensors, _ in self._batches(self.adata, spots, dataset=dataset):
            pattern = self.module.set_aside(tensors[keys.SPOT])
            hidden = pattern & (tensors[keys.MASK] > 0)
            shown = _without(tensors, hidden, keep_library=not vae.closed and bool(pattern.all()))
            per_count = _per_count(tensors, shown, vae.typical_library)
            condition = self.module.condition(shown)
            latents = self._latents(condition, shown, n_samples, seed=0, n_steps=None)
            spread = self._spread(latents, condition, shown, self._modelled)
            yield _Case(place, shown, hidden, tensors[keys.COUNTS], per_count, condition, latents, spread)

    def _cases_in_holes(
        self, middles: np.ndarray, hidden: np.ndarray, dataset: NeighborhoodDataset, strays: Strays | None
    ) -> Iterator[_Case]:
        """Spots in the middle of holes, as if nothing of the spots around them were visible, to their regions neither."""
        if strays is not None:
            self._apply_strays(strays.without(hidden), middles)
        return self._cases(middles, N_SAMPLES, dataset.without(hidden))

    def _errors(self, case: _Case, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error of a mean about hidden counts, and the part of it that sampling noise is, in the likelihood's units.

        The variance of a Poisson count is estimated by the count itself: as with its mean, the noise is taken off on average, but
        far less chance is left in the difference where counts are 0 or 1.
        """
        vae = self.module.vae
        if vae.counts_are_modelled:
            return (case.counts * case.per_count - mean) ** 2, case.counts * case.per_count**2
        scale = COUNTS_PER / vae.usable(case.shown[keys.LIBRARY])
        sampling = variance_given_positive(mean.cpu().double().numpy(), (scale * case.per_count).cpu().double().numpy())
        return (torch.log1p(case.counts_there * scale) - mean) ** 2, torch.from_numpy(sampling).to(mean)

    def _fit_noise(self, spots: np.ndarray) -> dict[str, float]:
        """Bring the likelihood's noise to the size seen on set-aside entries, one factor per third of the genes.

        Training hides far more than prediction does, so that the noise it learns does not fit prediction. What was seen, the part of
        it that is sampling noise, and what was expected are returned, summed over entries.
        """
        vae = self.module.vae
        totals = torch.zeros(3, len(vae.gene_rate), dtype=torch.float64)
        for case in self._cases(spots, _N_NOISE_SAMPLES):
            mean, variance = self._as_modelled(case.spread, case.shown)
            square, sampling = self._errors(case, mean)
            parts = (square - variance, sampling, vae.likelihood.noise_variance(mean, variance))
            for total, part in zip(totals, parts, strict=True):
                total += (part * case.hidden).cpu().double().sum(0)
        third = torch.from_numpy(expression_strata(vae.expression.cpu().numpy()))
        pooled = torch.zeros(len(totals), N_THIRDS, dtype=torch.float64).index_add_(1, third, totals)
        if (pooled[-1] > 0).all():
            vae.likelihood.scale_noise(*pooled[:, third].float().to(vae.gene_rate.device))
        return dict(zip(("seen", "sampling", "expected"), totals.sum(1).tolist(), strict=True))

    def _from_cases(self, cases: Iterable[_Case]) -> tuple[dict[str, Any], float]:
        """Calibration of intervals, see :func:`calibrate`, and the factor of the standard deviation."""
        estimands = ("rate", "captured") if self.module.vae.counts_are_modelled else ("captured",)
        nothing = (np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        scores: list[Scores] = [dict.fromkeys(estimands, nothing)]
        squares, predictives = [], []
        for case in cases:
            squares.append(self._squares(case))
            predictive = self._predictive(case.spread, case.shown, estimands[0])
            predictives.append(_moments(predictive.mean, predictive.variance))
            counts, hidden = case.counts_there.cpu().numpy(), case.hidden.cpu().numpy()
            scores.append({})
            for estimand in estimands:
                rows, genes = np.nonzero(hidden & (counts > 0) if estimand == "captured" else hidden)
                entries = predictive.of_entries(rows, genes)
                # both estimands of a count model look at the same counts
                entries = entries if estimand == estimands[0] else entries.given_captured()
                scores[-1][estimand] = entries.score(counts[rows, genes]), genes, case.place[rows]
        rate = self.module.vae.expression.cpu().numpy()
        calibration = calibrate(_joined(scores), rate, _signal(predictives, len(rate)))
        return calibration, _std_factor(squares)

    def _squares(self, case: _Case, share: float = 1.0) -> np.ndarray:
        """Squared error without the noise of counts and of few samples, and the variance that is claimed, (2, batch).

        Sums over hidden entries. Counts are weighted by the inverse of their gene's mean, as in the deviance.

        Parameters
        ----------
        share
            Share of the library that the hidden counts were found in.
        """
        vae, spread = self.module.vae, case.spread
        variance = self._variance(spread, case.latents, case.condition, case.shown, self._modelled)
        mean, variance = self._as_modelled((spread[0], variance), case.shown)
        of_samples = self._as_modelled(spread, case.shown)[1] / case.latents.shape[1]
        square, sampling = self._errors(case, share * mean)
        weight = case.hidden / vae.gene_rate.clamp(min=1e-9) if vae.counts_are_modelled else case.hidden
        parts = (square - sampling - share**2 * of_samples, share**2 * variance)
        return torch.stack([(part * weight).cpu().double().sum(1) for part in parts]).numpy()

    def _std_factor_visible(self, spots: np.ndarray) -> float:
        """Factor of the standard deviation of visible entries: half of the molecules are shown, and predict the other half.

        Asked of entries that training set aside, in neighbours too: of others it knows both halves.
        """
        generator, squares = torch.Generator().manual_seed(0), []
        for place, tensors, _ in self._batches(self.adata, spots):
            of_splits = []
            for _ in range(_N_SPLITS):
                inputs = self.module._get_inference_input(tensors, "split", generator)
                condition = self.module.vae.encode(inputs["centre"], self.module.around(inputs))
                latents = self._latents(condition, tensors, _N_NOISE_SAMPLES, seed=0, n_steps=None)
                spread = self._spread(latents, condition, tensors, self._modelled)
                counts, hidden = inputs["target"], inputs["score"] > 0
                case = _Case(place, tensors, hidden, counts, torch.ones_like(counts[:, :1]), condition, latents, spread)
                of_splits.append(self._squares(case, share=0.5))
            squares.append(np.mean(of_splits, axis=0))
        return _std_factor(squares)


def _std_factor(squares: list[np.ndarray]) -> float:
    """Factor that brings the standard deviation to the size of the error, from both squares of each spot, (2, n) in parts.

    Few spots, or sparse ones, tell little: the ratio of variances is averaged with 1, by their precisions, as if that were known
    with a standard error of 2, and is at least a half.
    """
    error, claimed = np.concatenate(squares, axis=1) if squares else np.zeros((2, 0))
    error, claimed = error[claimed > 0], claimed[claimed > 0]
    n_spots = len(claimed)
    if n_spots < _MIN_SPOTS:
        return 1.0
    ratio = error.sum() / claimed.sum()
    squared_error = ((error - ratio * claimed) ** 2).sum() * n_spots / (n_spots - 1) / claimed.sum() ** 2
    doubt = squared_error / (squared_error + _PRIOR_ERROR**2)
    return float(np.sqrt(max(ratio + doubt * (1.0 - ratio), _SMALLEST_RATIO)))


def _moments(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Number of spots, and sums over them of predicted means, their squares, and predictive variances, (4, n_genes)."""
    mean = mean.astype(np.float64)
    return np.stack([np.full(mean.shape[1], len(mean)), mean.sum(0), (mean**2).sum(0), variance.sum(0)])


def _signal(moments: list[np.ndarray], n_genes: int) -> np.ndarray:
    """Variance between spots of what is predicted, relative to the predictive variance, (n_genes,); 0 without a spot.

    What was hidden has no say in it, so that strata by it leave calibration as valid as it is.
    """
    if not moments:
        return np.zeros(n_genes)
    n, *totals = np.sum(moments, axis=0)
    mean, square, variance = (total / n for total in totals)
    return (square - mean**2) / np.maximum(variance, 1e-12)


def _joined(parts: list[Scores]) -> Scores:
    """Scores of all parts."""
    return {
        estimand: tuple(map(np.concatenate, zip(*(part[estimand] for part in parts), strict=True)))
        for estimand in parts[0]
    }


def _without(tensors: dict[str, torch.Tensor], hidden: torch.Tensor, keep_library: bool) -> dict[str, torch.Tensor]:
    """A batch as it would be if these entries of its spots were missing, (batch, n_genes)."""
    left = (~hidden).float()
    lost = 0.0 if keep_library else (tensors[keys.COUNTS] * hidden).sum(dim=1, keepdim=True)
    library = (tensors[keys.LIBRARY] - lost).clamp(min=0.0)
    return {
        **tensors,
        keys.COUNTS: tensors[keys.COUNTS] * left,
        # as in the data set, a spot without counts says nothing
        keys.MASK: tensors[keys.MASK] * left * (library > 0),
        keys.LIBRARY: library,
    }


def _per_count(tensors: dict[str, torch.Tensor], shown: dict[str, torch.Tensor], typical: torch.Tensor) -> torch.Tensor:
    """What a molecule of a batch counts for in the library it is predicted in, (batch, 1): the typical one where none is left."""
    library = tensors[keys.LIBRARY]
    nothing_left = (shown[keys.LIBRARY] == 0) & (library > 0)
    return torch.where(nothing_left, typical / library.clamp(min=1.0), 1.0)
