"""The Stem module: networks that each leave out some slides, an expert beside them, and latent diffusion over both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Posterior
from lgdist_scvi.module.diffusion import ResidualDiffusion, VectorDiT
from lgdist_scvi.module.experts import ExpertAverage, HeldOutBatch, best_weights, correction
from lgdist_scvi.module.likelihood import LIKELIHOODS, HoldOut, Likelihood
from lgdist_scvi.module.nn._image_components import ImageComponents
from lgdist_scvi.module.stem._basis import LogRates
from lgdist_scvi.module.stem._choice import certain_choice
from lgdist_scvi.module.stem._config import StemConfig
from lgdist_scvi.module.stem._kernel import ImageKernel
from lgdist_scvi.module.stem._network import PatchNetwork
from lgdist_scvi.module.stem._patches import PatchInputs, TrainingPatches, on_device

Batch = dict[str, torch.Tensor]

_PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)
_N_SAMPLES, _N_STEPS, _N_ROUNDS = 4, 10, 3
_TRUSTS = (0.25, 0.5, 0.75, 1.0)
_N_DISPERSION_SPOTS, _N_DISPERSION_STEPS = 2048, 60


class StemModule(BaseModuleClass):
    """Expected rates of a spot from the image around it.

    A latent, principal axes of log rates, is predicted by several networks, each trained without one part of the slides: of a spot
    of the training the prediction is that of the network that never saw its slide, and of others the mean over networks. What is
    judged in training - when to stop, weights, noise, intervals - is therefore judged on slides that were not seen.

    Parameters
    ----------
    likelihood
        A key of :data:`~lgdist_scvi.module.likelihood.LIKELIHOODS`, of counts.
    n_genes
        Number of genes.
    blocks
        Number of image features of each encoder.
    compositional
        Whether the registered genes make up the library.
    per_slide
        Whether features are standardised on each slide.
    n_folds
        Number of parts of the slides.
    config
        Sizes and settings.
    """

    first_round = None  # no second round of training
    own_entries = False  # no count of a spot is looked at
    hold_outs: tuple[HoldOut, ...] = ("unseen_slide",)

    def __init__(
        self,
        likelihood: str,
        n_genes: int,
        blocks: Sequence[int],
        compositional: bool,
        per_slide: bool,
        n_folds: int,
        config: StemConfig,
    ):
        super().__init__()
        self.config, self.n_folds = config, n_folds
        self.likelihood: Likelihood = LIKELIHOODS[likelihood](n_genes, config.n_latent, compositional)
        self.components = ImageComponents(blocks, config.n_components, per_slide)
        self._build(n_genes)
        # of the way from the genes' mean rates to what the image says
        self.register_buffer("trust", torch.tensor(1.0))
        # of the patches generated for a spot, in relation to its own; of a training, not of the model
        self.register_buffer("synthetic_weight", torch.tensor(0.0), persistent=False)
        # of the way from the networks' mean to the diffusion's, and what brings samples to the level of the mean
        self.register_buffer("pull", torch.tensor(1.0))
        self.register_buffer("sample_shift", torch.zeros(self.diffusion.n_data))
        # of the latent around its mean, on slides not seen
        self.register_buffer("spread", torch.ones(self.diffusion.n_data))
        # no region effects: they are told by counts
        self.register_buffer("region_shrinkage", torch.full((2,), torch.inf))
        self.register_buffer("set_aside_patterns", torch.zeros(1, n_genes, dtype=torch.bool))  # slides are held out

    def _build(self, n_genes: int) -> None:
        """Make the latent, what predicts it, and its diffusion."""
        config, n_components = self.config, self.components.n_components
        self.basis = LogRates(n_genes, config.n_latent)
        self.networks = nn.ModuleList(PatchNetwork(config, n_components) for _ in range(self.n_folds))
        kernel = ImageKernel(n_genes, config.n_latent, n_components, self.n_folds, self.likelihood)
        self.experts = ExpertAverage([kernel], n_genes)
        self.diffusion = self._diffusion(config.n_latent, VectorDiT)

    def _diffusion(self, n_data: int, denoiser: type[nn.Module]) -> ResidualDiffusion:
        config = self.config
        sizes = (config.n_denoiser_hidden, config.n_denoiser_layers, config.n_denoiser_heads)
        return ResidualDiffusion(
            n_data, self.components.n_components, *sizes, config.n_timesteps, config.n_draws, denoiser
        )

    @property
    def n_judged(self) -> int:
        """Number of parts of the slides, the first ones, that are predicted without having been seen."""
        return self.n_folds

    def initialise(self, statistics: Any) -> None:
        """Start from what is known of the data: a :class:`~lgdist_scvi.data.GeneStatistics`."""
        parts = (statistics.rate, statistics.value_mean, statistics.value_scale)
        self.likelihood.set_statistics(*map(torch.from_numpy, parts), statistics.typical_library)
        for dispersion in self.likelihood.parameters():
            nn.init.zeros_(dispersion)  # images leave much open; its size is measured after training
        for expert in self.experts.experts:
            expert.initialise(self.likelihood, *statistics.some_spots)

    def set_basis(self, rate: np.ndarray) -> None:
        """Take the latent from expected rates of the training spots, (n, n_genes)."""
        self.basis.fit(rate, self.likelihood.gene_rate.cpu().numpy())
        for expert in self.experts.experts:
            expert.basis.load_state_dict(self.basis.state_dict())

    def latent_of(self, rate: np.ndarray) -> np.ndarray:
        """Latents of rates, (..., n_genes) -> (..., n_latent)."""
        return self.basis.latent_of(rate, self.likelihood.gene_rate.cpu().numpy())

    # ---- what is held out

    def is_finished(self) -> bool:
        """Whether nothing is left to fit after the networks."""
        return True

    def set_aside(self, spot: torch.Tensor) -> torch.Tensor:
        """Entries that the prediction of a training spot never saw, (n, n_genes), bool: all."""
        return torch.ones(len(spot), self.set_aside_patterns.shape[1], dtype=torch.bool, device=spot.device)

    def spots_set_aside(self, n_obs: int) -> np.ndarray:
        """Rows of single spots that are held out: none."""
        return np.empty(0, dtype=np.int64)

    # ---- answers

    def exposure(self, batch: Batch) -> torch.Tensor:
        """Library size, in counts, that rates multiply, (batch, 1); the typical one where it is not known."""
        return self.likelihood.usable(batch[keys.LIBRARY])

    @auto_move_data
    def condition(self, batch: Batch, hide: str = "nothing", own_entries: bool = True) -> Posterior:
        """What the image tells about each spot of the batch; nothing is hidden, for no count is looked at."""
        inputs = PatchInputs.of(batch)
        mean = self._mean(inputs)
        tokens = torch.cat([inputs.centre.image[:, None], inputs.neighbors.image[inputs.index]], dim=1)
        posterior = Posterior(
            mean=mean,
            log_variance=(2.0 * self.spread.log()).expand_as(mean),
            tokens=tokens,
            valid=torch.cat([torch.ones_like(inputs.valid[:, :1]), inputs.valid], dim=1),
        )
        if self.experts.in_use:
            centre, neighbors = inputs.centre, inputs.neighbors
            parts = self.experts.neighborhood(neighbors, neighbors.library, inputs.index, inputs.valid)
            experts, posterior.reliability = self.experts.predict(centre, centre.library, parts)
            posterior.experts = self.likelihood.normalised(experts)
            network = self.decoded(mean)
            weights = self.experts.weights(centre.visible)
            posterior.correction = correction(
                self.likelihood, network, posterior.experts, posterior.reliability, weights
            )
            if self.trust < 1:
                average = self.likelihood.corrected(network, posterior.correction)
                followed = torch.lerp(self.likelihood.gene_rate, average, self.trust)
                posterior.correction = self.likelihood.relative(followed, network)
        return posterior

    def _mean(self, inputs: PatchInputs) -> torch.Tensor:
        """Mean of the latent, by the networks that may be asked, (batch, n_latent)."""
        means = torch.stack([network(inputs) for network in self.networks])  # (n_folds, batch, n_latent)
        if inputs.centre.fold is None:
            return means.mean(0)
        return means[inputs.centre.fold, torch.arange(means.shape[1], device=means.device)]

    def decoded(self, latent: torch.Tensor) -> torch.Tensor:
        """Rates by the network alone, (..., n_latent) -> (..., n_genes)."""
        return self.likelihood.expected(self.basis(latent))

    def decode(self, latent: torch.Tensor, condition: Posterior) -> torch.Tensor:
        """Expected rate, share of the library: the average of network and experts, (..., batch, n_genes)."""
        decoded = self.decoded(latent)
        if condition.correction is None:
            return decoded
        return self.likelihood.normalised(self.likelihood.corrected(decoded, condition.correction))

    def latent_mean(self, condition: Posterior) -> torch.Tensor:
        """Posterior mean of the latent, (batch, n_latent): one evaluation of the denoiser."""
        mean = self.diffusion.mean(condition.mean, condition.spread, condition.tokens, condition.valid)
        return torch.lerp(condition.mean, mean, self.pull)

    def sample(self, condition: Posterior, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Samples of the latent from noise, both (batch, n_samples, n_latent)."""
        posterior = condition.mean, condition.spread, condition.tokens, condition.valid
        return self.diffusion.sample(*posterior, noise, n_steps) + self.sample_shift

    # ---- scvi-tools' three steps: stage 1

    def _get_inference_input(self, tensors: Batch) -> dict:
        return {"inputs": PatchInputs.of(tensors)}

    def inference(self, inputs: PatchInputs) -> dict:
        """Means of the latent by each network."""
        return {"z": torch.stack([network(inputs) for network in self.networks]), "inputs": inputs}

    def _get_generative_input(self, tensors: Batch, inference_outputs: dict) -> dict:
        return {"z": inference_outputs["z"]}

    def generative(self, z: torch.Tensor) -> dict:
        """Expected rates by each network, (n_folds, batch, n_genes)."""
        return {"px": self.decoded(z)}

    def loss(self, tensors: Batch, inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        """Poisson loss of each network on the spots that it may see, in nats per gene; in validation, on the others' counts."""
        fold, exposure = inference_outputs["inputs"].centre.fold, self.exposure(tensors)
        target = tensors[keys.TARGET_RATE] * exposure if self.training else tensors[keys.COUNTS]
        total, n_obs = torch.zeros((), device=exposure.device), len(fold)
        for part, px in enumerate(generative_outputs["px"]):
            scored = tensors[keys.MASK] * ((fold == part) != self.training)[:, None]
            entries = self.likelihood.error(px, target, exposure) * scored
            if self.training:
                total = total + entries.sum() / scored.sum().clamp(min=1.0)
            else:  # every spot is scored once
                total = total + entries.sum() / tensors[keys.MASK].sum().clamp(min=1.0)
        return LossOutput(loss=total, reconstruction_loss=total * n_obs, n_obs_minibatch=n_obs)

    # ---- after it: experts and spread, on slides that were not seen

    @torch.no_grad()
    def fit_experts(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Fit the experts, choose their weights, and measure the spread of the latent."""
        batches = list(on_device(batches, self.spread.device))
        self.experts.in_use.fill_(False)
        self.trust.fill_(1.0)
        self.sample_shift.zero_()  # of an earlier diffusion
        data = TrainingPatches.of(batches, float(self.synthetic_weight))
        for expert in self.experts.experts:
            expert.fit(data, self.likelihood, generator)
        means = torch.cat([self._mean(PatchInputs.of(batch)) for batch in batches])
        self.spread.copy_((data.latent - means).square().mean(0).sqrt().clamp(min=1e-3))
        self.experts.weights_hidden.zero_()
        self.experts.in_use.fill_(True)
        weights = best_weights(self.likelihood, len(self.experts.experts), self._held_out(batches))
        self.experts.weights_hidden.copy_(weights)
        self._choose_trust(batches)
        self._fit_dispersion(batches)

    def _choose_trust(self, batches: Iterable[Batch]) -> None:
        """Choose how far the image is followed: not at all where no gain over the genes' mean rates is certain."""
        self.trust.fill_(1.0)
        parts, gene_rate = [], self.likelihood.gene_rate
        for batch in batches:
            condition, exposure = self.condition(batch), self.exposure(batch)
            decoded, observed = self.decode(condition.mean, condition), batch[keys.MASK]
            rates = [torch.lerp(gene_rate, decoded, trust) for trust in (0.0, *_TRUSTS)]
            losses = [(self.likelihood.error(rate, batch[keys.COUNTS], exposure) * observed).sum(1) for rate in rates]
            parts.append(torch.stack(losses))  # (1 + n_trusts, batch)
        self.trust.fill_(certain_choice(torch.cat(parts, dim=1).double(), _TRUSTS)[0])

    def _fit_dispersion(self, batches: Iterable[Batch]) -> None:
        """Fit the dispersion of each gene by maximum likelihood around what is predicted of slides that were not seen.

        That of a gene with few counts is drawn to the genes' mean.
        """
        dispersion, parts = list(self.likelihood.parameters()), []
        if not dispersion:
            return
        for batch in batches[: -(-_N_DISPERSION_SPOTS // max(len(batches[0][keys.COUNTS]), 1))]:
            condition = self.condition(batch)
            mean = self.decode(self.latent_mean(condition), condition) * self.exposure(batch)
            parts.append((batch[keys.COUNTS], mean, batch[keys.MASK]))
        counts, mean, observed = map(torch.cat, zip(*parts, strict=True))
        with torch.enable_grad():
            optimizer = torch.optim.Adam(dispersion, lr=0.2)
            for _ in range(_N_DISPERSION_STEPS):
                optimizer.zero_grad()
                loss = (self.likelihood.dispersion_loss(counts, mean) * observed).sum()
                for parameter in dispersion:
                    loss = loss + 0.5 * (parameter - parameter.mean()).square().sum()
                loss.backward()
                optimizer.step()
        for parameter in dispersion:
            parameter.grad = None

    def _held_out(self, batches: Iterable[Batch]) -> Iterator[HeldOutBatch]:
        for batch in batches:
            condition = self.condition(batch)
            yield HeldOutBatch(
                self.decoded(condition.mean),
                condition.experts,
                condition.reliability,
                batch[keys.COUNTS],
                self.exposure(batch),
                batch[keys.MASK] > 0,
            )

    # ---- stage 2

    def diffusion_loss(
        self, batch: Batch, hide: str = "random", generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the denoiser on residuals of the latent around means by networks that did not see the slide.

        The first part of the slides validates (``hide="set_aside"``); the denoiser is not trained on it.

        Returns
        -------
        Mean squared error of v (0 to about 1), and the loss of the counts by the decoded posterior mean in nats per gene.
        """
        validate = hide == "set_aside"
        here = (batch[keys.FOLD].flatten() == 0) == validate
        with torch.no_grad():
            condition = self.condition(batch)
            rows = here.nonzero()[:, 0]
            mean, spread, tokens, valid = (
                part[rows] for part in (condition.mean, condition.spread, condition.tokens, condition.valid)
            )
            drawn, n_draws = batch[keys.TARGET_LATENT][rows], self.diffusion.n_draws
            chosen = torch.randint(drawn.shape[1], (len(rows), n_draws), generator=generator, device=drawn.device)
            target = drawn.gather(1, chosen[..., None].expand(-1, -1, drawn.shape[2]))
            noise = self.diffusion.noise(len(rows), generator, mean.device)[1]
            noised = self.diffusion.noised(target, noise, mean, spread, generator)
        if not len(rows):
            nothing = sum(parameter.sum() for parameter in self.diffusion.denoiser.parameters()) * 0.0
            return nothing, nothing
        error, mean = self.diffusion.loss(noised, mean, spread, tokens, valid)
        scored, exposure = batch[keys.MASK][rows], self.exposure(batch)[rows]
        target = batch[keys.COUNTS][rows] if validate else batch[keys.TARGET_RATE][rows] * exposure
        entries = self.likelihood.error(self.decoded(mean), target, exposure) * scored
        return error, entries.sum() / scored.sum().clamp(min=1.0)

    @torch.no_grad()
    def measure_residuals(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the residuals that the diffusion is trained on."""
        squares = []
        for batch in batches:
            condition = self.condition(batch)
            residual = (batch[keys.TARGET_LATENT] - condition.mean[:, None]) / condition.spread[:, None]
            squares.append(residual.square().mean((0, 1)))
        self.diffusion.set_scale(torch.stack(squares))

    @torch.no_grad()
    def settle(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Choose how far to follow the diffusion's mean, and bring samples of rates to its level, on slides that were not seen.

        Networks are trained to give mean rates; the mean of a latent gives less, as the logarithm of a mean is more than the mean
        of logarithms.
        """
        self.pull.fill_(1.0)
        self.sample_shift.zero_()
        errors, parts = torch.zeros(len(_PULLS), dtype=torch.float64), []
        for batch in on_device(batches, self.spread.device):
            condition, exposure = self.condition(batch), self.exposure(batch)
            mean = self.latent_mean(condition)
            unseen = batch[keys.MASK] * (batch[keys.FOLD] == 0)  # by the denoiser neither
            for place, pull in enumerate(_PULLS):
                decoded = self.decode(torch.lerp(condition.mean, mean, pull), condition)
                errors[place] += float((self.likelihood.error(decoded, batch[keys.COUNTS], exposure) * unseen).sum())
            parts.append((condition, mean, self._drawn(condition, generator)))
        self.pull.fill_(_PULLS[int(errors.argmin())])
        self._level_samples([(one, torch.lerp(one.mean, mean, self.pull), drawn) for one, mean, drawn in parts])

    def _drawn(self, condition: Posterior, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(len(condition.mean), _N_SAMPLES, condition.mean.shape[1], generator=generator)
        return self.sample(condition, noise.to(condition.mean.device), min(_N_STEPS, self.diffusion.n_timesteps))

    def _level_samples(self, parts: Sequence[tuple[Posterior, torch.Tensor, torch.Tensor]]) -> None:
        """Bring samples of rates to the level of their means; of each part the posterior, and the mean and samples of the latent."""
        for _ in range(_N_ROUNDS):
            of_mean = sum(self.decode(mean, one).sum(0) for one, mean, _ in parts)
            of_samples = sum(
                self.decode(drawn[:, place] + self.sample_shift, one).sum(0) / _N_SAMPLES
                for one, _, drawn in parts
                for place in range(_N_SAMPLES)
            )
            self.sample_shift += self.basis.latent_change(torch.log(of_mean / of_samples))
