"""Attention and feed-forward blocks of autoencoder and denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Sequential):
    """Two-layer perceptron with GELU, (..., n_hidden) -> (..., n_hidden)."""

    def __init__(self, n_hidden: int, expansion: int = 2, dropout_rate: float = 0.0):
        super().__init__(
            nn.Linear(n_hidden, expansion * n_hidden),
            nn.GELU(),
            nn.Dropout(dropout_rate),
            nn.Linear(expansion * n_hidden, n_hidden),
        )


class ResidualBlock(nn.Module):
    """Pre-normalised feed-forward block, (..., n_hidden) -> (..., n_hidden)."""

    def __init__(self, n_hidden: int, dropout_rate: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(n_hidden)
        self.feed_forward = FeedForward(n_hidden, dropout_rate=dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.norm(x))


class TokenAttention(nn.Module):
    """Multi-head attention of one query vector over a set of tokens; the order of the tokens does not matter."""

    def __init__(self, n_hidden: int, n_heads: int, n_tokens_hidden: int | None = None):
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(n_hidden, n_hidden)
        self.key_value = nn.Linear(n_tokens_hidden or n_hidden, 2 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def forward(self, query: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """Attend with one query, (batch, n_hidden) or (batch, 1, n_hidden); same shape out.

        Tokens are (batch, n_tokens, n_tokens_hidden); `valid` is False where a token is padding, and True at least once
        in a row. Keys and values are never computed: what is linear in tokens comes once for the query. The bias of the
        keys adds the same to all tokens, which changes nothing.
        """
        n_head = query.shape[-1] // self.n_heads
        key, value = self.key_value.weight.view(2, self.n_heads, n_head, -1)
        q = self.query(query).view(-1, self.n_heads, n_head)
        q = torch.einsum("bhd,hdc->bhc", q, key)
        seen = F.scaled_dot_product_attention(q, tokens, tokens, attn_mask=valid[:, None], scale=n_head**-0.5)
        attended = torch.einsum("bhc,hdc->bhd", seen, value).reshape(query.shape)
        return self.out(attended + self.key_value.bias.chunk(2)[1])

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens, (batch, n_heads, n_tokens, n_head) each."""
        key_value = self.key_value(tokens).view(*tokens.shape[:2], 2, self.n_heads, -1)
        k, v = key_value.permute(2, 0, 3, 1, 4)
        return k, v

    def attend(self, query: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """As :meth:`forward`, with several queries, (batch, n_queries, n_hidden), from the tokens' :meth:`keys_values`."""
        # (batch, n_heads, n_queries, n_head)
        q = self.query(query).view(len(k), -1, self.n_heads, query.shape[-1] // self.n_heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        return self.out(attended.transpose(1, 2).reshape(query.shape))


class CentreBlock(nn.Module):
    """Transformer block that updates the centre of a neighbourhood only; tokens of neighbours stay as they are.

    Neighbours never see the centre, so what they carry cannot depend on it.
    """

    def __init__(self, n_hidden: int, n_heads: int, dropout_rate: float = 0.0):
        super().__init__()
        self.norm_centre = nn.LayerNorm(n_hidden)
        self.norm_tokens = nn.LayerNorm(n_hidden)
        self.attention = TokenAttention(n_hidden, n_heads)
        self.feed_forward = ResidualBlock(n_hidden, dropout_rate)

    def forward(self, centre: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        attended = self.attention(self.norm_centre(centre), self.norm_tokens(tokens), valid)
        return self.feed_forward(centre + attended)


class DistanceEncoding(nn.Module):
    """Encode how far a neighbour lies, in units of the spot pitch.

    Tissue has no preferred direction on a slide, so direction does not enter. A function of the distance alone serves
    any number and any order of neighbours and any geometry.
    """

    def __init__(self, n_hidden: int, n_basis: int = 12, longest: float = 8.0):
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.0, longest**0.5, n_basis))
        self.project = nn.Linear(n_basis, n_hidden)

    def forward(self, distance: Tensor) -> Tensor:
        """(batch, n_neighbors) -> (batch, n_neighbors, n_hidden)."""
        width = self.centres[1] - self.centres[0]
        basis = torch.exp(-0.5 * ((distance.clamp(min=0).sqrt()[..., None] - self.centres) / width) ** 2)
        return self.project(basis)
