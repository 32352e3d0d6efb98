"""What a trained adapter answers: patches for expression, and expression for patches."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi.utils import track

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_positive_int
from lgdist_scvi._patches import check_patches, resize_patches
from lgdist_scvi.model._c2lst_central import N_STEPS, CentralModel, noise_of, seed_of
from lgdist_scvi.model._c2lst_expression import conditions, expected_values, profiles, read_counts
from lgdist_scvi.model._c2lst_pairs import drawn_rows
from lgdist_scvi.model._c2lst_posterior import ExpressionPosterior, checked_prior, profile_names

GUIDANCE = 2.0
TEMPERATURE = 3.0


class GenerationMixin:
    """Patches for expression, and expression for patches."""

    central: CentralModel

    def generate(
        self,
        expression: AnnData | Any = None,
        n_per_spot: int = 1,
        guidance_scale: float = GUIDANCE,
        n_steps: int = N_STEPS,
        seed: int | None = None,
        batch_size: int = 32,
        silent: bool = True,
    ) -> np.ndarray:
        """Generate patches of tissue for expression.

        Parameters
        ----------
        expression
            ``None``: the training spots. An AnnData with counts (or `expression_layer`) as in the training, such as
            ``adata[rows]``; patches are not needed, and genes that it lacks are unknown. Or log1p(CP10K) of expected rates: a DataFrame
            with genes as columns, NaN where a value is unknown, or an array of all registered genes, (n, n_genes).
        n_per_spot
            Patches for each profile.
        guidance_scale
            How much more than in training the expression counts: 0 ignores it, 1 takes it as it was learnt, more exaggerates it.
        n_steps
            Steps of the sampler; more than 25 gain little.
        seed
            Of the noise; ``None``: that of scvi-tools, or 0. The same seed gives the same patches (in other batches, but for rounding).
        batch_size
            Patches at a time.
        silent
            Whether to show no progress.

        Returns
        -------
        uint8, (n * n_per_spot, size, size, 3), those of one profile one after the other, in pixels of the central model.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the model is not trained, an argument is out of range, or expression is of an unknown kind or of other genes.
        """
        self._require_training()
        check_positive_int(n_per_spot, "n_per_spot")
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be a number of at least 0, got {guidance_scale!r}")
        condition = conditions(self.module.scores, *self._profiles(expression)).repeat_interleave(n_per_spot, dim=0)
        noise = noise_of(len(condition), self.central.noise_shape, seed).to(condition.device)
        self.module.eval()
        parts = list(zip(condition.split(batch_size), noise.split(batch_size), strict=True))
        parts = track(parts, description="generating patches", disable=silent)
        return np.concatenate([self.module.generate(*part, guidance_scale, n_steps).cpu().numpy() for part in parts])

    def get_expression_posterior(
        self,
        patches: Any,
        expression: AnnData | Any = None,
        prior: np.ndarray | None = None,
        n_candidates: int = 64,
        temperature: float = TEMPERATURE,
        n_levels: int = 8,
        seed: int | None = None,
        batch_size: int = 32,
        silent: bool = True,
    ) -> ExpressionPosterior:
        """Infer which expression patches go with, to check generated ones.

        Bayes' rule over candidate profiles, with the model as the likelihood (Li et al. 2023, "Your diffusion model is secretly a
        zero-shot classifier"): how well noise is taken from a patch under each candidate, by the same noise for all of them. The logarithm of
        the likelihood is the variational bound over the noise levels whose share of the variance is from a tenth to nine tenths, evenly in the
        logarithm of the signal-to-noise ratio.

        Parameters
        ----------
        patches
            Patches, generated or real, uint8 (n, edge, edge, 3); they are reduced to the size of the central model.
        expression
            Candidates, as in :meth:`generate`; ``None``: training spots, drawn at random.
        prior
            Weight of each candidate, (n_candidates,); ``None``: all alike.
        n_candidates
            Number of training spots, at most, where `expression` is ``None``.
        temperature
            By which the logarithm of the likelihood is divided: 1 is too sure of real patches, of which the default was right on spots
            that choose when training stops. It does not change which candidates are more probable than others under equal weights.
        n_levels
            Noise levels. The cost is one evaluation of the network for each patch, candidate and level, as much as half a step of
            :meth:`generate`: 512 for a patch with the defaults.
        seed
            Of the noise and of the draw of training spots; ``None``: that of scvi-tools, or 0. The same seed gives the same posterior
            (with another `batch_size`, but for rounding), whatever other patches there are.
        batch_size
            Pairs of patch and candidate at a time; the memory depends on it, not on their number.
        silent
            Whether to show no progress.

        Returns
        -------
        Probability of each candidate, and the expected rates of the registered genes; its ``rank(made_for)`` says whether patches go with
        the profiles that they were made for.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the model is not trained, patches are none, an argument is out of range, or expression is of an unknown kind or of other
            genes.
        """
        self._require_training()
        for name, value in (("n_candidates", n_candidates), ("n_levels", n_levels), ("batch_size", batch_size)):
            check_positive_int(value, name)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {temperature!r}")
        check_patches(patches, "patches")
        if not patches.shape[0]:
            raise ValueError("patches holds no patch")
        values, known = self._profiles(expression)
        if expression is None:
            rows = np.sort(
                drawn_rows(min(n_candidates, len(values)), len(values), np.random.default_rng(seed_of(seed)))
            )
            values, known, names = values[rows], known[rows], self.adata.obs_names[rows]
        else:
            names = profile_names(expression, len(values))
        if not len(values):
            raise ValueError("expression holds no profile; pass at least one candidate")
        weights = checked_prior(prior, len(values))
        images = torch.from_numpy(resize_patches(patches, self.central.size))
        noise = noise_of(n_levels, self.central.noise_shape, seed)
        condition = conditions(self.module.scores, values, known)
        pairs = torch.arange(len(images) * len(condition)).split(batch_size)
        self.module.eval()
        parts = [
            self.module.log_likelihood(images[part // len(condition)], condition[part % len(condition)], noise).cpu()
            for part in track(pairs, description="comparing patches with profiles", disable=silent)
        ]
        likelihood = torch.cat(parts).reshape(len(images), len(condition)).numpy() / temperature
        return ExpressionPosterior.of(likelihood, weights, np.where(known, values, np.nan), names, self._genes)

    def _require_training(self) -> None:
        if not self.is_trained_:
            raise ValueError("the model is not trained; call train() first")

    def _profiles(self, expression: Any) -> tuple[np.ndarray, np.ndarray]:
        """log1p(CP10K) of expected rates, float32 (n, n_genes), and which of them are known; ``None``: of the training spots."""
        if expression is not None:
            return profiles(expression, self._genes, self.registry_["setup_args"], self.module.scores)
        if self.adata is None:
            raise ValueError("the model was loaded without data; pass expression, or load(..., adata=adata)")
        return self._values, np.ones_like(self._values, dtype=bool)

    @property
    def _genes(self) -> np.ndarray:
        return np.asarray(self.get_state_registry(keys.COUNTS)["column_names"])

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return read_counts(self.adata, self._genes, self.registry_["setup_args"])

    @cached_property
    def _values(self) -> np.ndarray:
        """log1p(CP10K) of expected rates of the training spots, float32 (n_obs, n_genes)."""
        setup = self.registry_["setup_args"]
        if setup["expression_layer"] is None:
            return expected_values(self.module.scores, *self._counts[:2])
        values, known = profiles(self.adata, self._genes, setup, self.module.scores)
        if n_missing := int((~known).sum()):
            raise ValueError(
                f"{n_missing:,} values of adata.layers[{setup['expression_layer']!r}] are NaN; the training needs all"
            )
        return values
