"""Training in stages: history, early stopping, averaged weights, interruption."""

from __future__ import annotations

import contextlib
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lgdist_scvi.inference import ENTRY_KINDS, Predictor
from lgdist_scvi.train import EntrySplitter

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
NOISE = ("log_theta", "log_sigma", "lasting_share")  # fitted after every training
# one line of Lightning's advice per test is enough
pytestmark = pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode")


class Spy(Callback):
    """Counts epochs, and records what is trained."""

    def __init__(self) -> None:
        self.epochs, self.training, self.requires_grad, self.rates = [], [], [], []

    def __deepcopy__(self, memo) -> Spy:
        return self  # one for all stages

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        module = pl_module.module
        modes = module.autoencoder.training, module.diffusion.denoiser.training
        self.training.append((type(pl_module).__name__, *modes))
        self.requires_grad.append(any(parameter.requires_grad for parameter in module.autoencoder.parameters()))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.epochs.append(type(pl_module).__name__)


class Interrupt(Callback):
    """Presses Ctrl-C."""

    def __init__(self, plan: str, n_steps: int) -> None:
        self.plan, self.n_steps = plan, n_steps

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if type(pl_module).__name__ == self.plan and trainer.global_step >= self.n_steps:
            raise KeyboardInterrupt


def interrupt(*args) -> None:
    """Stand in for what is running when somebody presses Ctrl-C."""
    raise KeyboardInterrupt


def first_stage(named):
    """Parameters or buffers, with their names, of all but the diffusion."""
    return [(name, value) for name, value in named if not name.startswith("diffusion")]


def is_usable(model) -> bool:
    values = model.get_completed_expression(observed="model", return_numpy=True)
    samples = model.get_completed_expression(n_samples=2, observed="model", return_mean=False)
    lower, upper = model.get_prediction_interval(0.9, return_numpy=True)
    return bool(np.isfinite(values).all() and np.isfinite(samples).all() and (lower <= upper).all())


def test_history_is_kept_per_stage(untrained):
    model = untrained()
    model.train(max_epochs=4, **QUICK)
    for stage in ("vae", "diffusion"):
        for curve in ("train_loss", "validation_loss"):
            frame = model.history_[f"{stage}/{curve}"]
            assert len(frame) == 4
            assert np.isfinite(frame.to_numpy(dtype=float)).all()
    vae, diffusion = model.history_["vae/train_loss"], model.history_["diffusion/train_loss"]
    assert not np.allclose(vae.to_numpy(dtype=float), diffusion.to_numpy(dtype=float))


def test_training_lowers_the_validation_loss(untrained):
    model = untrained()
    model.train(max_epochs=40, early_stopping=False, **QUICK)
    for stage in ("vae", "diffusion"):
        loss = model.history_[f"{stage}/validation_loss"].to_numpy(dtype=float).ravel()
        assert loss[-1] < loss[0]


def test_stages_one_after_the_other(untrained):
    """The VAE, then the diffusion, in two calls: a usable model, and both histories."""
    model = untrained()
    model.train(max_epochs=3, stage="vae", **QUICK)
    assert not model.module.diffusion.trained
    assert "diffusion not trained" in repr(model)
    assert is_usable(model)
    mean = model.get_latent_representation()
    weights = {key: value.clone() for key, value in first_stage(model.module.state_dict().items())}
    model.train(max_epochs=3, stage="diffusion", **QUICK)
    assert model.module.diffusion.trained
    assert is_usable(model)
    assert {"vae/train_loss", "diffusion/train_loss"} <= set(model.history_)
    # the second stage leaves the first alone
    for key, value in first_stage(
        model.module.state_dict().items()
    ):  # up to the rounding of an average of equal weights
        if not key.endswith(NOISE):  # the noise is fitted again, given what samples now spread
            torch.testing.assert_close(value, weights[key], rtol=1e-5, atol=1e-7, msg=key)
    assert not np.array_equal(mean, model.get_latent_representation())


def test_a_new_vae_makes_an_old_diffusion_invalid(untrained):
    model = untrained()
    model.train(max_epochs=2, **QUICK)
    model.train(max_epochs=2, stage="vae", **QUICK)
    assert not model.module.diffusion.trained


