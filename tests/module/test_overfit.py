"""Each network learns one fixed batch by heart."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["nb", "normal"])
def kind(request) -> str:
    return request.param


def test_autoencoder_beats_the_gene_means_on_one_batch(build, kind):
    module, tensors = build(kind, n_spots=16)
    fixed = {"hide": "set_aside"}  # the same visible and scored entries in every step
    untrained = build(kind, n_spots=16)[0]
    for parameter in untrained.autoencoder.decode_gene.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():  # a decoder at zero predicts the gene means
        gene_means = untrained(tensors, get_inference_input_kwargs=fixed)[2].reconstruction_loss_sum.item()
    optimizer = torch.optim.AdamW(module.autoencoder.parameters(), lr=3e-3)
    for _ in range(300):
        output = module(tensors, get_inference_input_kwargs=fixed)[2]
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.reconstruction_loss_sum.item() < gene_means - 0.25 * abs(gene_means)
    # and what it learnt is the measured values, not only a smaller loss
    inputs = module.inputs(tensors, "set_aside")
    scored = inputs.score > 0
    with torch.no_grad():
        _, outputs = module(tensors, get_inference_input_kwargs=fixed, compute_loss=False)
        decoded = outputs["px"]
    if kind == "nb":
        predicted, measured = decoded * tensors["size_factor"], tensors["X"]
    else:
        predicted, measured = decoded, torch.log1p(tensors["X"] / tensors["size_factor"] * 1e4)
    correlation = torch.corrcoef(torch.stack([predicted[scored], measured[scored]]))[0, 1]
    assert correlation > 0.9


def test_diffusion_learns_the_residuals_of_one_batch(build):
    module, tensors = build("nb", n_spots=16)
    module.measure_residuals([tensors])
    denoiser = module.diffusion.denoiser
    before = [parameter.clone() for parameter in module.autoencoder.parameters()]
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    for module_part in (denoiser.final, denoiser.final_modulation[-1]):
        torch.nn.init.zeros_(module_part.weight)

    def step(train):
        generator = torch.Generator().manual_seed(0)  # the same noise and timesteps in every step
        error, _ = module.diffusion_loss(tensors, "set_aside", generator)
        if train:
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return error.item()

    first = step(train=False)
    for _ in range(400):
        step(train=True)
    assert step(train=False) < 0.2 * first
    assert all(torch.equal(old, new) for old, new in zip(before, module.autoencoder.parameters(), strict=True))
