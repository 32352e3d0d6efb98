"""Samples of a section that was never sequenced, and intervals for its counts, scored on what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks._spread import energy_modules
from lgdist_scvi import metrics
from lgdist_scvi._units import from_cp10k, log1p_cp10k  # noqa: PLC2701  the one scale

if TYPE_CHECKING:
    from benchmarks._sections import Sections
    from lgdist_scvi import Stem

_N_SAMPLES = 20
_LEVEL = 0.9
_TIE = 1e-5  # rounding of an interval's end; far below the step of a count
_SMALLEST_SPREAD = 1e-3  # variance of a rate relative to its square


def spread_scores(model: Stem, data: Sections, seed: int) -> dict[str, float]:
    """Score samples and intervals of the scored genes, for measurements as deep as those of the held-out section.

    Returns
    -------
    - ``"energy"``, ``"energy_modules"``: energy score of the samples, per spot, over genes and over ten principal axes of the
      measured values;
    - the same with ``"_noise"``: of the posterior mean with negative binomial noise, independent for each gene, whose dispersion is
      fitted to counts of training sections around predictions by networks that did not see them;
    - ``"variance_sample"``: variance over spots of one sample relative to that of the measured values, median over genes;
      ``"variance_sample_within"``: share of genes with 0.8 to 1.25;
    - ``"coverage_90"``: share of counts inside their interval.
    """
    genes = list(data.training.var_names[data.scored])
    held_out = data.held_out.copy()
    held_out.obs["total_counts"] = data.measured_library
    truth = data.measured_values()
    asked = {"gene_list": genes, "seed": seed}
    drawn = model.posterior_predictive_sample(held_out, n_samples=_N_SAMPLES, **asked).todense().transpose(2, 0, 1)
    samples = np.stack([log1p_cp10k(counts, data.measured_library) for counts in drawn])
    own = _rate(model.get_predicted_expression(**asked, return_numpy=True)) * data.library[:, None]
    excess = ((data.counts - own) ** 2 - own).sum(axis=0) / (own**2).sum(axis=0)
    theta = 1.0 / np.maximum(excess, _SMALLEST_SPREAD)
    mean = _rate(model.get_predicted_expression(held_out, **asked, return_numpy=True)) * data.measured_library[:, None]
    generator = np.random.default_rng(seed)
    noisy = np.stack(
        [
            log1p_cp10k(generator.poisson(generator.gamma(theta, mean / theta)), data.measured_library)
            for _ in range(_N_SAMPLES)
        ]
    )
    everything = np.ones(truth.shape, dtype=bool)
    ratio = metrics.variance_ratio(truth, samples[0], everything)
    ratio = ratio[np.isfinite(ratio)]
    lower, upper = model.get_prediction_interval(_LEVEL, held_out, gene_list=genes, return_numpy=True)
    return {
        "energy": metrics.energy_score(samples, truth, everything),
        "energy_noise": metrics.energy_score(noisy, truth, everything),
        "energy_modules": energy_modules(samples, truth, everything),
        "energy_modules_noise": energy_modules(noisy, truth, everything),
        "variance_sample": float(np.median(ratio)),
        "variance_sample_within": float(np.mean((ratio >= 0.8) & (ratio <= 1.25))),
        "coverage_90": float(((truth >= lower - _TIE) & (truth <= upper + _TIE)).mean()),
    }


def _rate(log1p: np.ndarray) -> np.ndarray:
    return from_cp10k(np.expm1(np.asarray(log1p, dtype=np.float64)))