def test_modes_and_gradients_of_each_stage(untrained):
    """A stage trains in training mode what it trains, and freezes the rest; afterwards everything is as before."""
    model, spy = untrained(), Spy()
    model.train(max_epochs=2, callbacks=[spy], **QUICK)
    vae = [mode[1:] for mode in spy.training if mode[0] == "VAEStage"]
    diffusion = [mode[1:] for mode in spy.training if mode[0] == "DiffusionStage"]
    assert all(training for training, _ in vae)
    assert all(mode == (False, True) for mode in diffusion)
    assert all(spy.requires_grad[: len(vae)])
    assert not any(spy.requires_grad[len(vae) :])
    assert not model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_a_second_training_trains_in_training_mode(untrained):
    model, spy = untrained(), Spy()
    model.train(max_epochs=1, **QUICK)
    model.get_completed_expression()  # switches to evaluation
    model.train(max_epochs=1, stage="vae", callbacks=[spy], **QUICK)
    assert all(mode[1] for mode in spy.training)


def test_early_stopping(untrained):
    """Nothing can be learnt at a learning rate of zero: training stops after some validations without improvement."""
    model, spy = untrained(), Spy()
    kwargs = {"early_stopping_patience": 2, "early_stopping_warmup_epochs": 0, "check_val_every_n_epoch": 1}
    model.train(max_epochs=60, stage="vae", callbacks=[spy], plan_kwargs={"lr": 1e-12}, **kwargs, **QUICK)
    assert 2 <= len(spy.epochs) < 10
    model, spy = untrained(), Spy()
    model.train(
        max_epochs=12, stage="vae", callbacks=[spy], plan_kwargs={"lr": 1e-12}, early_stopping=False, **kwargs, **QUICK
    )
    assert len(spy.epochs) == 12


@pytest.mark.parametrize("max_epochs", [40, 60])
def test_training_stops_early_in_its_second_half(untrained, max_epochs):
    """With the defaults: at most 25 validations or so, half of them for warming up and six without improvement."""
    model, spy = untrained(), Spy()
    model.train(max_epochs=max_epochs, stage="vae", callbacks=[spy], plan_kwargs={"lr": 1e-12}, **QUICK)
    assert max_epochs / 2 < len(spy.epochs) <= 0.8 * max_epochs


def test_validation_loss_is_the_same_for_the_same_network(untrained):
    """Noise and timesteps are seeded, so that early stopping does not follow chance."""
    model = untrained()
    model.train(max_epochs=1, **QUICK)
    model.train(
        max_epochs=4, stage="diffusion", ema_decay=None, plan_kwargs={"lr": 1e-12}, check_val_every_n_epoch=1,
        early_stopping=False, **QUICK,
    )  # fmt: skip
    loss = model.history_["diffusion/validation_loss"].to_numpy(dtype=float).ravel()
    # nothing but the scale of the residuals, measured anew, may differ between trainings
    np.testing.assert_allclose(loss, loss[0], rtol=1e-5)


def test_validation_sees_the_scale_that_training_uses(untrained):
    """Weights are averaged from copies; none of them may be older than the scale of the residuals."""
    model, scales = untrained(), []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *args) -> None:
            scales.append(pl_module.module.diffusion.scale.clone())

    model.train(max_epochs=3, stage="vae", **QUICK)
    model.train(max_epochs=5, stage="diffusion", callbacks=[Watch()], check_val_every_n_epoch=1, **QUICK)
    assert len(scales) >= 5
    assert all(torch.equal(scale, model.module.diffusion.scale) for scale in scales)


def weights_of(model):
    """All weights of the VAE in one vector; the noise is fitted again after training."""
    named = first_stage(model.module.named_parameters())
    return torch.cat([parameter.detach().flatten() for name, parameter in named if not name.endswith(NOISE)])


def test_averaged_weights(untrained):
    """The average differs from the last weights, and is nearer to the earlier ones with a slow decay."""
    states, moved = {}, {}
    for decay in (None, 0.5, 0.999):
        model = untrained()
        start = weights_of(model)
        model.train(max_epochs=8, stage="vae", ema_decay=decay, early_stopping=False, **QUICK)
        states[decay] = weights_of(model)
        moved[decay] = (states[decay] - start).norm()
        assert is_usable(model)
    assert 0 < moved[0.999] < moved[None]
    assert not torch.equal(states[0.5], states[None])


