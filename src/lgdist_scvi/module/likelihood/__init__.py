"""Likelihoods: everything that counts and captured values do differently."""

from __future__ import annotations

from lgdist_scvi.module.likelihood._base import Estimand, HoldOut, Likelihood
from lgdist_scvi.module.likelihood._captured import CapturedLikelihood, counts_in_library
from lgdist_scvi.module.likelihood._captured_mean import any_poisson, expected_captured
from lgdist_scvi.module.likelihood._counts import NegativeBinomialLikelihood, PoissonLikelihood, split_counts
from lgdist_scvi.module.likelihood._effects import Effect
from lgdist_scvi.module.likelihood._gene_effects import GeneEffects
from lgdist_scvi.module.likelihood._predictive import CountPredictive, NormalPredictive, Predictive

__all__ = [
    "LIKELIHOODS",
    "CapturedLikelihood",
    "CountPredictive",
    "Effect",
    "Estimand",
    "GeneEffects",
    "HoldOut",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "NormalPredictive",
    "PoissonLikelihood",
    "Predictive",
    "any_poisson",
    "choose_likelihood",
    "counts_in_library",
    "expected_captured",
    "name_of",
    "split_counts",
]

# by the name that `gene_likelihood` has; "auto" takes the first that fits the data
LIKELIHOODS: dict[str, type[Likelihood]] = {
    "nb": NegativeBinomialLikelihood,
    "poisson": PoissonLikelihood,
    "normal": CapturedLikelihood,
}


def choose_likelihood(name: str, shows_zeros: bool, hides_every_zero: bool) -> str:
    """Choose the likelihood that fits the observed data, where the name, else a key of `LIKELIHOODS`, is ``"auto"``.

    Raises ValueError if the one named does not fit, see :meth:`Likelihood.refusal`.
    """
    if name == "auto":
        return next(key for key, one in LIKELIHOODS.items() if one.refusal(shows_zeros, hides_every_zero) is None)
    if (why := LIKELIHOODS[name].refusal(shows_zeros, hides_every_zero)) is not None:
        raise ValueError(f'gene_likelihood="{name}" {why}')
    return name


def name_of(likelihood: Likelihood) -> str:
    """Name of a likelihood in `LIKELIHOODS`."""
    return next(name for name, one in LIKELIHOODS.items() if type(likelihood) is one)
