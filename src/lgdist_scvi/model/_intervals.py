"""Prediction intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lgdist_scvi.model._arguments import check_interval, check_question, seed_or_default, spots_at
from lgdist_scvi.model._batches import N_SAMPLES, Estimand
from lgdist_scvi.model._prediction import PredictionMixin

if TYPE_CHECKING:
    from anndata import AnnData


class IntervalMixin(PredictionMixin):
    """Prediction intervals of :class:`~lgdist_scvi.LGDiST`."""

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
        prediction with the finite-sample correction, in strata of genes of like expression and signal, so that
        it covers at `level` however well the model is trained (but for the few choices that the same entries made: when training
        stopped, weights of the experts, noise, and how much to make of regions). `calibration_["n_entries"]` says how many entries of each
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
        Lower and upper end, (n_obs, n_genes) each, log1p(CP10K) in the library that the model was registered with: values of
        hidden counts that are compared with them must be of that library too.

        Raises
        ------
        ValueError
            If the level is out of range, or the model is not trained.
        """
        check_interval(level, n_samples)
        check_question(n_samples, observed, fill)
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
