"""Denoiser: a diffusion transformer with one token for each value of the vector, such as a gene."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgdist_scvi.module.nn._layers import FeedForward

_N_TOKENS = 16_384  # at a time, where no gradient is asked for: samples are many


class SelfAttentionBlock(nn.Module):
    """Self-attention and feed-forward, each modulated by timestep and condition (adaLN-Zero).

    Peebles & Xie (2023), "Scalable diffusion models with transformers", section 3.2. The gates start at zero, so that
    every block starts as the identity.
    """

    def __init__(self, n_hidden: int, n_heads: int):
        from diffusers.models.normalization import AdaLayerNormZero

        super().__init__()
        self.modulated = AdaLayerNormZero(n_hidden)
        self.attention = nn.MultiheadAttention(n_hidden, n_heads, batch_first=True)
        self.norm = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.feed_forward = FeedForward(n_hidden, expansion=4)
        nn.init.zeros_(self.modulated.linear.weight)
        nn.init.zeros_(self.modulated.linear.bias)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Tokens, (n, n_tokens, n_hidden), given timestep and condition, (n, n_hidden)."""
        modulated, gate_a, shift, scale, gate_f = self.modulated(x, emb=given)
        x = x + gate_a[:, None] * self.attention(modulated, modulated, modulated, need_weights=False)[0]
        modulated = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        return x + gate_f[:, None] * self.feed_forward(modulated)


class GeneDiT(nn.Module):
    """Predict the diffusion target of a noisy vector; arguments as for :class:`VectorDiT`.

    Each value is a token, the value times a vector plus an embedding of its place, and attends to all others, in a time that grows
    with the square of `n_data`. Of the condition the first token alone is looked at.
    """

    def __init__(self, n_data: int, n_condition: int, n_hidden: int, n_layers: int, n_heads: int):
        from diffusers.models.embeddings import TimestepEmbedding
        from diffusers.models.normalization import AdaLayerNormContinuous

        super().__init__()
        self.embed = nn.Linear(1, n_hidden)
        self.genes = nn.Parameter(torch.randn(n_data, n_hidden))
        self.time = TimestepEmbedding(n_hidden, n_hidden)
        self.condition = nn.Sequential(nn.LayerNorm(n_condition), nn.Linear(n_condition, n_hidden))
        self.blocks = nn.ModuleList(SelfAttentionBlock(n_hidden, n_heads) for _ in range(n_layers))
        self.norm = AdaLayerNormContinuous(n_hidden, n_hidden, elementwise_affine=False)
        self.final = nn.Linear(n_hidden, 1)
        for layer in (self.norm.linear, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def given(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """What a condition is to :meth:`forward`, (batch, 1, n_hidden); arguments as in :meth:`VectorDiT.given`."""
        return self.condition(tokens[:, :1])

    def forward(self, x: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        """Predict, (batch, n_draws, n_data); arguments as in :meth:`VectorDiT.forward`."""
        from diffusers.models.embeddings import get_timestep_embedding

        n_hidden = self.genes.shape[1]
        features = get_timestep_embedding(
            timestep.flatten(), n_hidden, flip_sin_to_cos=True, downscale_freq_shift=0
        ).view(*timestep.shape, -1)
        given = self.time(features) + given  # (batch, n_draws or 1, n_hidden)
        given = given.expand(*x.shape[:2], -1).flatten(0, 1)  # (batch * n_draws, n_hidden)
        size = len(given) if torch.is_grad_enabled() else max(1, _N_TOKENS // x.shape[-1])
        parts = zip(x.flatten(0, 1).split(size), given.split(size), strict=True)
        return torch.cat([self._predicted(*part) for part in parts]).view_as(x)

    def _predicted(self, x: Tensor, given: Tensor) -> Tensor:
        hidden = self.embed(x[..., None]) + self.genes  # (n, n_data, n_hidden)
        for block in self.blocks:
            hidden = block(hidden, given)
        return self.final(self.norm(hidden, given))[..., 0]
