"""Which profile of expression a patch goes with: probabilities of candidates."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import log_softmax
from scvi.utils import track

from lgdist_scvi._checks import as_floats, check_positive_int
from lgdist_scvi._patches import check_patches, resize_patches
from lgdist_scvi.model._c2lst_central import CentralModel, noise_of, seed_of
from lgdist_scvi.model._c2lst_expression import conditions
from lgdist_scvi.model._c2lst_pairs import drawn_rows

TEMPERATURE = 3.0


class ExpressionPosterior(NamedTuple):
    """What :meth:`C2LST.get_expression_posterior` finds.

    Attributes
    ----------
    probability
        Of each candidate (columns) for each patch, (n_patches, n_candidates).
    expression
        log1p(CP10K) of the rates of the registered genes that are expected over the candidates, (n_patches, n_genes); NaN of a gene that is
        unknown of one of them.
    log_probability
        Logarithm of `probability`, which tells improbable candidates apart where that is 0.
    """

    probability: pd.DataFrame
    expression: pd.DataFrame
    log_probability: pd.DataFrame

    def rank(self, made_for: Any) -> np.ndarray:
        """Share of the other candidates that are less probable than the one that each patch was made for, (n_patches,).

        1 if it is the most probable, .5 on average by chance; ties count half.

        Parameters
        ----------
        made_for
            Number (column) of the candidate that each patch was made for, (n_patches,).

        Raises
        ------
        ValueError
            If these are no numbers of candidates, one for each patch, or there is only one candidate.
        """
        probability, made_for = self.log_probability.to_numpy(), np.asarray(made_for)
        n, n_candidates = probability.shape
        inside = (
            made_for.shape == (n,) and made_for.dtype.kind in "iu" and ((made_for >= 0) & (made_for < n_candidates))
        )
        if n_candidates < 2 or not np.all(inside):
            raise ValueError(
                f"made_for must hold the number of one of two or more candidates for each of {n:,} patches, from 0 to {n_candidates - 1:,}"
            )
        own = np.take_along_axis(probability, made_for[:, None], axis=1)
        less, equal = (probability < own).sum(axis=1), (probability == own).sum(axis=1) - 1
        return (less + equal / 2) / (n_candidates - 1)

    @classmethod
    def of(
        cls, log_likelihood: np.ndarray, prior: np.ndarray, values: np.ndarray, names: pd.Index, genes: np.ndarray
    ) -> Self:
        """Apply Bayes' rule.

        Parameters
        ----------
        log_likelihood
            Of each candidate for each patch, (n_patches, n_candidates), but for a constant of each patch.
        prior
            Weights of the candidates, (n_candidates,).
        values
            log1p(CP10K) of expected rates of the candidates, (n_candidates, n_genes).
        names, genes
            Names of candidates and genes.
        """
        with np.errstate(divide="ignore"):  # a candidate may have no weight
            log_probability = log_softmax(log_likelihood + np.log(prior), axis=1)
        probability = np.exp(log_probability)
        expression = np.log1p(probability @ np.expm1(values.astype(np.float64)))
        return cls(
            pd.DataFrame(probability, columns=names),
            pd.DataFrame(expression, columns=genes),
            pd.DataFrame(log_probability, columns=names),
        )


class PosteriorMixin:
    """Which expression patches go with."""

    central: CentralModel
    _genes: np.ndarray

    def _profiles(self, expression: Any) -> tuple[np.ndarray, np.ndarray]:
        """log1p(CP10K) of expected rates, float32 (n, n_genes), and which of them are known; ``None``: of the training spots."""
        raise NotImplementedError

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
            By which the logarithm of the likelihood is divided. With 1 the model is too sure; the default made the right profile of real
            patches most probable, on spots of two trainings that had been set aside to validate. Candidates of equal weight keep their
            order.
        n_levels
            Noise levels. The network is evaluated once for each patch, candidate and level: 512 times for a patch with the defaults, about as
            long as :meth:`generate` takes for 13 patches.
        seed
            Of the noise and of the draw of training spots; ``None``: that of scvi-tools, or 0. The same seed gives the same posterior
            (with another `batch_size`, but for rounding), whatever other patches there are.
        batch_size
            Pairs of patch and candidate at a time; the memory depends on it, not on their number.
        silent
            Whether to show no progress.

        Returns
        -------
        ``probability`` of each candidate, a data frame, (n_patches, n_candidates); ``expression``, log1p(CP10K) of the rates of the
        registered genes expected over the candidates, a data frame, (n_patches, n_genes), NaN of a gene that is unknown of one of them; and
        ``rank(made_for)``: the share of the other candidates that are less probable than the one (its number) that each patch was made for,
        (n_patches,), 1 if it is the most probable and .5 on average by chance.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the model is not trained, patches are none, an argument is out of range, or expression is of an unknown kind or of other
            genes.
        """
        if not self.is_trained_:
            raise ValueError("the model is not trained; call train() first")
        for name, value in (("n_candidates", n_candidates), ("n_levels", n_levels), ("batch_size", batch_size)):
            check_positive_int(value, name)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {temperature!r}")
        check_patches(patches, "patches")
        if not patches.shape[0]:
            raise ValueError("patches holds no patch")
        values, known = self._profiles(expression)
        names = _names(self.adata if expression is None else expression, len(values))
        if expression is None:
            drawn = np.sort(drawn_rows(len(values), len(values), np.random.default_rng(seed_of(seed)))[:n_candidates])
            values, known, names = values[drawn], known[drawn], names[drawn]
        if not len(values):
            raise ValueError("expression holds no profile; pass at least one candidate")
        weights = _checked_prior(prior, len(values))
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


def _checked_prior(prior: Any, n: int) -> np.ndarray:
    """Weights of n candidates that sum to 1.

    Raises
    ------
    ValueError
        If they are not n numbers of at least 0, or all are 0.
    """
    weights = np.ones(n) if prior is None else as_floats(prior)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"prior must hold a weight of at least 0 for each of {n:,} candidates, not all 0, got shape {weights.shape}"
        )
    return weights / weights.sum()


def _names(expression: Any, n: int) -> pd.Index:
    """Names of profiles: of spots, of rows, or numbers."""
    if isinstance(expression, AnnData):
        return expression.obs_names
    return expression.index if isinstance(expression, pd.DataFrame) else pd.RangeIndex(n)
