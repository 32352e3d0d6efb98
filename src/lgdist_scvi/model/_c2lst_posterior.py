"""Which profile of expression a patch goes with: probabilities of candidates."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import softmax

from lgdist_scvi._checks import as_floats


class ExpressionPosterior(NamedTuple):
    """What :meth:`C2LST.get_expression_posterior` finds.

    Attributes
    ----------
    probability
        Of each candidate (columns) for each patch, (n_patches, n_candidates).
    expression
        log1p(CP10K) of the rates of the registered genes that are expected over the candidates, (n_patches, n_genes); NaN of a gene that is
        unknown of one of them.
    """

    probability: pd.DataFrame
    expression: pd.DataFrame

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
        probability, made_for = self.probability.to_numpy(), np.asarray(made_for)
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
            probability = softmax(log_likelihood + np.log(prior), axis=1)
        expression = np.log1p(probability @ np.expm1(values.astype(np.float64)))
        return cls(pd.DataFrame(probability, columns=names), pd.DataFrame(expression, columns=genes))


def checked_prior(prior: Any, n: int) -> np.ndarray:
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


def profile_names(expression: Any, n: int) -> pd.Index:
    """Names of profiles: of spots, of rows, or numbers."""
    if isinstance(expression, AnnData):
        return expression.obs_names
    return expression.index if isinstance(expression, pd.DataFrame) else pd.RangeIndex(n)
