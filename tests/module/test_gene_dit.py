"""The denoiser with a token for each gene."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module.diffusion import GeneDiT, ResidualDiffusion, _gene_dit

N_GENES, N_CONDITION = 7, 5


@pytest.fixture
def network() -> GeneDiT:
    """One whose gates are open, as after training."""
    torch.manual_seed(0)
    network = GeneDiT(N_GENES, N_CONDITION, n_hidden=16, n_layers=2, n_heads=2)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, N_GENES, generator=generator)
    timestep = torch.randint(0, 50, (3, 4), generator=generator)
    tokens = torch.randn(3, 2, N_CONDITION, generator=generator)
    return x, timestep, tokens, torch.ones(3, 2, dtype=torch.bool)


def predicted(
    network: GeneDiT, x: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    return network(x, timestep, network.given(tokens, valid))


def test_every_gene_sees_the_value_of_every_other(network, inputs):
    """And of nothing else but its own draw."""
    x, *given = inputs
    x = x.requires_grad_()
    for gene in range(N_GENES):
        (gradient,) = torch.autograd.grad(predicted(network, x, *given)[1, 2, gene], x)
        assert (gradient[1, 2] != 0).all()
        assert (gradient != 0).sum() == N_GENES


def test_genes_differ_by_their_embeddings_alone(network, inputs):
    """Permuted together with their embeddings they give the same; of one embedding for all, equal values give the same."""
    x, *given = inputs
    out, order = predicted(network, x, *given), torch.randperm(N_GENES, generator=torch.Generator().manual_seed(2))
    network.genes.data = network.genes.data[order]
    torch.testing.assert_close(predicted(network, x[..., order], *given), out[..., order])
    equal = torch.ones_like(x)
    assert (predicted(network, equal, *given).std(-1) > 1e-3).all()
    network.genes.data = network.genes.data[:1].expand(N_GENES, -1).clone()
    assert (predicted(network, equal, *given).std(-1) < 1e-5).all()


def test_timestep_and_own_patch_matter_and_no_other_token(network, inputs):
    x, timestep, tokens, valid = inputs
    out = predicted(network, x, timestep, tokens, valid)
    assert not torch.allclose(predicted(network, x, timestep + 20, tokens, valid), out, atol=1e-3)
    for token, matters in ((0, True), (1, False)):
        changed = tokens.clone()
        changed[:, token] = torch.randn(3, N_CONDITION, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(predicted(network, x, timestep, changed, valid), out, atol=1e-5) != matters
    shared = predicted(network, x, timestep[:, :1], tokens, valid)  # one timestep for all draws
    torch.testing.assert_close(shared, predicted(network, x, timestep[:, :1].expand(3, 4), tokens, valid))


def test_a_new_network_predicts_nothing(inputs):
    network = GeneDiT(N_GENES, N_CONDITION, 16, 2, 2)
    assert torch.equal(predicted(network, *inputs), torch.zeros(3, 4, N_GENES))
    before = inputs[0].flatten(0, 1)[..., None].expand(-1, -1, 16)
    given = torch.randn(12, 16)
    assert torch.equal(network.blocks[0](before, given), before)  # every block is the identity


def test_many_samples_are_predicted_a_few_at_a_time(network, inputs, monkeypatch):
    whole = predicted(network, *inputs)
    monkeypatch.setattr(_gene_dit, "_N_TOKENS", 2 * N_GENES)
    seen = []
    network.blocks[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with torch.no_grad():
        torch.testing.assert_close(predicted(network, *inputs), whole)
    assert seen == [2] * 6


def test_the_residual_diffusion_takes_it(inputs):
    """In the place of the denoiser of one vector, and its mean is one evaluation at the noisiest step."""
    x, _, tokens, valid = inputs
    diffusion = ResidualDiffusion(N_GENES, N_CONDITION, 16, 1, 2, n_timesteps=50, n_draws=4, denoiser=GeneDiT)
    torch.nn.init.normal_(diffusion.denoiser.final.bias)
    diffusion.trained.fill_(True)
    asked = []
    diffusion.denoiser.register_forward_hook(lambda _, args, __: asked.append(args[1]))
    mean = diffusion.mean(torch.zeros(3, N_GENES), torch.ones(3, N_GENES), tokens, valid)
    assert len(asked) == 1 and (asked[0] == 49).all()
    torch.testing.assert_close(mean, -diffusion.denoiser.final.bias.expand(3, N_GENES))
    samples = diffusion.sample(torch.zeros(3, N_GENES), torch.ones(3, N_GENES), tokens, valid, x, n_steps=5)
    assert samples.shape == x.shape and len(asked) == 6
