"""Whatever is hidden is hidden before anything is encoded."""

from __future__ import annotations

import pytest
import torch


def posterior(module, tensors, hide, seed=0):
    torch.manual_seed(seed)
    # as the diffusion sees it: the VAE's own training also splits visible counts at random, which has no gradient
    inputs = module.inputs(tensors, hide, autoencode=False)
    return inputs, module.inference(inputs)["condition"]


PARTS = ("tokens", "mean", "log_variance", "experts", "decoded")


def parts(module, condition):
    """What there is of these: experts are not used in a condition of neighbours only."""
    found = {name: value for name in PARTS if (value := getattr(condition, name, None)) is not None}
    return {**found, "decoded": module.decode(condition.mean, condition)}


@pytest.mark.parametrize("hide", ["random", "set_aside", "nothing"])
@pytest.mark.parametrize("part", PARTS)
def test_gradient_of_the_condition_is_zero_at_hidden_entries_of_the_centre(build, likelihood, hide, part):
    module, tensors = build(likelihood)
    # counts that the data set has not blanked, so that a leak would show
    tensors["X"] = (tensors["X"] + 1.0).requires_grad_()
    inputs, condition = posterior(module, tensors, hide)
    value = parts(module, condition)[part]
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((value * weights).sum(), tensors["X"])
    visible = inputs.centre.visible > 0
    masked = tensors["observed_mask"] == 0
    assert not (visible & masked).any()
    assert masked.any()
    if hide != "nothing":
        assert (~visible & ~masked).any(), "nothing but masked entries was hidden"
    assert (gradient[~visible] == 0).all()
    assert (gradient[visible] != 0).float().mean() > 0.99


@pytest.mark.parametrize("hide", ["random", "set_aside", "nothing"])
def test_gradient_of_the_condition_is_zero_at_hidden_entries_of_the_neighbours(build, likelihood, conditioning, hide):
    module, tensors = build(likelihood, conditioning)
    tensors["neighbor_counts"] = (tensors["neighbor_counts"] + 1.0).requires_grad_()
    inputs, condition = posterior(module, tensors, hide)
    total = sum((value * torch.randn_like(value)).sum() for value in parts(module, condition).values())
    (gradient,) = torch.autograd.grad(total, tensors["neighbor_counts"])
    visible = inputs.neighbors.visible > 0
    assert not (visible & (tensors["neighbor_mask"] == 0)).any()
    if hide != "nothing":  # what is set aside for validation is hidden in neighbours too
        aside = module.set_aside(tensors["neighbor_spot"])
        assert aside.any()
        assert not (visible & aside).any()
    assert (gradient[~visible] == 0).all()
    assert (gradient[visible] != 0).float().mean() > 0.99


def test_neighbourhood_condition_does_not_look_at_the_centre(build, likelihood):
    """Of the spot itself, at most its library size is known, which says what a single count is worth."""
    module, tensors = build(likelihood, "neighborhood")
    tensors["X"] = (tensors["X"] + 1.0).requires_grad_()
    condition = module.condition(tensors)
    total = sum((value * torch.randn_like(value)).sum() for value in parts(module, condition).values())
    (gradient,) = torch.autograd.grad(total, tensors["X"], allow_unused=True)
    assert gradient is None or (gradient == 0).all()
    assert total.item() != 0


def test_a_neighbour_does_not_see_the_centre(build):
    """Tokens of neighbours are the same whatever the centre shows."""
    module, tensors = build()
    _, condition = posterior(module, tensors, "nothing")
    changed = {**tensors, "X": tensors["X"].flip(0) + 3.0}
    _, other = posterior(module, changed, "nothing")
    n_neighbors = tensors["neighbor_valid"].shape[1]
    assert torch.equal(condition.tokens[:, -n_neighbors:], other.tokens[:, -n_neighbors:])
    assert not torch.equal(condition.mean, other.mean)


@pytest.mark.parametrize("hide", ["random", "set_aside"])
def test_the_denoiser_is_conditioned_on_visible_entries_only(build, likelihood, conditioning, hide):
    """The tokens that the diffusion trains on do not change, bit for bit, when hidden entries do."""
    module, tensors = build(likelihood, conditioning)
    seen = []
    denoiser = module.diffusion.denoiser
    forward, given = denoiser.forward, denoiser.given
    # its condition, and then what it is asked about
    denoiser.given = lambda *args: seen.extend(arg.clone() for arg in args) or given(*args)
    denoiser.forward = lambda *args: seen.extend(arg.clone() for arg in args[:2]) or forward(*args)
    torch.manual_seed(0)
    visible = module.inputs(tensors, hide).centre.visible > 0
    if conditioning == "neighborhood":  # nothing of the centre may be looked at
        visible = torch.zeros_like(visible)
    changed = {**tensors, "X": torch.where(visible, tensors["X"], tensors["X"] + 5.0)}
    for batch in (tensors, changed):
        torch.manual_seed(0)
        module.diffusion_loss(batch, hide)
    tokens, valid, noisy, timestep, other_tokens, other_valid, other_noisy, other_timestep = seen
    assert tokens.std() > 0
    assert torch.equal(tokens, other_tokens)
    assert torch.equal(valid, other_valid)
    assert torch.equal(timestep, other_timestep)
    # the target does know them: it is the posterior given everything that is known
    assert not torch.equal(noisy, other_noisy)