def test_buffers_survive_averaging(untrained):
    model = untrained()
    before = {key: value.clone() for key, value in model.module.named_buffers()}
    model.train(max_epochs=3, ema_decay=0.9, **QUICK)
    fitted = ("diffusion", "region_shrinkage", "autoencoder.likelihood.gene_effects")  # after the stage
    learnt = [key for key in before if key.startswith("experts") and not key.endswith(("gene_rate", "typical_library"))]
    for key, value in model.module.named_buffers():
        if not key.startswith(fitted) and key not in learnt:
            assert torch.equal(value, before[key]), key
    assert model.module.experts.in_use
    assert (model.module.diffusion.scale > 0).all()
    assert not torch.allclose(model.module.diffusion.scale, torch.ones_like(model.module.diffusion.scale))


def test_the_callers_arguments_are_not_changed(untrained):
    model = untrained()
    callbacks, plan, splitter = [Spy()], {"lr": 1e-3}, {"num_workers": 0}
    model.train(max_epochs=1, callbacks=callbacks, plan_kwargs=plan, datasplitter_kwargs=splitter, **QUICK)
    assert len(callbacks) == 1
    assert plan == {"lr": 1e-3}
    assert splitter == {"num_workers": 0}


def test_learning_rate_of_the_plan(untrained):
    model, spy = untrained(), Spy()
    model.train(max_epochs=4, stage="vae", callbacks=[spy], plan_kwargs={"lr": 0.0123}, early_stopping=False, **QUICK)
    assert max(spy.rates) <= 0.0123 + 1e-9
    assert max(spy.rates) > 0.006
    assert spy.rates[-1] < 0.5 * max(spy.rates)


# ---- interruption


@pytest.mark.parametrize(
    ("plan", "n_steps"), [("VAEStage", 1), ("VAEStage", 5), ("DiffusionStage", 1), ("DiffusionStage", 5)]
)
def test_an_interrupted_model_can_be_used(untrained, tmp_path, plan, n_steps):
    model = untrained()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="interrupted in stage .*can be used"):
        model.train(max_epochs=6, callbacks=[Interrupt(plan, n_steps)], **QUICK)
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.is_trained_
    assert is_usable(model)
    model.complete(silent=True)
    model.save(tmp_path / "model")
    if plan == "VAEStage":
        assert not model.module.diffusion.trained
    else:
        assert "vae/train_loss" in model.history_
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    # and trained further
    model.train(max_epochs=1, **QUICK)
    assert model.module.diffusion.trained
    assert is_usable(model)


@pytest.mark.parametrize("expert", [0, -1])
def test_interrupted_while_the_experts_learn(untrained, monkeypatch, expert):
    model = untrained()
    monkeypatch.setattr(model.module.experts.experts[expert], "fit", interrupt)
    with pytest.warns(UserWarning, match="interrupted in stage 'vae'.*can be used"):
        model.train(max_epochs=3, **QUICK)
    assert not model.module.diffusion.trained
    assert not model.module.experts.in_use
    assert "vae/train_loss" in model.history_
    assert is_usable(model)
    model.complete(silent=True)


