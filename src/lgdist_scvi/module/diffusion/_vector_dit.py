"""Denoiser: a diffusion transformer for one vector under a set of condition tokens; knows nothing of genes or neighbourhoods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from lgdist_scvi.module.nn._layers import FeedForward, TokenAttention


class DiTBlock(nn.Module):
    """Attention over condition tokens and feed-forward, each modulated by the timestep (adaLN-Zero).

    Peebles & Xie (2023), "Scalable diffusion models with transformers", section 3.2. The gates start at zero, so that
    every block starts as the identity.
    """

    def __init__(self, n_hidden: int, n_heads: int, n_condition: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.attention = TokenAttention(n_hidden, n_heads, n_condition)
        self.norm_feed_forward = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.feed_forward = FeedForward(n_hidden, expansion=4)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(n_hidden, 6 * n_hidden))
        nn.init.zeros_(self.modulation[-1].weight)
        nn.init.zeros_(self.modulation[-1].bias)

    def forward(self, x: Tensor, time: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Vectors, (batch, n_draws, n_hidden), with what each of them sees of the condition by `attend`."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(time).chunk(6, dim=-1)
        modulated = self.norm_attention(x) * (1 + scale_a) + shift_a
        x = x + gate_a * attend(modulated)
        return x + gate_f * self.feed_forward(self.norm_feed_forward(x) * (1 + scale_f) + shift_f)


@dataclass
class Given:
    """A condition: its summary, (batch, 1, n_hidden), its tokens, which are no padding, and their keys and values for each block."""

    summary: Tensor
    tokens: Tensor
    valid: Tensor
    keys_values: list[tuple[Tensor, Tensor]] | None = None

    def attention(self, layers: Sequence[TokenAttention], n_queries: int) -> list[Callable[[Tensor], Tensor]]:
        """The attention of each block to the tokens."""
        if n_queries == 1:
            return [partial(layer, tokens=self.tokens, valid=self.valid) for layer in layers]
        if self.keys_values is None:
            self.keys_values = [layer.keys_values(self.tokens) for layer in layers]
        return [
            partial(layer.attend, k=k, v=v, valid=self.valid)
            for layer, (k, v) in zip(layers, self.keys_values, strict=True)
        ]


class VectorDiT(nn.Module):
    """Predict the diffusion target of a noisy vector.

    Parameters
    ----------
    n_data, n_condition
        Length of the vector that is diffused, and width of the condition tokens.
    n_hidden, n_layers, n_heads
        Width, number and attention heads of the DiT blocks.
    """

    def __init__(self, n_data: int, n_condition: int, n_hidden: int, n_layers: int, n_heads: int):
        from diffusers.models.embeddings import TimestepEmbedding

        super().__init__()
        self.embed = nn.Linear(n_data, n_hidden)
        self.summary = nn.Linear(n_condition, n_hidden)
        self.time = TimestepEmbedding(n_hidden, n_hidden)
        self.norm_condition = nn.LayerNorm(n_condition)
        self.blocks = nn.ModuleList(DiTBlock(n_hidden, n_heads, n_condition) for _ in range(n_layers))
        self.norm = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(n_hidden, 2 * n_hidden))
        self.final = nn.Linear(n_hidden, n_data)
        for layer in (self.final_modulation[-1], self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def given(self, tokens: Tensor, valid: Tensor) -> Given:
        """What a condition is to :meth:`forward`, computed once for any number of draws and timesteps.

        Parameters
        ----------
        tokens, valid
            Condition, (batch, n_tokens, n_condition), of which the first token sums the others up, and False where one
            is padding.
        """
        tokens = self.norm_condition(tokens)
        return Given(self.summary(tokens[:, :1]), tokens, valid)

    def forward(self, x: Tensor, timestep: Tensor, given: Given) -> Tensor:
        """Predict, (batch, n_draws, n_data).

        Parameters
        ----------
        x
            Noisy vectors, (batch, n_draws, n_data): several draws share one condition.
        timestep
            Integer timesteps of the training schedule, (batch, n_draws), or (batch, 1) if the draws share them.
        given
            Condition, from :meth:`given`.
        """
        from diffusers.models.embeddings import get_timestep_embedding

        hidden = self.embed(x)  # (batch, n_draws, n_hidden)
        features = get_timestep_embedding(
            timestep.flatten(), hidden.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0
        ).view(*timestep.shape, -1)
        time = self.time(features) + given.summary  # (batch, n_draws or 1, n_hidden)
        attention = given.attention([block.attention for block in self.blocks], x.shape[1])
        for block, attend in zip(self.blocks, attention, strict=True):
            hidden = block(hidden, time, attend)
        shift, scale = self.final_modulation(time).chunk(2, dim=-1)
        return self.final(self.norm(hidden) * (1 + scale) + shift)
