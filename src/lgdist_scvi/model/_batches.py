"""What is worked out of one batch of spots: values, their spread, and the distribution of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_positive_int
from lgdist_scvi._units import COUNTS_PER, log1p_cp10k
from lgdist_scvi.model._conformal import reach
from lgdist_scvi.model._predictive import CountPredictive, NormalPredictive

if TYPE_CHECKING:
    from anndata import AnnData

    from lgdist_scvi.data import NeighborhoodDataset
    from lgdist_scvi.module._neighborhood import Condition

_BATCH_SIZE = 512
_SAMPLER_STEPS = 10
N_SAMPLES = 25  # where a spread is asked for

Estimand = Literal["rate", "captured"]


class BatchMixin:
    """What :class:`~lgdist_scvi.LGDiST` works out of one batch."""

    def _batches(
        self,
        adata: AnnData,
        rows: np.ndarray,
        batch_size: int | None = None,
        silent: bool = True,
        dataset: NeighborhoodDataset | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], np.ndarray]]:
        """Batches along the graph: positions in `rows`, tensors, and library sizes in double precision."""
        if batch_size is not None:
            check_positive_int(batch_size, "batch_size")
        # no data loader: it would draw from torch's global generator
        if dataset is None:
            dataset = self.get_anndata_manager(adata, required=True).create_torch_dataset()
        order, size = dataset.along_graph(rows), batch_size or _BATCH_SIZE
        device = self.module.device  # looks at every parameter
        for start in tqdm(range(0, len(rows), size), desc="Completing", disable=silent, leave=False):
            place = order[start : start + size]
            spots = rows[place]
            tensors = {key: torch.from_numpy(value).to(device) for key, value in dataset[spots].items()}
            yield place, tensors, dataset.library[spots]

    def _latents(
        self, condition: Condition, tensors: dict, n_samples: int, seed: int, n_steps: int | None
    ) -> torch.Tensor:
        """Samples of the latent, (batch, n_samples, n_latent)."""
        spots = tensors[keys.SPOT].cpu().numpy().ravel()
        noise = spot_noise(seed, spots, (n_samples, self.module.n_latent)).to(condition.mean.device)
        if n_steps is not None:
            check_positive_int(n_steps, "n_steps")
        else:
            n_steps = min(_SAMPLER_STEPS, self.module.diffusion.n_timesteps)
        return self.module.sample(condition, noise, n_steps)

    def _expected(self, latent: torch.Tensor, condition: Condition, tensors: dict, estimand: Estimand) -> torch.Tensor:
        """Expected value at a latent, as it is averaged over samples: CP10K for rates, log1p(CP10K) for captured values."""
        return self._in_units(self.module.vae.decode(latent, condition), tensors, estimand)

    def _value(self, latent: torch.Tensor, condition: Condition, tensors: dict, estimand: Estimand) -> torch.Tensor:
        """Expected value at a latent, log1p(CP10K)."""
        value = self._expected(latent, condition, tensors, estimand)
        return torch.log1p(value) if estimand == "rate" else value

    def _in_units(self, decoded: torch.Tensor, tensors: dict, estimand: Estimand) -> torch.Tensor:
        """Turn decoder output into what is averaged over samples: CP10K for rates, log1p(CP10K) for captured values."""
        library = self.module.vae.usable(tensors[keys.LIBRARY])
        exposure = self.module.exposure(tensors)
        if estimand == "rate":
            return decoded * (exposure / library) * COUNTS_PER
        if self.module.vae.counts_are_modelled:
            return self.module.vae.likelihood.expected_captured(decoded * exposure, library)
        # a captured value is at least that of a single count
        return torch.maximum(decoded, torch.log1p(COUNTS_PER / library))

    def _spread(
        self, latents: torch.Tensor, condition: Condition, tensors: dict, estimand: Estimand
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance over samples of the expected value, in the units of :meth:`_expected`."""
        mean = square = 0.0
        for sample in range(latents.shape[1]):
            value = self._expected(latents[:, sample], condition, tensors, estimand)
            delta = value - mean
            mean = mean + delta / (sample + 1)
            square = square + delta * (value - mean)
        return mean, square / max(latents.shape[1] - 1, 1)

    def _variance(
        self,
        spread: tuple[torch.Tensor, torch.Tensor],
        latents: torch.Tensor,
        condition: Condition,
        tensors: dict,
        estimand: Estimand,
    ) -> torch.Tensor:
        """Variance of the expected value, in the units of :meth:`_expected`: over latents, and of what no latent holds.

        The value is that of one gene in one spot, which may differ from what other genes and spots share with it.
        """
        decoded = self.module.vae.decode(latents.mean(1), condition)
        own = self.module.vae.own_variance(decoded, condition).sqrt()
        if estimand == "rate":  # linear in what is decoded
            return spread[1] + self._in_units(own, tensors, estimand) ** 2
        ends = (decoded + own, (decoded - own).clamp(min=0.0))
        above, below = (self._in_units(end, tensors, estimand) for end in ends)
        return spread[1] + ((above - below) / 2.0) ** 2

    def _std(
        self,
        spread: tuple[torch.Tensor, torch.Tensor],
        latents: torch.Tensor,
        condition: Condition,
        tensors: dict,
        estimand: Estimand,
    ) -> torch.Tensor:
        """Calibrated standard deviation of the expected value, log1p(CP10K), from its :meth:`_spread` over latents."""
        factors = self.calibration_["std_factors"]
        factor = _by_kind(tensors, *(np.asarray(factors[kind]) for kind in ("hidden", "hidden_spots", "holes")))
        factor = torch.where(tensors[keys.MASK] > 0, factors["visible"], torch.from_numpy(factor).to(latents))
        std = factor * self._variance(spread, latents, condition, tensors, estimand).sqrt()
        # delta method from CP10K to its logarithm
        return std if estimand == "captured" else std / (1.0 + spread[0])

    @property
    def _modelled(self) -> Estimand:
        """What the likelihood is about."""
        return "rate" if self.module.vae.counts_are_modelled else "captured"

    def _as_modelled(
        self, spread: tuple[torch.Tensor, torch.Tensor], tensors: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of what is modelled in the likelihood's units: counts, or log1p(CP10K)."""
        if not self.module.vae.counts_are_modelled:
            return spread
        per_count = self.module.vae.usable(tensors[keys.LIBRARY]) / COUNTS_PER
        return spread[0] * per_count, spread[1] * per_count**2

    def _predictive(
        self, spread: tuple[torch.Tensor, torch.Tensor], tensors: dict, estimand: Estimand
    ) -> CountPredictive | NormalPredictive:
        """Distribution of the measured values of a batch, from the :meth:`_spread` of what is modelled."""
        vae = self.module.vae
        mean, variance = self._as_modelled(spread, tensors)
        variance = variance + vae.likelihood.noise_variance(mean, variance)
        library = vae.usable(tensors[keys.LIBRARY]).cpu().numpy()
        if not vae.counts_are_modelled:
            return NormalPredictive(mean.cpu().numpy(), variance.cpu().numpy(), library)
        variance = variance + mean  # of the Poisson distribution
        return CountPredictive(mean.cpu().numpy(), variance.cpu().numpy(), library, captured=estimand == "captured")

    def _interval(
        self,
        predictive: CountPredictive | NormalPredictive,
        tensors: dict,
        estimand: Estimand,
        level: float,
        positions: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated interval of the measured values of some genes, log1p(CP10K), (batch, n) each."""
        kinds = (self.calibration_, self.calibration_["hidden_spots"], self.calibration_["holes"])
        reaches = _by_kind(tensors, *(reach(kind, estimand, level) for kind in kinds))
        return predictive.of_genes(positions).interval(reaches[:, positions])

    @staticmethod
    def _kept(
        tensors: dict, library: np.ndarray, observed: str, fill: str, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which entries stay as measured, and the log1p(CP10K) of all."""
        counts = tensors[keys.COUNTS].cpu().numpy()[:, positions]
        known = tensors[keys.MASK].cpu().numpy()[:, positions] > 0
        kept = known & (counts > 0) if fill == "zeros" else known
        return kept & (observed == "keep"), log1p_cp10k(counts, library)


def _by_kind(tensors: dict, of_entry: np.ndarray, of_spot: np.ndarray, of_hole: np.ndarray) -> np.ndarray:
    """What holds for hidden entries, for spots of which nothing is visible, and for those without a visible neighbour."""
    seen = (tensors[keys.MASK] > 0).any(dim=1, keepdim=True).cpu().numpy()
    far = tensors[keys.NEIGHBORS_FAR].cpu().numpy()
    return np.where(seen, of_entry, np.where(far, of_hole, of_spot))


def spot_noise(seed: int, spots: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise that depends on the seed and each spot's row alone, (len(spots), *shape)."""
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, int(spot)])).standard_normal(shape, np.float32)
        for spot in spots
    ]
    return torch.from_numpy(np.stack(draws))


def samples_for_spread(n_samples: int) -> int:
    """Number of samples to draw where their spread is asked for: one has none."""
    return n_samples if n_samples > 1 else N_SAMPLES