def test_a_request_to_end_ends(untrained):
    """SIGTERM (kill, timeout, a scheduler) ends the program, unlike Ctrl-C; what was trained can still be used."""

    class Terminate(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    model = untrained()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        model.train(max_epochs=20, early_stopping=False, callbacks=[Terminate()], **QUICK)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [call["interrupted"] for call in model.training_] == [True]
    assert is_usable(model)


def test_sigint_handling_is_restored_after_training(untrained):
    handler = signal.getsignal(signal.SIGINT)
    untrained().train(max_epochs=1, **QUICK)
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_errors_come_through(untrained):
    class Fail(Callback):
        def on_train_batch_end(self, *args) -> None:
            raise RuntimeError("out of memory")

    model = untrained()
    with pytest.raises(RuntimeError, match="out of memory"):
        model.train(max_epochs=2, callbacks=[Fail()], **QUICK)
    # a step was made: the record tells of it
    assert [call["interrupted"] for call in model.training_] == [True]
    assert is_usable(model)


class Stop(Callback):
    """Raises before the first step."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_start(self, *args) -> None:
        raise self.error("before the first step")


@pytest.mark.filterwarnings("ignore:Training was interrupted")
@pytest.mark.parametrize("stage", ["all", "diffusion"])
@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"plan_kwargs": {"no_such_rate": 1}}, TypeError),
        ({"callbacks": [Stop(RuntimeError)]}, RuntimeError),
        ({"callbacks": [Stop(KeyboardInterrupt)]}, None),
    ],
)
def test_a_training_that_takes_no_step_changes_nothing(untrained, stage, kwargs, error):
    model = untrained(mask=True)
    model.train(max_epochs=2, n_rounds=2, **QUICK)

    def answers() -> list[np.ndarray]:
        values = model.get_completed_expression(observed="model", return_std=True, return_numpy=True)
        return [
            *values,
            *model.get_prediction_interval(0.9, return_numpy=True),
            model.skill_table()["skill"].to_numpy(),
        ]

    before, calibration = answers(), model.calibration_
    with pytest.raises(error) if error else contextlib.nullcontext():
        model.train(max_epochs=2, stage=stage, **kwargs, **QUICK)
    assert model.calibration_ is calibration and len(model.training_) == 1
    assert model.module.first_round is not None and model.n_rounds_ == 2
    for one, other in zip(before, answers(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_interrupted_in_the_second_round_the_diffusion_of_the_first_has_no_say(untrained):
    class Press(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            if pl_module.module.first_round is not None:
                raise KeyboardInterrupt

    model = untrained(mask=True)
    with pytest.warns(UserWarning, match="interrupted in stage 'vae_round2'"):
        model.train(max_epochs=2, n_rounds=2, callbacks=[Press()], **QUICK)
    assert model.module.first_round.diffusion.trained and not model.module.diffusion.trained
    assert is_usable(model)


# ---- which spots are trained on


def test_all_spots_but_those_set_aside_whole_are_trained_on_and_validate(untrained):
    model = untrained()
    whole = model.module.spots_set_aside(150)
    assert 5 <= len(whole) <= 7
    splitter = EntrySplitter(model.adata_manager, whole, batch_size=32)
    rest = np.setdiff1d(np.arange(150), whole)
    np.testing.assert_array_equal(splitter.train_idx, rest)
    np.testing.assert_array_equal(splitter.val_idx, rest)


def test_validation_slides_are_not_trained_on(untrained):
    model = untrained(n_samples=2)
    samples = model.adata.obs["sample"].astype(str).to_numpy()
    seen, validated = set(), set()

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            seen.update(samples[batch["spot"].numpy().ravel()])
            seen.update(samples[batch["neighbor_spot"].numpy().ravel()])

        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
            validated.update(samples[batch["spot"].numpy().ravel()])

    model.train(max_epochs=2, validation_samples=["slide_2"], callbacks=[Watch()], **QUICK)
    assert seen == {"slide_1"}
    assert validated == {"slide_2"}
    assert is_usable(model)


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 9, 10, 11])
def test_any_number_of_steps(untrained, max_epochs):
    """The learning rate is scheduled over the number of steps, however few."""
    model = untrained()
    model.train(max_epochs=max_epochs, stage="vae", batch_size=150, early_stopping=False, **QUICK)
    assert len(model.history_["vae/train_loss"]) == max_epochs


def test_the_last_small_batch_is_trained_on(untrained):
    model = untrained()
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            seen.extend(batch["spot"].numpy().ravel().tolist())

    spots = np.setdiff1d(np.arange(150), model.module.spots_set_aside(150))
    model.train(max_epochs=1, stage="vae", batch_size=len(spots) - 1, callbacks=[Watch()], **QUICK)
    assert sorted(seen) == spots.tolist()


@pytest.mark.parametrize(
    "kind", [kind for kind in ENTRY_KINDS if kind.hold_out in ("set_aside", "split")], ids=lambda kind: kind.name
)
def test_ctrl_c_in_calibration_leaves_it_for_later(untrained, monkeypatch, kind):
    """What the interruption kept the training from is done when it is first asked for, with the new weights."""
    model = untrained()
    model.train(max_epochs=1, **QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "cases", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.train(max_epochs=2, **QUICK)
    assert model.calibration_ is None and len(model.training_) == 2
    assert model.skill_table()["n"].sum() > 0
    assert is_usable(model)
    assert model.calibration_ is not None


def test_interrupted_between_rounds(untrained, monkeypatch, tmp_path):
    model = untrained(mask=True)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "completed", interrupt)  # the prefill of the second round, by the first
        with pytest.raises(KeyboardInterrupt):
            model.train(max_epochs=1, n_rounds=2, **QUICK)
    assert model.module.first_round is not None and model.calibration_ is None
    model.save(tmp_path / "model")
    assert is_usable(type(model).load(tmp_path / "model", adata=model.adata, accelerator="cpu"))
