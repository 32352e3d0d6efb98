"""Prediction intervals, calibrated on entries that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lgdist_scvi._expression import COUNTS_PER
from lgdist_scvi.data import _keys as keys
from lgdist_scvi.metrics._poisson import variance_given_positive
from lgdist_scvi.model._arguments import check_choices, check_interval, seed_or_default, spots_at
from lgdist_scvi.model._batches import N_SAMPLES, Estimand
from lgdist_scvi.model._conformal import N_THIRDS, Deviations, calibrate, expression_strata
from lgdist_scvi.model._holes import holes
from lgdist_scvi.model._prediction import PredictionMixin

if TYPE_CHECKING:
    from anndata import AnnData

    from lgdist_scvi.data import NeighborhoodDataset

_N_SPOTS, _N_HIDDEN_SPOTS, _N_NOISE_SPOTS = 1024, 512, 512  # that calibrate, chosen at random
_N_NOISE_SAMPLES = 8


class IntervalMixin(PredictionMixin):
    """Prediction intervals of :class:`~lgdist_scvi.LGDiST`."""

    @torch.inference_mode()
    def _fit_noise(self, spots: np.ndarray) -> None:
        """Bring the likelihood's noise to the size seen on set-aside entries, one factor per third of the genes.

        Training hides far more than prediction does, so that the noise it learns does not fit prediction.
        """
        vae = self.module.vae
        totals = torch.zeros(3, len(vae.gene_rate), dtype=torch.float64)
        for _, tensors, _ in self._batches(self.adata, spots):
            aside = self.module.set_aside(tensors[keys.SPOT]) & (tensors[keys.MASK] > 0)
            shown = _without(tensors, aside, keep_library=False)
            measured = _relative_to(tensors, shown, vae.typical_library)
            condition = self.module.condition(shown)
            latents = self._latents(condition, shown, _N_NOISE_SAMPLES, seed=0, n_steps=None)
            mean, variance = self._as_modelled(self._spread(latents, condition, shown, self._modelled), shown)
            if vae.counts_are_modelled:
                values, sampling = measured, mean
            else:
                scale = (COUNTS_PER / vae.usable(shown[keys.LIBRARY])).expand_as(measured)
                values, sampling = torch.log1p(measured * scale), torch.zeros_like(mean)
                counts, scale = (part[aside].cpu().double().numpy() for part in (measured, scale))
                sampling[aside] = torch.from_numpy(variance_given_positive(counts, scale)).to(sampling)
            parts = ((values - mean) ** 2 - variance, sampling, vae.likelihood.noise_variance(mean, variance))
            for total, part in zip(totals, parts, strict=True):
                total += (part * aside).double().sum(0).cpu()
        third = torch.from_numpy(expression_strata(vae.gene_rate.cpu().numpy()))
        pooled = torch.zeros(len(totals), N_THIRDS, dtype=torch.float64).index_add_(1, third, totals)
        if (pooled[-1] > 0).all():
            vae.likelihood.scale_noise(*pooled[:, third].float().to(vae.gene_rate.device))

    def _calibrate(self) -> None:
        """Learn how far out intervals must reach, per stratum of genes, to cover as often as they say."""
        self.module.eval()
        self._complete_first_round(self.adata, "set_aside")
        rng = np.random.default_rng(0)
        whole = self.module.spots_set_aside(self.adata.n_obs)
        spots = rng.permutation(np.setdiff1d(np.arange(self.adata.n_obs), whole))[:_N_SPOTS]
        self._fit_noise(np.sort(spots[:_N_NOISE_SPOTS]))
        rate = self.module.vae.gene_rate.cpu().numpy()
        calibration = calibrate(self._deviations(np.sort(spots)), rate)
        whole = np.sort(rng.permutation(whole)[:_N_HIDDEN_SPOTS])
        calibration["hidden_spots"] = calibrate(self._deviations(whole), rate)
        dataset = self.adata_manager.create_torch_dataset()
        parts = [
            self._deviations(middles, dataset.without(hidden))
            for middles, hidden in holes(dataset.graph, rng.permutation(whole), dataset.samples, dataset.has_content)
        ]
        calibration["holes"] = calibrate(_joined([self._deviations(whole[:0]), *parts]), rate)
        self.calibration_ = calibration  # whole or not at all: Ctrl-C may come at any time

    @torch.inference_mode()
    def _deviations(self, spots: np.ndarray, dataset: NeighborhoodDataset | None = None) -> Deviations:
        """How far out the entries of some spots lie that training set aside, in each estimand's predictive distribution.

        They are hidden as users hide entries, from the mask and from the library, while everything else that is known is
        visible: then their predictions are what users get.
        """
        vae = self.module.vae
        estimands = ("rate", "captured") if vae.counts_are_modelled else ("captured",)
        # what captured values of a hidden spot are relative to can only be a library that the user knows
        library_is_known = not (vae.counts_are_modelled or vae.closed)
        nothing = (np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        deviations = [dict.fromkeys(estimands, nothing)]
        for place, tensors, _ in self._batches(self.adata, spots, dataset=dataset):
            pattern = self.module.set_aside(tensors[keys.SPOT])
            aside = pattern & (tensors[keys.MASK] > 0)
            shown = _without(tensors, aside, keep_library=library_is_known and bool(pattern.all()))
            counts = _relative_to(tensors, shown, vae.typical_library).cpu().numpy()
            condition = self.module.condition(shown)
            latents = self._latents(condition, shown, N_SAMPLES, seed=0, n_steps=None)
            spread = self._spread(latents, condition, shown, self._modelled)
            predictive = self._predictive(spread, shown, estimands[0])
            entries = aside.cpu().numpy()
            deviations.append({})
            for estimand in estimands:
                # both estimands of a count model look at the same counts
                deviation = (predictive if estimand == estimands[0] else predictive.given_captured()).deviation(counts)
                rows, genes = np.nonzero(entries & (counts > 0) if estimand == "captured" else entries)
                deviations[-1][estimand] = deviation[rows, genes], genes, place[rows]
        return _joined(deviations)

    @torch.inference_mode()
    def get_prediction_interval(
        self,
        level: float = 0.9,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int = N_SAMPLES,
        observed: str = "keep",
        fill: str = "zeros",
        estimand: Estimand | None = None,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        return_numpy: bool | None = None,
        silent: bool = True,
    ) -> tuple[Any, Any]:
        """Give an interval that holds the measured value of an entry with probability `level`.

        The interval covers what a measurement would show, noise included. Its centre and shape come from latent samples and
        the likelihood's noise. How far it reaches is calibrated on the entries that training set aside: split conformal
        prediction with the finite-sample correction, in up to five strata of each third of the genes by expression, so that
        it covers at `level` however well the model is trained. `calibration_["n_entries"]` says how many entries of each
        third calibrated it, and `calibration_["coverage"]` how often intervals that one half of the spots calibrates cover the
        entries of the other half, at 0.5, 0.8, 0.9 and 0.95. Spots of which nothing is visible have a calibration of their own,
        on one spot in 25 that training set aside whole, and so have those without a visible neighbour, in holes dug around the
        same spots.

        What holds is coverage of entries and spots hidden like those: at random, on the slides of the training. Where an entry's
        own value was visible, its interval is about a second measurement as deep as the first.

        Counts are discrete. Both ends are values that a count can take, and belong to the interval; the narrowest interval is
        a single value, the median; no random noise breaks ties. Coverage over the entries of a stratum is `level`, and more
        only where the median alone covers more, as it does in sparse genes. With ``estimand="captured"`` coverage is that of
        positive counts, and intervals start at one count or above.

        Parameters
        ----------
        level
            Above 0, and at most 0.9999.
        n_samples
            Latent samples the spread is taken from.
        adata, indices, gene_list, observed, fill, estimand, seed, n_steps, batch_size, return_numpy, silent
            As in :meth:`get_completed_expression`. Kept entries have an interval of width 0.

        Returns
        -------
        Lower and upper end, (n_obs, n_genes) each, log1p(CP10K).

        Raises
        ------
        ValueError
            If the level is out of range, or the model is not trained.
        """
        check_interval(level, n_samples)
        check_choices(n_samples, observed, fill)
        adata, estimand = self._prepare(adata), self._estimand(estimand)
        positions, names = self._genes(gene_list)
        rows, seed = spots_at(adata, indices), seed_or_default(seed)
        lower = np.empty((len(rows), len(names)), dtype=np.float32)
        upper = np.empty_like(lower)
        for place, tensors, library in self._batches(adata, rows, batch_size, silent):
            condition = self.module.condition(tensors)
            latents = self._latents(condition, tensors, n_samples, seed, n_steps)
            spread = self._spread(latents, condition, tensors, self._modelled)
            predictive = self._predictive(spread, tensors, estimand)
            kept, measured = self._kept(tensors, library, observed, fill, positions)
            ends = self._interval(predictive, tensors, estimand, level, positions)
            for end, values in zip((lower, upper), ends, strict=True):
                end[place] = np.where(kept, measured, values)
        if return_numpy:
            return lower, upper
        index = adata.obs_names[rows]
        return tuple(pd.DataFrame(end, index=index, columns=names) for end in (lower, upper))


def _joined(parts: list[Deviations]) -> Deviations:
    """Deviations of all parts."""
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


def _relative_to(
    tensors: dict[str, torch.Tensor], shown: dict[str, torch.Tensor], typical: torch.Tensor
) -> torch.Tensor:
    """Counts of a batch in the library that they are predicted in: the typical one where no other is left."""
    counts, library = tensors[keys.COUNTS], tensors[keys.LIBRARY]
    nothing_left = (shown[keys.LIBRARY] == 0) & (library > 0)
    brought = torch.round(counts * typical / library.clamp(min=1.0)).clamp(min=1.0) * (counts > 0)
    return torch.where(nothing_left, brought, counts)
