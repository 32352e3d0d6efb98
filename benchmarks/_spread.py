"""Samples, their spread, and prediction intervals, scored on hidden entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd

from benchmarks._protocols import Task
from lgdist_scvi import metrics
from lgdist_scvi._poisson import variance_given_positive  # noqa: PLC2701  the same noise as in the calibration
from lgdist_scvi._units import cp10k_per_count, from_cp10k, log1p_cp10k  # noqa: PLC2701  the one scale

if TYPE_CHECKING:
    from lgdist_scvi import LGDiST

LEVELS = (0.5, 0.8, 0.9, 0.95)
THIRDS = ("low", "middle", "high")
_N_SAMPLES = 20
_MAX_SPOTS = 400  # drawn at random where more are scored: the scores are averages over entries
_ENOUGH_ENTRIES = 50_000  # on which intervals are scored: a third of the genes may hold few of them
_N_MODULES = 10
_FAR = 20.0  # beyond any log1p(CP10K), which ends at 9.2
_TIE = 1e-5  # rounding of an interval's end; far below the step of a count


def spread_scores(model: LGDiST, task: Task, seed: int) -> dict[str, float]:
    """Score samples of the measured values, and intervals for them.

    A sample is a draw of the latent, decoded, with a draw of the likelihood's noise: what a measurement would show. Without
    stage 2 the latent is drawn from the VAE's Gaussian posterior.

    Returns
    -------
    - ``"crps"``, ``"energy"``: of the samples (:func:`~lgdist_scvi.metrics.crps`, ``energy_score``);
    - ``"crps_latent"``, ``"energy_latent"``: of the decoded latents, without the noise;
    - ``"energy_modules"``: energy score of the samples on the leading principal axes of the hidden values. The noise of
      single genes, which is most of what is hidden, averages out there: what is left is whether genes vary together as they
      should;
    - ``"variance_sample"``, ``"variance_latent"``, ``"variance_mean"``: variance over spots of one sample, of one decoded
      latent, of the posterior mean, relative to the measured values: median over genes, and with ``"_within"`` the share of
      the genes between 0.8 and 1.25;
    - ``"deviation_over_error"``: standard deviation of the expected value over its error, what sampling noise alone leaves
      taken off: roots of mean squares, 1 where the model knows how sure it is;
    - ``"coverage_90"``, ``"coverage_90_low"``, ...: share of hidden values inside their interval of this level, over all scored
      genes and over thirds of them by expression; ``"width_90"``, mean width (an end at infinity counts as 20).
    """
    spots = _spots(task, seed)
    genes = np.flatnonzero(task.scored.any(axis=0))
    chosen = np.ix_(spots, genes)
    truth, scored = task.measured[chosen], np.asarray(task.scored[chosen])
    latents, samples = draw(model, task, spots, genes, seed)
    arguments = {"observed": "model", "estimand": task.estimand, "seed": seed, "return_numpy": True}
    mean, deviation = model.get_completed_expression(return_std=True, **arguments)
    deviation_over_error = _deviation_over_error(task, mean, deviation)
    mean = mean[chosen]
    scores: dict[str, float] = {}
    for suffix, drawn in (("", samples), ("_latent", latents)):
        scores[f"crps{suffix}"] = metrics.crps(drawn, truth, scored)
        scores[f"energy{suffix}"] = metrics.energy_score(drawn, truth, scored)
    scores["energy_modules"] = energy_modules(samples, truth, scored)
    for name, values in (("sample", samples[0]), ("latent", latents[0]), ("mean", mean)):
        ratio = metrics.variance_ratio(truth, values, scored)
        ratio = ratio[np.isfinite(ratio)]
        scores[f"variance_{name}"] = float(np.median(ratio))
        scores[f"variance_{name}_within"] = float(np.mean((ratio >= 0.8) & (ratio <= 1.25)))
    scores["deviation_over_error"] = deviation_over_error
    return scores | _coverage(model, task, _spots(task, seed, _ENOUGH_ENTRIES), genes, arguments)


def _spots(task: Task, seed: int, n_entries: int = 0) -> np.ndarray:
    """Draw spots from those with scored entries: all, or at least 400, and as many as hold `n_entries`."""
    spots = np.flatnonzero(task.scored.any(axis=1))
    order = np.random.default_rng(seed).permutation(spots)
    held = np.cumsum(np.asarray(task.scored.sum(axis=1)).ravel()[order])
    return np.sort(order[: max(_MAX_SPOTS, np.searchsorted(held, n_entries) + 1)])


def _coverage(model: LGDiST, task: Task, spots: np.ndarray, genes: np.ndarray, arguments: dict) -> dict[str, float]:
    """How often intervals of the model hold what was hidden, by level and third of the scored genes."""
    chosen = np.ix_(spots, genes)
    truth, scored = task.measured[chosen], np.asarray(task.scored[chosen])
    names = list(model.get_var_names_registered()[genes])
    strata = np.broadcast_to(_thirds(task, genes), truth.shape)
    scores = {}
    for level in LEVELS:
        lower, upper = model.get_prediction_interval(level, indices=spots, gene_list=names, **arguments)
        # an end at infinity contains everything, and would make any mean width infinite
        lower, upper = np.maximum(lower, -_FAR), np.minimum(upper, _FAR)
        table = metrics.interval_coverage(truth, lower - _TIE, upper + _TIE, scored, by=strata)
        for stratum, record in table.iterrows():
            third = "" if stratum == "all" else f"_{THIRDS[int(stratum)]}"
            scores[f"coverage_{level:.0%}{third}".replace("%", "")] = float(record["coverage"])
        scores[f"width_{level:.0%}".replace("%", "")] = float(table.loc["all", "width"])
    return scores


def _deviation_over_error(task: Task, mean: np.ndarray, deviation: np.ndarray) -> float:
    """Root of the mean variance that is claimed over the mean squared error, without sampling noise; NaN where that is all.

    Over all scored entries, for where counts are small it takes many to tell the error from that noise.
    """
    if task.estimand == "captured":
        scale = cp10k_per_count(np.maximum(task.library[:, None], 1.0))
        sampling = variance_given_positive(mean.astype(np.float64), scale)
        error = np.mean(((task.measured - mean) ** 2 - sampling)[task.scored])
        return _root_ratio(np.mean(deviation[task.scored] ** 2), error)
    # in counts, where noise is known (`metrics.poisson_variance_explained`); each gene weighted by the inverse of its mean
    counts = task.rest.toarray().astype(np.float64)
    scale = from_cp10k(counts.sum(axis=1, keepdims=True))
    expected = np.expm1(mean.astype(np.float64)) * scale
    claimed = (deviation * (expected + scale)) ** 2
    weight = task.scored / np.maximum(expected.mean(axis=0), 1e-9)
    return _root_ratio((weight * claimed).sum(), (weight * ((counts - expected) ** 2 - counts)).sum())


def _root_ratio(claimed: float, error: float) -> float:
    return float(np.sqrt(claimed / error)) if error > 0 else float("nan")


def energy_modules(samples: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> float:
    """Energy score on the leading principal axes of the standardised hidden values, per axis."""
    n = np.maximum(scored.sum(axis=0), 1)
    mean = np.where(scored, truth, 0.0).sum(axis=0) / n
    deviation = np.where(scored, truth - mean, 0.0)
    scale = np.sqrt((deviation**2).sum(axis=0) / n + 1e-6)
    axes = randomized_svd(deviation / scale, min(_N_MODULES, *truth.shape), random_state=0)[2].T / scale[:, None]
    modules = [(np.where(scored, values - mean, 0.0) @ axes).astype(np.float32) for values in samples]
    of_truth = (deviation @ axes).astype(np.float32)
    return metrics.energy_score(np.stack(modules), of_truth, np.ones(of_truth.shape, dtype=bool))


def _thirds(task: Task, genes: np.ndarray) -> np.ndarray:
    """Third of each scored gene by its visible counts, 0 (low) to 2, (genes,)."""
    total = np.asarray(task.adata.X.sum(axis=0)).ravel()[genes]
    rank = np.argsort(np.argsort(total, kind="stable"), kind="stable")
    return (3 * rank) // len(genes)


def draw(
    model: LGDiST, task: Task, spots: np.ndarray, genes: np.ndarray, seed: int, n_steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded latents, and the same with the noise of a measurement: log1p(CP10K), (samples, spots, genes) each.

    `n_steps` is the number of evaluations of the denoiser; ``None``: the model's own.
    """
    arguments = {
        "indices": spots,
        "gene_list": list(model.get_var_names_registered()[genes]),
        "n_samples": _N_SAMPLES,
        "seed": seed,
        "n_steps": n_steps,
    }
    latents = model.get_completed_expression(
        return_mean=False, observed="model", estimand=task.estimand, return_numpy=True, **arguments
    )
    counts = model.posterior_predictive_sample(**arguments).todense().transpose(2, 0, 1)
    return latents, np.stack([log1p_cp10k(sample, task.library[spots]) for sample in counts])
