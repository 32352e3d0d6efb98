"""Prediction intervals, calibrated on entries that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lgdist_scvi.data import _keys as keys
from lgdist_scvi.model._prediction import Estimand, _check_arguments, _rows, _seed
from lgdist_scvi.model._predictive import CountPredictive, NormalPredictive, conformal_levels

if TYPE_CHECKING:
    from anndata import AnnData

    from lgdist_scvi.module._vae import Condition, Spots

_LEVELS = np.linspace(0.0, 1.0, 201)
_N_STRATA = 3  # thirds of genes by mean expression
_N_SAMPLES = 25
_N_CALIBRATION_SPOTS = 2048


class IntervalMixin:
    """Prediction intervals of :class:`~lgdist_scvi.LGDiST`."""

    def _predictive(
        self,
        condition: Condition,
        centre: Spots,
        tensors: dict,
        estimand: Estimand,
        seed: int,
        n_samples: int,
        n_steps: int | None = None,
    ) -> CountPredictive | NormalPredictive:
        """Distribution of the measured values of a batch."""
        vae = self.module.vae
        library = tensors[keys.LIBRARY]
        library = torch.where(library > 0, library, vae.typical_library)
        if not vae.counts_are_modelled:
            mean, variance = self._spread(condition, centre, tensors, "captured", n_samples, seed, n_steps)
            variance = variance + vae.likelihood.sigma**2
            return NormalPredictive(mean.cpu().numpy(), variance.cpu().numpy(), library.cpu().numpy())
        mean, variance = self._spread(condition, centre, tensors, "rate", n_samples, seed, n_steps)
        per_count = library / 1e4
        mean, variance = mean * per_count, variance * per_count**2
        noise = mean
        if vae.likelihood.theta is not None:
            noise = mean + (mean**2 + variance) / vae.likelihood.theta
        return CountPredictive(
            mean.cpu().numpy(), (variance + noise).cpu().numpy(), library.cpu().numpy(), captured=estimand == "captured"
        )

    @torch.inference_mode()
    def _calibrate(self) -> None:
        """Learn, per stratum of genes, at which nominal level an interval must be drawn to keep its promise."""
        self.module.eval()
        dataset = self.adata_manager.create_torch_dataset()
        rng = np.random.default_rng(0)
        spots = np.sort(rng.permutation(len(dataset))[:_N_CALIBRATION_SPOTS])
        strata = expression_strata(self.module.vae.gene_rate.cpu().numpy())
        estimands = ("rate", "captured") if self.module.vae.counts_are_modelled else ("captured",)
        ranks: dict[tuple[str, int], list[np.ndarray]] = {(e, s): [] for e in estimands for s in range(_N_STRATA)}
        for _, tensors, _ in self._blocks(self.adata, spots, None, silent=True):
            inputs = self.module._get_inference_input(tensors, "set_aside")
            tokens = self.module.vae.encode_neighbors(inputs["neighbors"], inputs["neighbor_index"], inputs["distance"])
            condition = self.module.vae.encode(inputs["centre"], tokens, inputs["valid"])
            counts = tensors[keys.COUNTS].cpu().numpy()
            scored = (inputs["score"] > 0).cpu().numpy()
            for estimand in estimands:
                entries = scored & (counts > 0) if estimand == "captured" else scored
                predictive = self._predictive(condition, inputs["centre"], tensors, estimand, 0, _N_SAMPLES)
                rank = predictive.mid_rank(counts, rng.random(counts.shape))
                for stratum in range(_N_STRATA):
                    ranks[estimand, stratum].append(rank[entries & (strata == stratum)])
        pooled = {key: np.concatenate(parts) for key, parts in ranks.items()}
        self.calibration_ = {
            "strata": strata,
            "levels": {
                e: np.stack([conformal_levels(pooled[e, s], _LEVELS) for s in range(_N_STRATA)]) for e in estimands
            },
            "n_entries": {e: [len(pooled[e, s]) for s in range(_N_STRATA)] for e in estimands},
        }

    @torch.inference_mode()
    def get_prediction_interval(
        self,
        level: float = 0.9,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int = _N_SAMPLES,
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

        The interval covers what a measurement would show, noise included; it is drawn from latent samples and the
        likelihood's noise, at a level that covered as promised on the entries that training set aside (split conformal
        prediction, per third of the genes by expression). Counts are discrete: an interval includes both of its ends, so
        that its coverage is `level` or somewhat more.

        Parameters
        ----------
        level
            Between 0 and 1.
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
            If the level is not between 0 and 1, or the model is not trained.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        if n_samples < 2:
            raise ValueError(f"an interval needs n_samples of at least 2, got {n_samples}")
        _check_arguments(n_samples, observed, fill)
        adata, estimand = self._prepare(adata), self._estimand(estimand)
        positions, names = self._genes(gene_list)
        rows, seed = _rows(adata, indices), _seed(seed)
        lower = np.empty((len(rows), len(names)), dtype=np.float32)
        upper = np.empty_like(lower)
        drawn = self._drawn_level(level, estimand)
        for place, tensors, library in self._blocks(adata, rows, batch_size, silent):
            condition, centre = self.module.condition(tensors)
            predictive = self._predictive(condition, centre, tensors, estimand, seed, n_samples, n_steps)
            kept, measured = self._measured(tensors, library, fill, positions)
            kept &= observed == "keep"
            for end, sign in ((lower, -1.0), (upper, 1.0)):
                quantile = predictive.quantile(0.5 + sign * 0.5 * drawn)[:, positions]
                end[place] = np.where(kept, measured, quantile)
        if return_numpy:
            return lower, upper
        index = adata.obs_names[rows]
        return tuple(pd.DataFrame(end, index=index, columns=names) for end in (lower, upper))

    def _drawn_level(self, level: float, estimand: Estimand) -> np.ndarray:
        """Nominal level of each gene's intervals, (n_genes,)."""
        table = self.calibration_["levels"][estimand]
        per_stratum = np.array([np.interp(level, _LEVELS, row) for row in table])
        return per_stratum[self.calibration_["strata"]]


def expression_strata(rate: np.ndarray) -> np.ndarray:
    """Third (0, 1, 2) that each gene belongs to by mean expression, (n_genes,)."""
    order = np.argsort(np.argsort(rate, kind="stable"), kind="stable")
    return order * _N_STRATA // len(rate)
