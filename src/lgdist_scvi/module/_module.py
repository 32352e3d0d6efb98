"""The module that owns both networks: what is hidden, what is scored, and what is asked at inference."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data

from lgdist_scvi.module._denoiser import Denoiser
from lgdist_scvi.module._diffusion import GaussianDiffusion
from lgdist_scvi.module._hiding import draw_hidden, split_counts
from lgdist_scvi.module._neighborhood import Around, Condition, Spots
from lgdist_scvi.module._vae import NeighborhoodVAE

Hide = Literal["random", "set_aside", "split", "nothing"]

# what a latent may be is widest, and least Gaussian, where nothing of a spot is visible
_WHOLE_SPOTS_IN_DIFFUSION = 0.3
_SMALLEST_SHARE = 0.05  # of a library that missing entries leave


class _Split(NamedTuple):
    """What is visible of the centres of a batch, and what is scored, (batch, n_genes) but where said.

    Attributes
    ----------
    counts, visible
        Counts to look at, and which entries are looked at, bool.
    looked_at
        Share of the library that the counts looked at are a part of: a number, or (batch, 1).
    known
        Entries that may ever be looked at, bool.
    target, share
        Counts to fit, and the share of the library that they are a part of: a number, or as `target`.
    score
        Weights of the entries in the loss.
    """

    counts: torch.Tensor
    visible: torch.Tensor
    looked_at: torch.Tensor | float
    known: torch.Tensor
    target: torch.Tensor
    share: torch.Tensor | float
    score: torch.Tensor


class LGDiSTModule(BaseModuleClass):
    """Neighbourhood VAE and latent diffusion over it.

    Everything that is hidden is hidden before anything is encoded: a token only ever sees `counts * visible`.

    Parameters
    ----------
    vae
        The neighbourhood VAE.
    n_latent, n_hidden
        Sizes of the VAE.
    n_denoiser_hidden, n_denoiser_layers, n_denoiser_heads
        Sizes of the denoiser.
    n_timesteps
        Noise steps of the diffusion in training.
    set_aside_patterns
        Entries that are set aside, (n_patterns, n_genes), bool; a spot uses the pattern of its row, cyclically. They are
        neither looked at nor fitted in training, but scored in validation. Spots that are set aside whole take no part in
        either.
    hide_up_to
        In training, up to this share of each spot's entries is hidden, see :func:`~lgdist_scvi.module._hiding.draw_hidden`.
    hide_spot
        Share of the spots, in training, of which everything is hidden; at least 0.3 in that of the diffusion.
    visible_weight
        Weight of what is fitted while visible, against 1 for what is hidden. In the VAE's training counts are split instead.
    keep_at_least
        In training, the visible counts of a spot are thinned to a share, uniform between this and 1; the rest is fitted.
    n_draws
        Noise draws per condition in a step of the diffusion's training.
    decoded_weight
        Weight of the decoded posterior mean's reconstruction of hidden entries in the diffusion's training.
    kl_weight
        Weight of the divergence from the prior.
    own_entries
        Whether a spot is predicted from its own visible entries too; False is the paper's neighbourhood-only condition.
    """

    def __init__(
        self,
        vae: NeighborhoodVAE,
        n_latent: int,
        n_hidden: int,
        n_denoiser_hidden: int,
        n_denoiser_layers: int,
        n_denoiser_heads: int,
        n_timesteps: int,
        set_aside_patterns: torch.Tensor,
        hide_up_to: float,
        hide_spot: float,
        visible_weight: float,
        keep_at_least: float,
        n_draws: int,
        decoded_weight: float,
        kl_weight: float,
        own_entries: bool,
    ):
        super().__init__()
        self.vae = vae
        self.denoiser = Denoiser(n_latent, n_hidden, n_denoiser_hidden, n_denoiser_layers, n_denoiser_heads)
        self.diffusion = GaussianDiffusion(n_timesteps)
        self.n_latent = n_latent
        self.hide_up_to = hide_up_to
        # to be asked without its own entries, a spot must often be seen without them
        self.hide_spot = hide_spot if own_entries else max(hide_spot, 0.5)
        self.own_entries = own_entries
        self.visible_weight = visible_weight
        self.keep_at_least = keep_at_least
        self.n_draws = n_draws
        self.decoded_weight = decoded_weight
        self.kl_weight = kl_weight
        self.register_buffer("set_aside_patterns", set_aside_patterns)
        self.register_buffer("residual_scale", torch.ones(n_latent))
        self.register_buffer("has_diffusion", torch.tensor(False))
        # of a second round of training: what completed the data that it was trained on
        self.first_round: LGDiSTModule | None = None

    def begin_second_round(self) -> None:
        """Keep the networks as they are for completing what the second round looks at."""
        self.first_round = deepcopy(self)
        self.has_diffusion.fill_(False)  # it is of the first round's VAE

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Make room for the parameters of a first round before they are loaded."""
        if model.n_rounds_ > 1:
            self.begin_second_round()

    # ---- what is visible and what is scored

    def set_aside(self, spot: torch.Tensor) -> torch.Tensor:
        """Entries that training never looks at, (n, n_genes), bool. A function of the spot's row alone."""
        return self.set_aside_patterns[spot.flatten().long() % len(self.set_aside_patterns)]

    def spots_set_aside(self, n_obs: int) -> np.ndarray:
        """Rows of the spots that are set aside whole, among the first `n_obs`."""
        whole = self.set_aside_patterns.all(dim=1).cpu().numpy()
        return np.flatnonzero(whole[np.arange(n_obs) % len(whole)])

    def share_set_aside(self) -> torch.Tensor:
        """Share of each gene's entries that is set aside, (n_genes,), in spots that are not set aside whole."""
        return self.set_aside_patterns[~self.set_aside_patterns.all(dim=1)].float().mean(0)

    def _hide(self, known: torch.Tensor, whole_spots: float, generator: torch.Generator | None = None) -> torch.Tensor:
        return draw_hidden(known.shape, self.hide_up_to, whole_spots, known.device, generator)

    def _get_inference_input(
        self,
        tensors: dict[str, torch.Tensor],
        hide: Hide = "nothing",
        generator: torch.Generator | None = None,
        autoencode: bool = True,
    ) -> dict:
        """What is visible of a batch, and what is scored; arguments as in :meth:`_split`."""
        split = self._split(tensors, hide, generator, autoencode)
        neighbors_visible = tensors["neighbor_mask"]
        if hide != "nothing":
            neighbors_visible = neighbors_visible * ~self.set_aside(tensors["neighbor_spot"])
        # of counts, the library that those looked at would be a part of
        library = self._whole_library(tensors["size_factor"], tensors["observed_mask"]) * split.looked_at
        neighbor_library = self._whole_library(tensors["neighbor_library"], tensors["neighbor_mask"])
        return {
            "centre": Spots(split.counts, split.visible.float(), library, regional=tensors.get("regional")),
            "known": split.known.float(),
            "counts": tensors["X"],
            "score": split.score,
            "target": split.target,
            "share": split.share,
            "neighbors": Spots(
                tensors["neighbor_counts"], neighbors_visible.float(), neighbor_library, self._fill(tensors)
            ),
            "neighbor_index": tensors["neighbor_index"].long(),
            "distance": tensors["neighbor_distance"],
            "valid": tensors["neighbor_valid"].bool(),
        }

    def _split(
        self, tensors: dict[str, torch.Tensor], hide: Hide, generator: torch.Generator | None, autoencode: bool
    ) -> _Split:
        """Split the centres of a batch into what is visible and what is scored.

        `hide` = "random" hides a part of the observed entries for training, "set_aside" those kept for validation,
        "nothing" shows all that is observed, and "split" shows half of the molecules of all that is observed, the other
        half being the target. Of the diffusion (not `autoencode`), "set_aside" hides a further part as its training does. Where
        spots are predicted from their neighbours only, nothing of them is visible but in the VAE's training.
        """
        counts, observed = tensors["X"], tensors["observed_mask"].bool()
        aside = torch.zeros_like(observed) if hide == "nothing" else self.set_aside(tensors["spot"])
        known = visible = observed & ~aside
        whole_spots = self.hide_spot if autoencode else max(self.hide_spot, _WHOLE_SPOTS_IN_DIFFUSION)
        target, share, looked_at, score = counts, 1.0, 1.0, (observed & aside).float()
        sees_itself = self.own_entries or (hide == "random" and autoencode)
        if hide == "random":
            visible = known & ~self._hide(known, whole_spots) & sees_itself
            weight = self.visible_weight
            if self.vae.counts_are_modelled and autoencode:
                kept = torch.rand(len(counts), 1, device=counts.device)
                looked_at = self.keep_at_least + (1.0 - self.keep_at_least) * kept
                counts, target, share = split_counts(counts, looked_at, visible)
                weight = 1.0
            score = torch.where(visible, weight, 1.0) * known
        elif hide == "split":
            visible, looked_at = observed, torch.full_like(counts[:, :1], 0.5)
            counts, target, share = split_counts(counts, looked_at, visible, generator)
        elif hide == "set_aside" and not autoencode:
            visible = known & ~self._hide(known, whole_spots, generator)
        return _Split(counts, visible & sees_itself, looked_at, known, target, share, score)

    def _fill(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Values of a first round in the place of the neighbours' missing entries."""
        if self.first_round is None:
            return None
        deviation = (tensors["neighbor_fill"] - self.vae.value_mean) / self.vae.value_scale
        return deviation * (1.0 - tensors["neighbor_mask"])

    def exposure(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Library size, in counts, that rates multiply: as it would be without missing entries, (batch, 1).

        The typical one where nothing was counted.
        """
        return self._whole_library(self.vae.usable(tensors["size_factor"]), tensors["observed_mask"])

    def _whole_library(self, library: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Library size as it would be without missing entries, where zeros are data, (n, 1).

        The registered library leaves missing entries out. It is scaled up by the share that the missing genes usually make
        up, so that rates mean the same in every spot. Of captured values no such share is known.
        """
        if not self.vae.counts_are_modelled:
            return library
        left = 1.0 - ((1.0 - observed) @ self.vae.gene_rate)[:, None]
        # what is given of a spot without observed entries is the depth that is asked about
        left = torch.where(observed.bool().any(dim=1, keepdim=True), left, 1.0)
        return library / left.clamp(min=_SMALLEST_SHARE)

    # ---- scvi-tools' three steps: stage 1

    def inference(
        self,
        centre: Spots,
        neighbors: Spots,
        neighbor_index: torch.Tensor,
        distance: torch.Tensor,
        valid: torch.Tensor,
        **scored: torch.Tensor,
    ) -> dict:
        """Posterior of the latent given what is visible."""
        around = self.vae.encode_neighbors(neighbors, neighbor_index, distance, valid)
        condition = self.vae.encode(centre, around)
        # sampled in training, the mean in validation: validation must not follow noise
        z = condition.sample(torch.randn_like(condition.mean)) if self.training else condition.mean
        return {"condition": condition, "z": z, **scored}

    def _get_generative_input(self, tensors: dict[str, torch.Tensor], inference_outputs: dict) -> dict:
        return {"z": inference_outputs["z"], "condition": inference_outputs["condition"]}

    def generative(self, z: torch.Tensor, condition: Condition) -> dict:
        """Expected rate, or expected captured value."""
        return {"px": self.vae.decode(z, condition)}

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
    ) -> LossOutput:
        """Negative evidence lower bound per spot, mostly on hidden entries, in nats per gene."""
        n_obs, n_genes = tensors["X"].shape
        condition, score = inference_outputs["condition"], inference_outputs["score"]
        entries = self._reconstruction(tensors, generative_outputs["px"], inference_outputs)
        reconstruction = (entries * score).sum() / score.sum().clamp(min=1.0)
        divergence = 0.5 * (condition.mean**2 + condition.log_variance.exp() - 1.0 - condition.log_variance).sum(-1)
        loss = reconstruction + self.kl_weight * divergence.mean() / n_genes
        return LossOutput(
            loss=loss, reconstruction_loss=reconstruction * n_obs, kl_local=divergence / n_genes, n_obs_minibatch=n_obs
        )

    def _reconstruction(self, tensors: dict[str, torch.Tensor], px: torch.Tensor, scored: dict) -> torch.Tensor:
        """Loss of each entry on what it is fitted to, in nats, (batch, n_genes)."""
        return self.vae.reconstruction(px, scored["target"], self.fitted_exposure(tensors, scored))

    def fitted_exposure(self, tensors: dict[str, torch.Tensor], scored: dict) -> torch.Tensor:
        """Library size, in counts, of what is fitted, (batch, 1) or (batch, n_genes)."""
        return self.exposure(tensors) * scored["share"]

    # ---- stage 2

    def diffusion_loss(
        self, tensors: dict[str, torch.Tensor], hide: Hide, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the denoiser on residuals of the latent; the VAE is frozen.

        What is diffused is a sample of the posterior given everything that is known, minus the posterior mean given
        what is visible, scaled. The condition is what is visible.

        Returns
        -------
        Mean squared error of v (0 to about 1), and the reconstruction of hidden entries by the decoded posterior mean
        in nats per gene.
        """
        inputs = self._get_inference_input(tensors, hide, generator, autoencode=False)
        score = inputs["score"]
        with torch.no_grad():
            condition, known = self._conditions(inputs, hide)
            device, (batch, n_latent) = score.device, condition.mean.shape
            noise = torch.randn(2, batch, self.n_draws, n_latent, generator=generator, device=device)
            scale = self._residual_scale(condition)[:, None]
            target = (known.sample(noise[0].movedim(1, 0)).movedim(0, 1) - condition.mean[:, None]) / scale
            timestep = self._timesteps(batch, generator, device)
            flat = (batch * self.n_draws, n_latent)
            noisy, velocity = self.diffusion.training_pair(
                target.reshape(flat), noise[1].reshape(flat), timestep.flatten()
            )
        predicted = self.denoiser(noisy.view_as(target), timestep, condition.tokens, condition.valid)
        error = ((predicted - velocity.view_as(target)) ** 2).mean()

        # the first draw sits at the noisiest step, where the prediction is minus the posterior mean
        mean = condition.mean - scale[:, 0] * predicted[:, 0]
        entries = self._reconstruction(tensors, self.vae.decode(mean, condition), inputs)
        decoded = (entries * (score * (inputs["centre"].visible == 0))).sum() / score.sum().clamp(min=1.0)
        return error, decoded

    def _residual_scale(self, condition: Condition) -> torch.Tensor:
        """Scale of the residual, (batch, n_latent): the VAE's own standard deviation, corrected per dimension.

        It follows how much is hidden, so that what is diffused has unit variance whatever is hidden.
        """
        return self.residual_scale * torch.exp(0.5 * condition.log_variance)

    def _conditions(self, inputs: dict, hide: Hide) -> tuple[Condition, Condition]:
        """The posterior given what is visible, and given everything that is known."""
        # the denoiser learns from what the network says: the experts leave the spread of samples alone
        around = self.around(inputs, with_experts=False)
        known = inputs["known"] if hide == "random" else torch.maximum(inputs["known"], inputs["score"])
        everything = Spots(inputs["counts"], known, inputs["centre"].library)
        return self.vae.encode(inputs["centre"], around), self.vae.encode(everything, around)

    def around(self, inputs: dict, with_experts: bool = True) -> Around:
        """What the neighbours of each spot of a batch tell."""
        return self.vae.encode_neighbors(
            inputs["neighbors"], inputs["neighbor_index"], inputs["distance"], inputs["valid"], with_experts
        )

    def _timesteps(self, batch: int, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        """One draw at the noisiest step, the others stratified over the schedule, (batch, n_draws)."""
        n_strata = self.n_draws - 1
        uniform = torch.rand(batch, n_strata, generator=generator, device=device)
        strata = (torch.arange(n_strata, device=device) + uniform) / max(n_strata, 1)
        timestep = (strata * self.diffusion.n_timesteps).long().clamp(max=self.diffusion.n_timesteps - 1)
        return torch.cat([timestep.new_full((batch, 1), self.diffusion.n_timesteps - 1), timestep], dim=1)

    @torch.no_grad()
    def residual_moments(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean square of the residual that the diffusion is trained on, (n_latent,), for its scale."""
        condition, known = self._conditions(self._get_inference_input(tensors, "random", autoencode=False), "random")
        residual = (known.mean - condition.mean) ** 2 + known.log_variance.exp()
        return (residual / condition.log_variance.exp()).mean(0)

    # ---- inference

    @auto_move_data
    def condition(self, tensors: dict[str, torch.Tensor], hide: Hide = "nothing") -> Condition:
        """What all observed entries, or those that are not hidden, tell about each spot of the batch."""
        inputs = self._get_inference_input(tensors, hide)
        return self.vae.encode(inputs["centre"], self.around(inputs))

    def latent_mean(self, condition: Condition) -> torch.Tensor:
        """Posterior mean of the latent, (batch, n_latent): one evaluation of the denoiser."""
        if not self.has_diffusion:
            return condition.mean
        residual = self.diffusion.posterior_mean(
            lambda x, t: self.denoiser(x[:, None], t[:, None], condition.tokens, condition.valid)[:, 0],
            torch.zeros_like(condition.mean),
        )
        return condition.mean + self._residual_scale(condition) * residual

    def sample(self, condition: Condition, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Samples of the latent from noise, both (batch, n_samples, n_latent)."""
        if not self.has_diffusion:
            return condition.sample(noise.movedim(1, 0)).movedim(0, 1)
        residual = self.diffusion.sample(
            lambda x, t: self.denoiser(x, t[:, None], condition.tokens, condition.valid),
            noise,
            n_steps,
        )
        return condition.mean[:, None] + self._residual_scale(condition)[:, None] * residual
