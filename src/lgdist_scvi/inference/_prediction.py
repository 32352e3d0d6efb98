"""The answer for one batch of spots: values, their spread, and the distribution of a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lgdist_scvi import _keys as keys
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.module.likelihood import Estimand, Likelihood, Predictive

if TYPE_CHECKING:
    from lgdist_scvi.inference._calibration import Calibration
    from lgdist_scvi.module import LGDiSTModule
    from lgdist_scvi.module._spots import Condition

SAMPLER_STEPS = 3
N_SAMPLES = 25  # where a spread is asked for
# provenance of a completed value
MEASURED, FILLED_ZERO, FILLED_MISSING, REPLACED, LEFT_MISSING = range(5)

Moments = tuple[Tensor, Tensor]
"""Mean and variance over samples of the expected value, (batch, n_genes) each."""


class Prediction:
    """Predictions for the spots of one batch.

    Parameters
    ----------
    module
        A trained module.
    batch
        See :mod:`lgdist_scvi._keys`.
    condition
        Posterior of the spots given some visible entries; ``None``: given everything that is observed.
    n_samples
        Samples of the latent for whatever has a spread.
    seed
        Of the samples: a sample is a function of the seed and the spot's row alone.
    n_steps
        Evaluations of the denoiser per sample; ``None``: 3.
    shared
        What network and experts give at the posterior mean of the latent, (batch, n_genes), if it is known already.
    """

    def __init__(
        self,
        module: LGDiSTModule,
        batch: dict[str, Tensor],
        condition: Condition | None = None,
        n_samples: int = N_SAMPLES,
        seed: int = 0,
        n_steps: int | None = None,
        shared: Tensor | None = None,
    ):
        self.module, self.batch = module, batch
        self._condition, self._shared = condition, shared
        self.n_samples, self.seed = n_samples, seed
        self.n_steps = min(SAMPLER_STEPS, module.diffusion.n_timesteps) if n_steps is None else n_steps
        self.library = self.likelihood.usable(batch[keys.LIBRARY])
        self.exposure = module.exposure(batch)
        self._latents: Tensor | None = None
        self._moments: dict[Estimand, Moments] = {}

    @property
    def likelihood(self) -> Likelihood:
        """The module's likelihood."""
        return self.module.likelihood

    @property
    def condition(self) -> Condition:
        """Posterior of the spots."""
        if self._condition is None:
            self._condition = self.module.condition(self.batch)
        return self._condition

    # ---- latents

    def latent_mean(self) -> Tensor:
        """Posterior mean of the latent, (batch, n_latent)."""
        return self.module.latent_mean(self.condition)

    def latents(self) -> Tensor:
        """Samples of the latent, (batch, n_samples, n_latent)."""
        if self._latents is None:
            spots = self.batch[keys.SPOT].cpu().numpy().ravel()
            noise = spot_noise(self.seed, spots, (self.n_samples, self.condition.mean.shape[1]))
            self._latents = self.module.sample(self.condition, noise.to(self.condition.mean.device), self.n_steps)
        return self._latents

    # ---- expected values

    def decoded(self, latent: Tensor) -> Tensor:
        """Expected value at a latent in the likelihood's unit: for counts the share of the library, (batch, n_genes)."""
        return self.module.decode(latent, self.condition)

    def expected(self, latent: Tensor, estimand: Estimand) -> Tensor:
        """Expected value at a latent, as it is averaged over samples: CP10K for rates, log1p(CP10K) for captured values."""
        return self._answer(self.decoded(latent), estimand)

    def _answer(self, decoded: Tensor, estimand: Estimand) -> Tensor:
        return self.likelihood.answer(decoded, self.exposure, self.library, estimand)

    def value(self, latent: Tensor, estimand: Estimand) -> Tensor:
        """Expected value at a latent, log1p(CP10K), (batch, n_genes)."""
        return in_log1p(self.expected(latent, estimand), estimand)

    def mean_value(self, estimand: Estimand) -> Tensor:
        """Expected value at the posterior mean of the latent, log1p(CP10K), (batch, n_genes)."""
        if self._shared is None:
            return self.value(self.latent_mean(), estimand)
        own = self.module.own(self.module.inputs(self.batch).centre)
        decoded = self.module.with_effects(self._shared, self.batch[keys.REGION_EFFECT], own)
        return in_log1p(self._answer(decoded, estimand), estimand)

    def moments(self, estimand: Estimand) -> Moments:
        """Mean and variance over samples of the expected value, in the units of :meth:`expected`."""
        if estimand not in self._moments:
            mean = square = 0.0
            for sample, latent in enumerate(self.latents().unbind(1)):
                value = self.expected(latent, estimand)  # (batch, n_genes)
                delta = value - mean
                mean = mean + delta / (sample + 1)
                square = square + delta * (value - mean)
            self._moments[estimand] = mean, square / max(self.n_samples - 1, 1)
        return self._moments[estimand]

    def variance(self, estimand: Estimand) -> Tensor:
        """Variance of the expected value, in the units of :meth:`expected`: over latents, and of what no latent holds.

        The value is that of one gene in one spot, which may differ from what other genes and spots share with it.
        """
        decoded = self.decoded(self.latents().mean(1))
        own = self.likelihood.own_variance(decoded, self.condition.own).sqrt()
        over_latents = self.moments(estimand)[1]
        if estimand == "rate":  # linear in what is decoded
            return over_latents + self._answer(own, estimand) ** 2
        ends = (decoded + own, (decoded - own).clamp(min=0.0))
        above, below = (self._answer(end, estimand) for end in ends)
        return over_latents + ((above - below) / 2.0) ** 2

    def std(self, estimand: Estimand, calibration: Calibration) -> Tensor:
        """Calibrated standard deviation of the expected value, log1p(CP10K), (batch, n_genes)."""
        factor = torch.from_numpy(calibration.std_factor(self.batch)).to(self.library)
        std = factor * self.variance(estimand).sqrt()
        # delta method from CP10K to its logarithm
        return std / (1.0 + self.moments(estimand)[0]) if estimand == "rate" else std

    # ---- measurements

    def predictive(self, estimand: Estimand) -> Predictive:
        """Distribution of the measured values."""
        return self.likelihood.predictive(*self.moments(self.likelihood.modelled), self.library, estimand)

    def interval(
        self, estimand: Estimand, level: float, positions: np.ndarray, calibration: Calibration
    ) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated interval of the measured values of some genes, log1p(CP10K), (batch, n) each."""
        reach = calibration.reach(self.batch, estimand, level)
        return self.predictive(estimand).of_genes(positions).interval(reach[:, positions])

    def measurements(self) -> Tensor:
        """Counts drawn from the posterior predictive distribution, (batch, n_samples, n_genes); a function of seed and spot."""
        modelled = self.likelihood.modelled
        mean = torch.stack([self.expected(latent, modelled) for latent in self.latents().unbind(1)], dim=1)
        generator = torch.Generator(mean.device)
        drawn = torch.empty_like(mean)
        for row, spot in enumerate(self.batch[keys.SPOT].flatten().tolist()):
            # not the stream of the latents' noise
            state = np.random.SeedSequence([self.seed, int(spot), 1]).generate_state(1, np.uint64)[0]
            generator.manual_seed(int(state) >> 1)
            drawn[row] = self.likelihood.sample_counts(mean[row], self.library[row], generator)
        return drawn


def in_log1p(value: Tensor, estimand: Estimand) -> Tensor:
    """What is averaged over samples in log1p(CP10K)."""
    return torch.log1p(value) if estimand == "rate" else value


def spot_noise(seed: int, spots: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that depends on the seed and each spot's row alone, (len(spots), *shape)."""
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, int(spot)])).standard_normal(shape, np.float32)
        for spot in spots
    ]
    return torch.from_numpy(np.stack(draws))


def provenance(counts: np.ndarray, known: np.ndarray, observed: str, fill: str) -> np.ndarray:
    """Where each completed value comes from, uint8, (n, n_genes): the one rule of what is kept and what is filled.

    0 measured, 1 filled zero, 2 filled missing entry, 3 measured value replaced by the model's; from counts and whether
    an entry is observed, (n, n_genes), and `observed` and `fill` as in
    :meth:`lgdist_scvi.LGDiST.get_completed_expression`.
    """
    known = known > 0
    kept = known & ((counts > 0) | (fill == "masked"))
    filled = np.where(known, FILLED_ZERO, FILLED_MISSING)
    if observed == "model":
        filled, kept = np.where(known & (counts > 0), REPLACED, filled), np.zeros_like(kept)
    return np.where(kept, MEASURED, filled).astype(np.uint8)


def measured(batch: dict[str, Tensor], library: np.ndarray) -> np.ndarray:
    """Measured log1p(CP10K) of a batch, (batch, n_genes), 0 where nothing is observed; libraries in double precision, (batch,)."""
    return log1p_cp10k(batch[keys.COUNTS].cpu().numpy(), library)
