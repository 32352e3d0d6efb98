from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module.nn._layers import TokenAttention


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return TokenAttention(n_hidden=12, n_heads=3, n_tokens_hidden=8).double()


def test_one_query_attends_as_several_do(attention):
    """Without keys and values, which several queries share, and with gradients of every parameter but the bias of the keys."""
    query, tokens = torch.randn(5, 12).double(), torch.randn(5, 7, 8).double()
    valid = torch.rand(5, 7) > 0.4
    valid[:, 0] = True
    keys_values = attention.keys_values(tokens)
    several = attention.attend(torch.stack([query, query + 1.0], dim=1), *keys_values, valid)
    one = attention(query, tokens, valid)
    torch.testing.assert_close(one, several[:, 0])
    torch.testing.assert_close(attention(query[:, None] + 1.0, tokens, valid), several[:, 1:])
    torch.testing.assert_close(one, attention(query, torch.where(valid[..., None], tokens, 9.0), valid))
    several = attention.attend(query[:, None], *keys_values, valid)
    expected = torch.autograd.grad(several.square().sum(), attention.parameters())
    found = torch.autograd.grad(one.square().sum(), attention.parameters())
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-6)
