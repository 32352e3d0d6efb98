"""The LGDiST module: inputs of a pass, encoding and decoding, and the losses of both stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch.distributions import Normal, kl_divergence

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Condition, Inputs, Neighborhood, Spots
from lgdist_scvi.module.diffusion import ResidualDiffusion
from lgdist_scvi.module.experts import EXPERTS, ExpertAverage, correction
from lgdist_scvi.module.lgdist._autoencoder import NeighborhoodAutoencoder
from lgdist_scvi.module.lgdist._config import LGDiSTConfig
from lgdist_scvi.module.lgdist._fit_experts import fit_experts
from lgdist_scvi.module.lgdist._fit_image import fit_image
from lgdist_scvi.module.lgdist._hiding import Hide, split_batch
from lgdist_scvi.module.lgdist._image import ImageCondition, hidden_at_random
from lgdist_scvi.module.likelihood import LIKELIHOODS, HoldOut, Likelihood


class LGDiSTModule(BaseModuleClass):
    """Neighbourhood autoencoder, experts beside it, and latent diffusion over it.

    Entries are hidden before anything is encoded: a token only ever sees `counts * visible`.

    Parameters
    ----------
    likelihood
        A key of :data:`~lgdist_scvi.module.likelihood.LIKELIHOODS`.
    compositional
        Whether the registered genes make up the library, so that rates sum to 1.
    own_entries
        Whether a spot is predicted from its own visible entries too; False is the paper's neighbourhood-only condition.
    set_aside_patterns
        Entries that are held out from training, (n_patterns, n_genes), bool; a spot uses the pattern of its row, cyclically. They
        are neither looked at nor fitted in training, but scored in validation. Spots that are held out whole take no part in
        either.
    config
        Sizes and settings.
    image_blocks
        Number of image features of each encoder; ``None`` without an image.
    """

    _autoencoder_cls = NeighborhoodAutoencoder

    def __init__(
        self,
        likelihood: str,
        compositional: bool,
        own_entries: bool,
        set_aside_patterns: torch.Tensor,
        config: LGDiSTConfig,
        image_blocks: Sequence[int] | None = None,
    ):
        super().__init__()
        n_genes = set_aside_patterns.shape[1]
        self.config, self.own_entries = config, own_entries
        self.autoencoder = self._autoencoder_cls(n_genes, LIKELIHOODS[likelihood], compositional, config)
        self.diffusion = ResidualDiffusion(
            config.n_latent, config.n_hidden, config.n_denoiser_hidden, config.n_denoiser_layers, config.n_denoiser_heads,
            config.n_timesteps, config.n_draws,
        )  # fmt: skip
        experts = (expert(n_genes, config) for expert in EXPERTS[self.likelihood.modelled])
        self.experts = ExpertAverage(experts, n_genes)
        self.image = None if image_blocks is None else ImageCondition(image_blocks, config)
        # of region effects of slides and surroundings; infinite: none
        self.register_buffer("region_shrinkage", torch.full((2,), torch.inf))
        self.register_buffer("set_aside_patterns", set_aside_patterns)
        # predictions without a spot's own entries must be trained often
        self.hide_spot = config.hide_spot if own_entries else max(config.hide_spot, 0.5)
        # of a second round of training: what completed the data that it was trained on
        self.first_round: LGDiSTModule | None = None

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of measured values."""
        return self.autoencoder.likelihood

    @property
    def hold_outs(self) -> tuple[HoldOut, ...]:
        """How entries can be held out to judge predictions."""
        return self.likelihood.hold_outs

    def initialise(self, statistics: Any) -> None:
        """Start from statistics of the data: a :class:`~lgdist_scvi.data.GeneStatistics`."""
        names = ("rate", "value_mean", "value_scale", "loadings", "signal")
        rate, mean, scale, loadings, signal = (torch.from_numpy(getattr(statistics, name)) for name in names)
        self.likelihood.set_statistics(rate, mean, scale, statistics.typical_library)
        self.autoencoder.initialise(loadings, signal)
        for expert in self.experts.experts:
            expert.initialise(self.likelihood, *statistics.some_spots)

    def is_finished(self) -> bool:
        """Whether nothing is left to fit after the networks."""
        return bool(self.experts.in_use) or not self.own_entries

    def finish(self, batches: Iterable[dict[str, torch.Tensor]], generator: torch.Generator) -> None:
        """Fit what comes after the networks; see :func:`fit_image` and :func:`fit_experts`."""
        if self.image is not None:
            fit_image(self, batches, generator.initial_seed())
        fit_experts(self, batches, generator)

    @property
    def sees_image(self) -> bool:
        """Whether predictions use the image."""
        return self.image is not None and self.image.in_use

    def begin_second_round(self) -> None:
        """Keep the networks as they are for completing what the second round looks at."""
        self.first_round = deepcopy(self)
        self.diffusion.trained.fill_(False)  # it is of the first round's autoencoder

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Make room for the parameters of a first round before they are loaded."""
        if model.n_rounds_ > 1:
            self.begin_second_round()

    # ---- what is visible and what is scored

    def set_aside(self, spot: torch.Tensor) -> torch.Tensor:
        """Entries that training never looks at, (n, n_genes), bool. A function of the spot's row alone."""
        return self.set_aside_patterns[spot.flatten().long() % len(self.set_aside_patterns)]

    def spots_set_aside(self, n_obs: int) -> np.ndarray:
        """Rows of the spots that are held out whole, among the first `n_obs`."""
        whole = self.set_aside_patterns.all(dim=1).cpu().numpy()
        return np.flatnonzero(whole[np.arange(n_obs) % len(whole)])

    def inputs(
        self,
        batch: dict[str, torch.Tensor],
        hide: Hide = "nothing",
        generator: torch.Generator | None = None,
        autoencode: bool = True,
        own_entries: bool = True,
    ) -> Inputs:
        """What is visible of a batch, and what is scored.

        Parameters
        ----------
        batch
            See :mod:`lgdist_scvi._keys`.
        hide
            ``"random"`` hides a part of the observed entries for training, ``"set_aside"`` those kept for validation, ``"nothing"``
            shows all that is observed, and ``"split"`` shows half of the molecules of all that is observed, the other half
            being the target.
        generator
            Of what is hidden.
        autoencode
            Whether it is the autoencoder's pass. In the diffusion's, ``"set_aside"`` hides a further part as its training does.
        own_entries
            False hides all of a spot's own entries, as a model of neighbours alone always does but in the autoencoder's training.
        """
        split = split_batch(self, batch, hide, generator, autoencode, own_entries)
        neighbors_visible = batch[keys.NEIGHBOR_MASK]
        if hide != "nothing":
            neighbors_visible = neighbors_visible * ~self.set_aside(batch[keys.NEIGHBOR_SPOT])
        whole_library = self.likelihood.whole_library
        # of counts, the library that those looked at would be a part of
        library = whole_library(batch[keys.LIBRARY], batch[keys.MASK]) * split.looked_at
        neighbor_library = whole_library(batch[keys.NEIGHBOR_LIBRARY], batch[keys.NEIGHBOR_MASK])
        further = [name for name in batch if name != keys.SPOT and keys.NEIGHBOR + name in batch]
        fields, neighbor_fields = ({name: batch[prefix + name] for name in further} for prefix in ("", keys.NEIGHBOR))
        if hide == "random" and self.sees_image:  # a spot without an image is normal
            for one in (fields, neighbor_fields):
                one[keys.IMAGE] = hidden_at_random(one[keys.IMAGE], self.config.hide_image)
        return Inputs(
            centre=Spots(split.counts, split.visible.float(), library, None, batch.get(keys.REGION_EFFECT), fields),
            neighbors=Spots(
                batch[keys.NEIGHBOR_COUNTS],
                neighbors_visible.float(),
                neighbor_library,
                self._prefill(batch),
                fields=neighbor_fields,
            ),
            index=batch[keys.NEIGHBOR_INDEX].long(),
            distance=batch[keys.NEIGHBOR_DISTANCE],
            valid=batch[keys.NEIGHBOR_VALID].bool(),
            counts=batch[keys.COUNTS],
            known=split.known.float(),
            target=split.target,
            share=split.share,
            score=split.score,
        )

    def _prefill(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Standardised values in the place of the neighbours' missing entries, (n_unique, n_genes)."""
        if keys.NEIGHBOR_PREFILL not in batch:
            return None
        return self.likelihood.standardise(batch[keys.NEIGHBOR_PREFILL]) * (1.0 - batch[keys.NEIGHBOR_MASK])

    def exposure(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Library size, in counts, that rates multiply: as it would be without missing entries, (batch, 1).

        The typical one where nothing was counted.
        """
        return self.likelihood.whole_library(self.likelihood.usable(batch[keys.LIBRARY]), batch[keys.MASK])

    def fitted_exposure(self, batch: dict[str, torch.Tensor], inputs: Inputs) -> torch.Tensor:
        """Library size, in counts, of what is fitted, (batch, 1) or (batch, n_genes)."""
        return self.exposure(batch) * inputs.share

    # ---- encoding and decoding

    def neighborhood(self, inputs: Inputs, with_experts: bool = True) -> Neighborhood:
        """Encode the neighbours of each spot of a batch, for the experts too if they are fitted."""
        neighbors = inputs.neighbors
        library = self.likelihood.visible_library(neighbors)
        neighborhood = self.autoencoder.encode_neighbors(
            neighbors, library, inputs.index, inputs.distance, inputs.valid
        )
        if self.sees_image:
            neighborhood.image = self.image.surroundings(neighbors.fields[keys.IMAGE], inputs.index, inputs.valid)
        if with_experts and self.experts.in_use:
            neighborhood.experts = self.experts.neighborhood(neighbors, library, inputs.index, inputs.valid)
        return neighborhood

    def encode(self, centre: Spots, neighborhood: Neighborhood) -> Condition:
        """Posterior of the centre's latent given its visible entries and its neighbourhood, and what else decoding needs."""
        library = self.likelihood.visible_library(centre)
        condition = self.autoencoder.encode(centre, library, neighborhood)
        if neighborhood.image is not None:
            condition = self.image(condition, centre.fields[keys.IMAGE], centre.visible, neighborhood.image)
        if neighborhood.experts is not None:
            experts, condition.reliability = self.experts.predict(centre, library, neighborhood.experts)
            condition.experts = self.likelihood.normalised(experts)
            condition.correction = correction(
                self.likelihood,
                self.autoencoder.decode(condition.mean, condition),
                condition.experts,
                condition.reliability,
                self.experts.weights(centre.visible),
            )
            condition.region_effect = centre.region_effect
            condition.own = self.own(centre)
        return condition

    def condition_of(self, inputs: Inputs) -> Condition:
        """Condition of the spots of a batch given their visible entries."""
        return self.encode(inputs.centre, self.neighborhood(inputs))

    @auto_move_data
    def condition(self, batch: dict[str, torch.Tensor], hide: Hide = "nothing", own_entries: bool = True) -> Condition:
        """Condition of the spots of a batch given all observed entries, or those that `hide` leaves; see :meth:`inputs`."""
        return self.condition_of(self.inputs(batch, hide, own_entries=own_entries))

    def shared(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The average of network and experts; as :meth:`decode`."""
        decoded = self.autoencoder.decode(latent, condition)
        if condition.correction is None:
            return decoded
        return self.likelihood.normalised(self.likelihood.corrected(decoded, condition.correction))

    def decode(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Expected rate (share of the library), or captured log1p(CP10K), as the likelihood has it.

        Applies, in order: the average of network and experts (`shared`), the region effect, and the gene effect of the spot's
        own count.

        Parameters
        ----------
        latent
            (..., batch, n_latent)
        condition
            Of the batch, (batch, ...).

        Returns
        -------
        (..., batch, n_genes)
        """
        return self.with_effects(self.shared(latent, condition), condition.region_effect, condition.own)

    def own(self, centre: Spots) -> tuple[torch.Tensor, torch.Tensor]:
        """Visible counts of spots, and the libraries that these were found in, (batch, n_genes) each."""
        return centre.counts * centre.visible, self.likelihood.visible_library(centre) * centre.visible

    def with_effects(
        self, shared: torch.Tensor, region_effect: torch.Tensor | None, own: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """What :meth:`shared` gives with the region effect, and the gene effect of the spot's own count."""
        if region_effect is not None:
            shared = self.likelihood.normalised(self.likelihood.region_effect.apply(shared, region_effect))
        return shared if own is None else self.likelihood.with_own_count(shared, own)

    def latent_mean(self, condition: Condition) -> torch.Tensor:
        """Posterior mean of the latent, (batch, n_latent): one evaluation of the denoiser."""
        return self.diffusion.mean(condition.mean, condition.spread, condition.tokens, condition.valid)

    def sample(self, condition: Condition, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Samples of the latent from noise, both (batch, n_samples, n_latent)."""
        posterior = condition.mean, condition.spread, condition.tokens, condition.valid
        return self.diffusion.sample(*posterior, noise, n_steps)

    # ---- scvi-tools' three steps: stage 1

    def _get_inference_input(
        self, tensors: dict[str, torch.Tensor], hide: Hide = "nothing", generator: torch.Generator | None = None
    ) -> dict:
        return {"inputs": self.inputs(tensors, hide, generator)}

    def inference(self, inputs: Inputs) -> dict:
        """Posterior of the latent given what is visible."""
        condition = self.condition_of(inputs)
        # sampled in training, the mean in validation: validation must not follow noise
        z = condition.sample(torch.randn_like(condition.mean)) if self.training else condition.mean
        return {"condition": condition, "z": z, "inputs": inputs}

    def _get_generative_input(self, tensors: dict[str, torch.Tensor], inference_outputs: dict) -> dict:
        return {"z": inference_outputs["z"], "condition": inference_outputs["condition"]}

    def generative(self, z: torch.Tensor, condition: Condition) -> dict:
        """Expected rate, or expected captured value."""
        return {"px": self.decode(z, condition)}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
    ) -> LossOutput:
        """Negative evidence lower bound per spot, mostly on hidden entries, in nats per gene."""
        n_obs, n_genes = tensors[keys.COUNTS].shape
        condition, inputs = inference_outputs["condition"], inference_outputs["inputs"]
        entries = self._reconstruction(tensors, generative_outputs["px"], inputs)
        reconstruction = (entries * inputs.score).sum() / inputs.score.sum().clamp(min=1.0)
        posterior = Normal(condition.mean, condition.spread, validate_args=False)
        prior = Normal(torch.zeros_like(condition.mean), 1.0, validate_args=False)
        divergence = kl_divergence(posterior, prior).sum(-1)
        loss = reconstruction + self.config.kl_weight * divergence.mean() / n_genes
        return LossOutput(
            loss=loss, reconstruction_loss=reconstruction * n_obs, kl_local=divergence / n_genes, n_obs_minibatch=n_obs
        )

    def _reconstruction(self, batch: dict[str, torch.Tensor], px: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Loss of each entry on what it is fitted to, in nats, (batch, n_genes)."""
        return self.likelihood.training_loss(px, inputs.target, self.fitted_exposure(batch, inputs))

    # ---- stage 2

    def diffusion_loss(
        self, batch: dict[str, torch.Tensor], hide: Hide, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the denoiser on residuals of the latent; the autoencoder is frozen.

        What is diffused is a sample of the posterior given everything that is known, minus the posterior mean given
        what is visible, scaled. The condition is what is visible.

        Returns
        -------
        Mean squared error of v (0 to about 1), and the reconstruction of hidden entries by the decoded posterior mean
        in nats per gene.
        """
        inputs = self.inputs(batch, hide, generator, autoencode=False)
        score = inputs.score
        with torch.no_grad():
            condition, known = self._conditions(inputs, hide)
            noise = self.diffusion.noise(len(score), generator, score.device)
            target = known.sample(noise[0].movedim(1, 0)).movedim(0, 1)  # (batch, n_draws, n_latent)
            posterior = condition.mean, condition.spread
            noised = self.diffusion.noised(target, noise[1], *posterior, generator)
        error, mean = self.diffusion.loss(noised, *posterior, condition.tokens, condition.valid)
        entries = self._reconstruction(batch, self.decode(mean, condition), inputs)
        decoded = (entries * (score * (inputs.centre.visible == 0))).sum() / score.sum().clamp(min=1.0)
        return error, decoded

    def _conditions(self, inputs: Inputs, hide: Hide) -> tuple[Condition, Condition]:
        """The posterior given what is visible, and given everything that is known."""
        # the denoiser learns from the network alone: the experts leave the spread of samples as it is
        neighborhood = self.neighborhood(inputs, with_experts=False)
        known = inputs.known if hide == "random" else torch.maximum(inputs.known, inputs.score)
        everything = replace(inputs.centre, counts=inputs.counts, visible=known)
        return self.encode(inputs.centre, neighborhood), self.encode(everything, neighborhood)

    @torch.no_grad()
    def measure_residuals(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Set the scale of the residuals that the diffusion is trained on, from some batches."""
        squares = []
        for batch in batches:
            condition, known = self._conditions(self.inputs(batch, "random", autoencode=False), "random")
            residual = (known.mean - condition.mean) ** 2 + known.log_variance.exp()
            squares.append((residual / condition.log_variance.exp()).mean(0))
        self.diffusion.set_scale(torch.stack(squares))
