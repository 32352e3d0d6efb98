"""Expression, intervals, measurements and latents of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from lgdist_scvi import _keys as keys
from lgdist_scvi.inference import MEASURED, N_SAMPLES, in_log1p
from lgdist_scvi.model.base._memory import check_fits
from lgdist_scvi.model.base._query import (
    Query,
    check_interval,
    check_library_size,
    check_question,
    refuse_unsupported,
    samples_for_spread,
)
from lgdist_scvi.module.likelihood import Estimand

if TYPE_CHECKING:
    from sparse import GCXS


class ExpressionMixin:
    """Questions to a trained model."""

    _depth_is_free = False  # whether an answer may be for another depth than that of the counts

    def get_var_names_registered(self) -> np.ndarray:
        """Names of the registered genes, in the order of the model's output."""
        return np.asarray(self.get_state_registry(keys.COUNTS)["column_names"])

    @torch.inference_mode()
    def get_completed_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        return_std: bool = False,
        observed: Literal["keep", "model"] = "keep",
        fill: Literal["zeros", "masked"] = "zeros",
        estimand: Estimand | None = None,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        return_numpy: bool | None = None,
        silent: bool = True,
        **unsupported: Any,
    ) -> pd.DataFrame | np.ndarray | tuple:
        """Complete expression, in log1p(CP10K).

        Parameters
        ----------
        adata
            Data like those registered (genes in any order); ``None``: the registered data.
        indices
            Spots; ``None``: all. The first call on other data than those of the training predicts all its spots, to estimate deviations
            of slides and regions.
        gene_list
            Genes, in the order of the result; ``None``: all registered ones.
        n_samples
            Samples of the latent. 1 with `return_mean`: the posterior mean, without sampling. They are samples of the expected
            value, without measurement noise: :meth:`posterior_predictive_sample` draws measurements.
        return_mean
            Whether to average over samples: of rates before the logarithm is taken.
        return_std
            Whether to return the standard deviation of the expected value too, 0 where a measured value is kept. It combines the
            spread over samples (25 if `n_samples` is 1) with the uncertainty about one gene in one spot, which latent samples do
            not hold, scaled to the error on what training set aside (factors in ``calibration_.std_factors``).
        observed
            ``"keep"``: measured entries stay exactly as measured, and only what `fill` names is replaced. ``"model"``: the
            model's value everywhere.
        fill
            ``"zeros"``: zeros and masked entries; ``"masked"``: masked entries only.
        estimand
            ``"rate"``: the expected share of the library, zeros being data. ``"captured"``: the expected value given that the
            count is positive. ``None``: what the likelihood offers, rate first.
        seed
            Of the samples; ``None``: ``scvi.settings.seed``. A sample is a function of the seed and the spot's row alone.
        n_steps
            Evaluations of the denoiser per sample; ``None``: 3.
        batch_size
            Spots held in memory at a time; the result does not depend on it.
        return_numpy
            Return arrays instead of data frames.
        silent
            Whether to hide the progress bar.

        Returns
        -------
        (n_obs, n_genes), a data frame unless `return_numpy`; with ``n_samples > 1`` and not `return_mean` an array
        (n_samples, n_obs, n_genes). With `return_std` a pair of the result and its standard deviation.

        Raises
        ------
        ValueError
            If the model is not trained, or the likelihood does not offer the estimand.
        KeyError
            If genes are not registered.
        MemoryError
            If the answer takes more than half of the free memory; :meth:`complete` writes it into a store.
        """
        refuse_unsupported("get_completed_expression", unsupported)
        check_question(n_samples, observed, fill)
        averaged, by_sample = n_samples > 1 and return_mean, n_samples > 1 and not return_mean
        query = Query(
            self, adata, indices, gene_list, estimand, seed, batch_size, silent,
            n_samples=samples_for_spread(n_samples) if return_std else n_samples, n_steps=n_steps,
        )  # fmt: skip
        estimand, positions = query.estimand, query.positions
        check_fits(query.shape, 4 * int(np.prod(query.shape)) * ((n_samples if by_sample else 1) + return_std))
        values = np.empty(((n_samples,) if by_sample else ()) + query.shape, dtype=np.float32)
        spread = np.zeros(query.shape, dtype=np.float32) if return_std else None
        for place, prediction in query.predictions():
            known, origin = query.origins(prediction, observed, fill)
            kept = origin == MEASURED
            if return_std:
                std = prediction.std(estimand, query.calibration)
                spread[place] = np.where(kept, 0.0, std.cpu().numpy()[:, positions])
            if averaged:
                block = in_log1p(prediction.moments(estimand)[0], estimand)
            elif by_sample:
                block = torch.stack([prediction.value(each, estimand) for each in prediction.latents().unbind(1)])
            elif return_mean:
                block = prediction.mean_value(estimand)
            else:
                block = prediction.value(prediction.latents()[:, 0], estimand)
            values[..., place, :] = np.where(kept, known, block.cpu().numpy()[..., positions])
        if not (return_numpy or by_sample):
            values, spread = query.frame(values), None if spread is None else query.frame(spread)
        return (values, spread) if return_std else values

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 1,
        return_mean: bool = True,
        seed: int | None = None,
        batch_size: int | None = None,
        return_numpy: bool | None = None,
        silent: bool = True,
        **unsupported: Any,
    ) -> pd.DataFrame | np.ndarray:
        """Expected rate of every entry, as scvi-tools means it.

        Parameters
        ----------
        library_size
            Rates are multiplied by it: rows sum to it where all genes are registered (no `size_factor_key`). ``"latent"``: by
            each spot's own library size, in counts (of a spot without any, the typical one).
        adata, indices, gene_list, n_samples, return_mean, seed, batch_size, return_numpy, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        (n_obs, n_genes), not in logarithms; with ``n_samples > 1`` and not `return_mean` (n_samples, n_obs, n_genes).

        Raises
        ------
        ValueError
            If the model is not trained, or an argument is out of range.
        """
        refuse_unsupported("get_normalized_expression", unsupported)
        check_library_size(library_size)
        query = Query(
            self, adata, indices, gene_list, "rate", seed, batch_size, silent, n_samples=n_samples
        )  # fmt: skip
        by_sample = n_samples > 1 and not return_mean
        check_fits(query.shape, 4 * int(np.prod(query.shape)) * (n_samples if by_sample else 1))
        values = np.empty(((n_samples,) if by_sample else ()) + query.shape, dtype=np.float32)
        for place, prediction in query.predictions():
            if n_samples == 1 and return_mean:
                block = prediction.decoded(prediction.latent_mean())
            else:
                block = torch.stack([prediction.decoded(each) for each in prediction.latents().unbind(1)])
                block = block if by_sample else block.mean(0)
            factor = prediction.library if library_size == "latent" else library_size
            values[..., place, :] = (block * factor).cpu().numpy()[..., query.positions]
        return values if return_numpy or by_sample else query.frame(values)

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        return_dist: bool = False,
        seed: int | None = None,
        batch_size: int | None = None,
        silent: bool = True,
        **unsupported: Any,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent of each spot given all that is observed in its neighbourhood.

        Parameters
        ----------
        give_mean
            Whether to give the posterior mean; else one sample.
        return_dist
            Whether to give the mean and the variance over 25 samples of the posterior instead.
        adata, indices, seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        (n_obs, n_latent); with `return_dist` a pair of them.
        """
        refuse_unsupported("get_latent_representation", unsupported)
        query = Query(
            self,
            adata,
            indices,
            seed=seed,
            batch_size=batch_size,
            silent=silent,
            n_samples=N_SAMPLES if return_dist else 1,
            region_effects=False,
        )
        latent, variance = np.empty((2, len(query.rows), self.module.config.n_latent), dtype=np.float32)
        for place, prediction in query.predictions():
            if return_dist:
                variance[place] = prediction.latents().var(1).cpu().numpy()
            mean = give_mean or return_dist
            block = prediction.latent_mean() if mean else prediction.latents()[:, 0]
            latent[place] = block.cpu().numpy()
        return (latent, variance) if return_dist else latent

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
        **unsupported: Any,
    ) -> tuple[Any, Any]:
        """Give an interval that holds the measured value of an entry with probability `level`.

        The interval covers what a measurement would show, noise included. Its centre and shape come from latent samples and
        the likelihood's noise. How far it reaches is calibrated on the entries that training set aside: split conformal
        prediction with the finite-sample correction, in strata of genes of like expression and signal, so that
        it covers at `level` however well the model is trained (but for the few choices that the same entries made: when training
        stopped, weights of the experts, noise, and how much to make of regions). `calibration_.hidden.n_entries` says how many entries of each
        third calibrated it, and `calibration_.hidden.coverage` how often intervals that one half of the spots calibrates cover the
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
        library_size = unsupported.pop("library_size", None) if self._depth_is_free else None
        refuse_unsupported("get_prediction_interval", unsupported)
        check_interval(level, n_samples)
        check_question(n_samples, observed, fill)
        query = Query(
            self, adata, indices, gene_list, estimand, seed, batch_size, silent, library_size=library_size,
            n_samples=n_samples, n_steps=n_steps,
        )  # fmt: skip
        check_fits(query.shape, 8 * int(np.prod(query.shape)))
        lower, upper = np.empty((2, *query.shape), dtype=np.float32)
        for place, prediction in query.predictions():
            known, origin = query.origins(prediction, observed, fill)
            ends = prediction.interval(query.estimand, level, query.positions, query.calibration)
            for end, values in zip((lower, upper), ends, strict=True):
                end[place] = np.where(origin == MEASURED, known, values)
        return (lower, upper) if return_numpy else (query.frame(lower), query.frame(upper))

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        silent: bool = True,
        **unsupported: Any,
    ) -> GCXS:
        """Draw the counts that a second measurement as deep as the first would show.

        A latent is sampled, decoded, and measured with the likelihood's noise, which training brings to the size seen on
        set-aside entries. For :class:`scvi.criticism.PosteriorPredictiveCheck`, :func:`lgdist_scvi.metrics.crps` and
        :func:`lgdist_scvi.metrics.energy_score`. A model of captured values gives counts of at least 1: what would be seen,
        given that the gene is captured.

        Parameters
        ----------
        n_samples
            Number of draws.
        seed
            As in :meth:`get_completed_expression`; draws are a function of the seed, the spot's row and `n_samples`.
        adata, indices, gene_list, n_steps, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Counts, (n_obs, n_genes), or (n_obs, n_genes, n_samples) if ``n_samples > 1``, as scvi-tools has them.

        Raises
        ------
        ValueError
            If the model is not trained, or an argument is out of range.
        KeyError
            If genes are not registered.
        """
        from sparse import GCXS

        refuse_unsupported("posterior_predictive_sample", unsupported)
        query = Query(
            self, adata, indices, gene_list, None, seed, batch_size, silent, n_samples=n_samples, n_steps=n_steps
        )
        check_fits((*query.shape, n_samples), 4 * n_samples * int(np.prod(query.shape)))
        counts = np.empty((*query.shape, n_samples), dtype=np.float32)
        for place, prediction in query.predictions():
            drawn = prediction.measurements().cpu().numpy()  # (batch, n_samples, n_genes)
            counts[place] = drawn[:, :, query.positions].transpose(0, 2, 1)
        return GCXS.from_numpy(counts if n_samples > 1 else counts[:, :, 0])

    def differential_expression(self, *args: Any, **kwargs: Any) -> None:
        """Refused: completed values are no measurements, and tests on them find what the model put there.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "completed values are no measurements: test the raw counts, for example with sc.tl.rank_genes_groups on normalised "
            "counts or on pseudobulks"
        )
