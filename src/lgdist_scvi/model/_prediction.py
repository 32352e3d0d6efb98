"""What a trained model can be asked: expression, its spread, and latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice, check_positive_int, list_names
from lgdist_scvi._units import COUNTS_PER
from lgdist_scvi.model._arguments import check_library_size, check_question, seed_or_default, spots_at
from lgdist_scvi.model._batches import Estimand, samples_for_spread
from lgdist_scvi.model._regions import RegionMixin
from lgdist_scvi.model._setup import resolve_likelihood

if TYPE_CHECKING:
    from anndata import AnnData


class PredictionMixin(RegionMixin):
    """Inference of :class:`~lgdist_scvi.LGDiST`."""

    # ---- what is asked, and of what

    def _check_trained(self) -> None:
        """Refuse questions before training, and do what an interruption kept the training from."""
        if not self.is_trained_:
            raise ValueError("the model is not trained yet; call model.train() first")
        if self.calibration_ is None:
            if self.adata is None:
                raise ValueError(
                    "training was interrupted before intervals were calibrated; load the model with the data it was trained on"
                )
            self._finish_training()

    def _asked(self, adata: AnnData | None) -> AnnData:
        """The data that are asked about: the registered ones unless others are given."""
        self._check_trained()
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError("the model was loaded without data; pass adata")
        if not adata.n_obs:
            raise ValueError("adata has no spots")
        return adata

    def _prepare(self, adata: AnnData | None, regions: bool = True) -> AnnData:
        """Check the data that are asked about, and find what decoding needs of all of them (not so for latents)."""
        adata = self._validate_anndata(self._asked(adata))
        if adata is not self.adata and keys.MASK in self.registry_["field_registries"]:
            dataset = self.get_anndata_manager(adata, required=True).create_torch_dataset()
            resolve_likelihood(self.gene_likelihood_, dataset)
        self.module.eval()
        self._complete_first_round(adata)
        if regions:
            self._apply_regions(adata)
        return adata

    @torch.inference_mode()
    def _complete_first_round(self, adata: AnnData, hide: Literal["nothing", "set_aside"] = "nothing") -> None:
        """After two rounds of training, let the first one complete what neighbours lack.

        For training, from what is not set aside: calibration must not know those entries by way of the neighbours.
        """
        first = self.module.first_round
        manager = self.get_anndata_manager(adata, required=True)
        manager.fill = manager.regional = None
        if first is None:
            return
        fill = np.empty((adata.n_obs, len(first.vae.gene_rate)), dtype=np.float16)
        for place, tensors, _ in self._batches(adata, np.arange(adata.n_obs)):
            condition = first.condition(tensors, hide)
            value = first.vae.decode(first.latent_mean(condition), condition)
            value = torch.log1p(value * COUNTS_PER) if first.vae.counts_are_modelled else value
            fill[place] = value.cpu().numpy()
        manager.fill = fill

    def _genes(self, gene_list: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions among the registered genes, and names, in the caller's order."""
        names = np.asarray(self.get_var_names_registered())
        if gene_list is None:
            return np.arange(len(names)), names
        gene_list = [gene_list] if isinstance(gene_list, str) else list(gene_list)
        positions = pd.Index(names).get_indexer(gene_list)
        if (positions < 0).any():
            unknown = [gene for gene, position in zip(gene_list, positions, strict=True) if position < 0]
            raise KeyError(
                f"{len(unknown):,} of {len(gene_list):,} genes are not registered with the model: {list_names(unknown)}; "
                f"available: {list_names(names)}"
            )
        return positions, names[positions]

    def get_var_names_registered(self) -> np.ndarray:
        """Names of the registered genes, in the order of the model's output."""
        return np.asarray(self.get_state_registry(keys.COUNTS)["column_names"])

    # ---- values

    def _estimand(self, estimand: Estimand | None) -> Estimand:
        counts = self.module.vae.counts_are_modelled
        if estimand is None:
            return "rate" if counts else "captured"
        check_choice("estimand", estimand, ("rate", "captured"))
        if estimand == "rate" and not counts:
            raise ValueError(
                "estimand='rate' needs a model of counts, but this one saw captured values only (its mask calls every zero "
                "missing); ask for 'captured', or register without such a mask"
            )
        return estimand

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
            not hold, scaled to the error on what training set aside (factors in ``calibration_["std_factors"]``).
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
            Evaluations of the denoiser per sample; ``None``: 10.
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
        """
        check_question(n_samples, observed, fill)
        adata, estimand = self._prepare(adata), self._estimand(estimand)
        positions, names = self._genes(gene_list)
        rows, seed = spots_at(adata, indices), seed_or_default(seed)
        averaged, by_sample = n_samples > 1 and return_mean, n_samples > 1 and not return_mean
        values = np.empty(((n_samples,) if by_sample else ()) + (len(rows), len(names)), dtype=np.float32)
        spread = np.zeros((len(rows), len(names)), dtype=np.float32) if return_std else None

        for place, tensors, library in self._batches(adata, rows, batch_size, silent):
            condition = self.module.condition(tensors)
            kept, measured = self._kept(tensors, library, observed, fill, positions)
            if n_samples > 1 or return_std or not return_mean:
                n_drawn = samples_for_spread(n_samples) if return_std else n_samples
                latents = self._latents(condition, tensors, n_drawn, seed, n_steps)
            if return_std or averaged:
                spread_over_latents = self._spread(latents, condition, tensors, estimand)
            if return_std:
                std = self._std(spread_over_latents, latents, condition, tensors, estimand)
                spread[place] = np.where(kept, 0.0, std.cpu().numpy()[:, positions])
            if averaged:
                mean = spread_over_latents[0]
                block = mean if estimand == "captured" else torch.log1p(mean)
            elif by_sample:
                block = torch.stack([self._value(each, condition, tensors, estimand) for each in latents.unbind(1)])
            else:
                latent = self.module.latent_mean(condition) if return_mean else latents[:, 0]
                block = self._value(latent, condition, tensors, estimand)
            values[..., place, :] = np.where(kept, measured, block.cpu().numpy()[..., positions])
        if not (return_numpy or by_sample):
            index = adata.obs_names[rows]
            values = pd.DataFrame(values, index=index, columns=names)
            spread = None if spread is None else pd.DataFrame(spread, index=index, columns=names)
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
        check_positive_int(n_samples, "n_samples")
        check_library_size(library_size)
        adata = self._prepare(adata)
        self._estimand("rate")
        positions, names = self._genes(gene_list)
        rows, seed = spots_at(adata, indices), seed_or_default(seed)
        by_sample = n_samples > 1 and not return_mean
        values = np.empty(((n_samples,) if by_sample else ()) + (len(rows), len(names)), dtype=np.float32)
        for place, tensors, _ in self._batches(adata, rows, batch_size, silent):
            condition = self.module.condition(tensors)
            if n_samples == 1 and return_mean:
                block = self.module.vae.decode(self.module.latent_mean(condition), condition)
            else:
                latents = self._latents(condition, tensors, n_samples, seed, None)
                block = torch.stack(
                    [self.module.vae.decode(latents[:, sample], condition) for sample in range(n_samples)]
                )
                block = block if by_sample else block.mean(0)
            factor = self.module.vae.usable(tensors[keys.LIBRARY]) if library_size == "latent" else library_size
            values[..., place, :] = (block * factor).cpu().numpy()[..., positions]
        if return_numpy or by_sample:
            return values
        return pd.DataFrame(values, index=adata.obs_names[rows], columns=names)

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        seed: int | None = None,
        batch_size: int | None = None,
        silent: bool = True,
    ) -> np.ndarray:
        """Latent of each spot given all that is observed in its neighbourhood.

        Parameters
        ----------
        give_mean
            Whether to give the posterior mean; else one sample.
        adata, indices, seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        (n_obs, n_latent)
        """
        adata = self._prepare(adata, regions=False)
        rows, seed = spots_at(adata, indices), seed_or_default(seed)
        latent = np.empty((len(rows), self.module.n_latent), dtype=np.float32)
        for place, tensors, _ in self._batches(adata, rows, batch_size, silent):
            condition = self.module.condition(tensors)
            if give_mean:
                block = self.module.latent_mean(condition)
            else:
                block = self._latents(condition, tensors, 1, seed, None)[:, 0]
            latent[place] = block.cpu().numpy()
        return latent