def test_training_neither_looks_at_nor_fits_what_is_set_aside(build, likelihood):
    module, tensors = build(likelihood)
    torch.manual_seed(0)
    inputs = module.inputs(tensors, "random")
    aside = module.set_aside(tensors["spot"])
    assert not ((inputs.centre.visible > 0) & aside).any()
    assert not ((inputs.score > 0) & aside).any()
    validation = module.inputs(tensors, "set_aside")
    scored = validation.score > 0
    assert torch.equal(scored, aside & (tensors["observed_mask"] > 0))
    assert not (scored & (validation.centre.visible > 0)).any()


def test_stage_2_hides_more_whole_spots(build):
    """In the VAE's training one spot in twenty, in the diffusion's three in ten."""
    module, tensors = build()
    torch.manual_seed(0)
    shares = []
    for autoencode in (True, False):
        draws = [module.inputs(tensors, "random", autoencode=autoencode).centre for _ in range(40)]
        shares.append(float(torch.stack([(draw.visible == 0).all(1).float().mean() for draw in draws]).mean()))
    assert 0.05 <= shares[0] < 0.16  # one of the 24 spots is set aside whole
    assert 0.25 < shares[1] < 0.45


@pytest.mark.parametrize("autoencode", [True, False])
def test_what_is_hidden_counts_in_full(build, likelihood, conditioning, autoencode):
    """The weight of an entry in the loss follows whether it is visible, also where spots are asked without their own entries."""
    module, tensors = build(likelihood, conditioning)
    inputs = module.inputs(tensors, "random", autoencode=autoencode)
    visible, known = inputs.centre.visible > 0, inputs.known > 0
    assert visible.any() == (autoencode or conditioning == "spot+neighborhood")
    assert (known & ~visible).any()
    assert (inputs.score[known & ~visible] == 1).all()


def test_visible_counts_are_split(build):
    """What is looked at is not what is fitted; hidden counts are fitted whole and not looked at."""
    module, tensors = build()
    inputs = module.inputs(tensors, "random")
    centre, visible = inputs.centre, inputs.centre.visible > 0
    assert torch.equal((centre.counts + inputs.target)[visible], tensors["X"][visible])
    assert torch.equal(inputs.target[~visible], tensors["X"][~visible])
    assert (centre.counts[visible] > 0).any()
    assert (inputs.target[visible] > 0).any()
    share = inputs.share
    assert (share[~visible] == 1).all()
    # the fitted part is the share of the exposure that it claims
    claimed, fitted = (share * tensors["X"])[visible].sum(), inputs.target[visible].sum()
    torch.testing.assert_close(fitted, claimed, rtol=0.1, atol=0.0)


def test_hidden_counts_do_not_enter_the_split(build):
    module, tensors = build()
    torch.manual_seed(0)
    inputs = module.inputs(tensors, "random")
    hidden = inputs.centre.visible == 0
    condition = module.inference(inputs)["condition"]
    centre = inputs.centre
    centre.counts = torch.where(hidden, centre.counts + 7.0, centre.counts)
    changed = module.inference(inputs)["condition"]
    for name, value in parts(module, condition).items():
        assert torch.equal(value, parts(module, changed)[name]), name


def test_masked_entries_are_never_scored(build, likelihood):
    module, tensors = build(likelihood)
    for hide in ("random", "set_aside"):
        inputs = module.inputs(tensors, hide)
        assert (inputs.score[tensors["observed_mask"] == 0] == 0).all()


@pytest.mark.parametrize("hide", ["random", "set_aside"])
def test_gradient_of_the_loss_is_zero_at_masked_entries(build, likelihood, hide):
    module, tensors = build(likelihood)
    tensors["X"] = (tensors["X"] + 1.0).requires_grad_()
    torch.manual_seed(0)
    _, _, output = module(tensors, get_inference_input_kwargs={"hide": hide})
    (gradient,) = torch.autograd.grad(output.loss, tensors["X"])
    masked = tensors["observed_mask"] == 0
    assert (gradient[masked] == 0).all()
    assert (gradient[~masked] != 0).any()
