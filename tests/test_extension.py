"""What a package that builds on this one can add from outside: each newcomer is written here, and trained with."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, ObsmField
from scvi.dataloaders import DataSplitter
from scvi.model.base import BaseModelClass
from scvi.module.base import BaseModuleClass

import lgdist_scvi
from lgdist_scvi import LGDiST
from lgdist_scvi import _keys as keys
from lgdist_scvi.inference import ENTRY_KINDS, EntryKind, hidden_cases
from lgdist_scvi.module import LGDiSTModule, sum_of_neighbors
from lgdist_scvi.module.diffusion import ResidualDiffusion
from lgdist_scvi.module.experts import EXPERTS, Expert
from lgdist_scvi.module.lgdist import NeighborhoodAutoencoder
from lgdist_scvi.module.likelihood import LIKELIHOODS, PoissonLikelihood
from lgdist_scvi.train import StagePlan, run_stage


def assert_complete(model: LGDiST, estimands: tuple[str, ...] = ("rate", "captured")) -> None:
    """All that a user asks for is there, finite and in order."""
    adata = model.adata.copy()
    model.complete(adata, silent=True)
    filled = adata.layers["completed_provenance"] > 0
    assert filled.any()
    lower, upper, std = (adata.layers[f"completed_{part}"] for part in ("lower", "upper", "std"))
    for values in (adata.layers["completed"], lower, upper, std):
        assert np.isfinite(values).all()
    assert (lower <= upper).all() and (std[filled] > 0).all()
    for estimand in estimands:
        assert np.isfinite(model.get_completed_expression(estimand=estimand, observed="model", return_numpy=True)).all()
    assert (model.get_normalized_expression(return_numpy=True) > 0).all()


# ---- a count likelihood


class GeometricLikelihood(PoissonLikelihood):
    """Geometric counts: variance = mean + mean^2."""

    def any_left(self, mean, genes=None):
        return mean / (1.0 + mean)

    def noise_variance(self, mean, variance):
        return mean**2 + variance

    def draw(self, mean, generator=None):
        return super().draw(mean * torch.empty_like(mean).exponential_(generator=generator), generator)


def test_a_count_likelihood(monkeypatch, fit, slide, tmp_path):
    monkeypatch.setitem(LIKELIHOODS, "geometric", GeometricLikelihood)
    model = fit(slide, 2, gene_likelihood="geometric")
    assert isinstance(model.module.likelihood, GeometricLikelihood)
    assert_complete(model)
    # its own law shows: the variance of draws is mean + mean^2
    drawn = model.posterior_predictive_sample(n_samples=50).todense()
    mean, variance = drawn.mean(axis=2), drawn.var(axis=2)
    assert ((variance - mean) / mean**2)[mean > 3].mean() == pytest.approx(1.0, abs=0.3)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=slide.copy())
    expected = model.get_completed_expression(observed="model", return_numpy=True)
    np.testing.assert_array_equal(loaded.get_completed_expression(observed="model", return_numpy=True), expected)


# ---- an expert


class PooledRate(Expert):
    """Rate of the neighbours' pooled counts, shrunk to the genes' mean rates by one typical library."""

    name = "pooled"

    def neighborhood(self, neighbors, library, index, valid):
        counted = sum_of_neighbors(neighbors.counts * neighbors.visible, index, valid)
        exposed = sum_of_neighbors(library * neighbors.visible, index, valid)
        return (counted + self.typical_library * self.gene_rate) / (exposed + self.typical_library)

    def forward(self, centre, library, neighborhood):
        return neighborhood, None


class Oracle(Expert):
    """Knows the rates: they are registered."""

    name = "oracle"

    def neighborhood(self, neighbors, library, index, valid):
        return None

    def forward(self, centre, library, neighborhood):
        return centre.fields["truth"], None


class LGDiSTWithTruth(LGDiST):
    @classmethod
    def _fields(cls, setup):
        return [*super()._fields(setup), ObsmField("truth", "rates")]


def test_an_expert(monkeypatch, fit, slide):
    monkeypatch.setitem(EXPERTS, "rate", [*EXPERTS["rate"], PooledRate])
    model = fit(slide, 2)
    for weights in (model.module.experts.weights_hidden, model.module.experts.weights_visible):
        assert weights.shape == (3, slide.n_vars)
        assert (weights >= 0).all() and (weights.sum(0) <= 1 + 1e-6).all()
    assert list(model.history_["experts/weights_hidden"]) == ["mixture", "linear", "pooled"]
    assert_complete(model)


def test_an_expert_that_knows_the_rates_is_found_out(monkeypatch, slide):
    monkeypatch.setitem(EXPERTS, "rate", [*EXPERTS["rate"], Oracle])
    rates = np.asarray(slide.layers["rate"])
    slide.obsm["rates"] = rates / rates.sum(axis=1, keepdims=True)
    LGDiSTWithTruth.setup_anndata(slide)
    scvi.settings.seed = 0
    model = LGDiSTWithTruth(
        slide, n_latent=4, n_hidden=16, n_layers=1, n_heads=2, n_profiles=4, n_mixtures=1, n_factors=2
    )
    model.train(max_epochs=2, stage="vae", accelerator="cpu", enable_progress_bar=False)
    scvi.settings.seed = None
    assert (model.module.experts.weights_hidden[2] >= 0.8).all()
    predicted = model.get_normalized_expression(return_numpy=True)
    error = np.abs(predicted - slide.obsm["rates"]).mean()
    assert error < 0.3 * np.abs(rates.mean(axis=0) / rates.sum(axis=1).mean() - slide.obsm["rates"]).mean()


# ---- a covariate of spots


class CovariateAutoencoder(NeighborhoodAutoencoder):
    def __init__(self, n_genes, likelihood, compositional, config):
        super().__init__(n_genes, likelihood, compositional, config)
        self.embed_covariate = torch.nn.Linear(2, config.n_hidden)

    def embed(self, spots, library, depth):
        return super().embed(spots, library, depth) + self.embed_covariate(spots.fields["covariate"])


class CovariateModule(LGDiSTModule):
    _autoencoder_cls = CovariateAutoencoder


class CovariateLGDiST(LGDiST):
    _module_cls = CovariateModule

    @classmethod
    def _fields(cls, setup):
        return [*super()._fields(setup), ObsmField("covariate", "staining")]


@pytest.fixture
def stained(slide) -> AnnData:
    """A slide on which something besides counts is measured of every spot."""
    slide.obsm["staining"] = np.random.default_rng(0).normal(size=(slide.n_obs, 2))
    return slide


def test_a_covariate(stained, fit, tmp_path):
    scvi.settings.seed = 0
    CovariateLGDiST.setup_anndata(stained)
    sizes = {
        "n_latent": 8,
        "n_hidden": 32,
        "n_layers": 1,
        "n_heads": 2,
        "n_profiles": 5,
        "n_mixtures": 1,
        "n_factors": 4,
    }
    denoiser = {"n_denoiser_hidden": 32, "n_denoiser_layers": 1, "n_denoiser_heads": 2, "n_timesteps": 50}
    model = CovariateLGDiST(stained, **sizes, **denoiser)
    # of centres and of their neighbours
    batch = model.adata_manager.create_torch_dataset()[np.arange(7)]
    staining = stained.obsm["staining"].astype(np.float32)
    np.testing.assert_array_equal(batch["covariate"], staining[:7])
    np.testing.assert_array_equal(batch["neighbor_covariate"], staining[batch[keys.NEIGHBOR_SPOT].ravel()])

    before = model.module.autoencoder.embed_covariate.weight.clone()
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    scvi.settings.seed = None
    assert not torch.equal(model.module.autoencoder.embed_covariate.weight, before)
    assert_complete(model)

    def asked(other):
        return model.get_completed_expression(other, observed="model", return_numpy=True)

    expected = asked(None)
    np.testing.assert_array_equal(asked(stained.copy()), expected)
    changed = stained.copy()
    changed.obsm["staining"] = changed.obsm["staining"] + 3.0
    assert not np.allclose(asked(changed), expected, atol=1e-4)
    # what a model was trained on is known by its covariates too
    assert model.training_data_ != model.get_anndata_manager(changed).create_torch_dataset().fingerprint

    model.save(tmp_path / "model")
    loaded = CovariateLGDiST.load(tmp_path / "model", adata=stained.copy())
    np.testing.assert_array_equal(loaded.get_completed_expression(observed="model", return_numpy=True), expected)
    without = stained.copy()
    del without.obsm["staining"]
    with pytest.raises(KeyError, match="staining"):
        asked(without)


# ---- a kind of calibrated entry


class BorderEntries(EntryKind):
    """Hidden entries of spots at the border of the tissue, which have fewer neighbours."""

    name = "border"

    def applies(self, batch):
        at_border = batch[keys.NEIGHBOR_VALID].sum(dim=1, keepdim=True) < 6
        partly = (batch[keys.MASK] > 0).any(dim=1, keepdim=True)
        return (at_border & partly & (batch[keys.MASK] == 0)).cpu().numpy()

    def cases(self, spots):
        n_neighbors = (spots.predictor.dataset.neighbors[spots.partly] >= 0).sum(axis=1)
        return hidden_cases(spots.predictor, spots.partly[n_neighbors < 6])


@pytest.fixture
def border() -> Iterator[None]:
    ENTRY_KINDS.append(kind := BorderEntries())
    yield
    ENTRY_KINDS.remove(kind)


def test_a_kind_of_entry(border, fit, slide, tmp_path, monkeypatch):
    known = np.random.default_rng(0).random(slide.shape) > 0.2
    known[[11, 40]] = False
    slide.layers["known"] = known
    model = fit(slide, 3, {"mask_layer": "known"})
    kinds = model.calibration_.kinds
    assert list(kinds) == ["hidden", "visible", "hidden_spots", "holes", "border"]
    n_entries, n_hidden = (sum(kinds[kind].intervals.n_entries["rate"]) for kind in ("border", "hidden"))
    assert 0 < n_entries < n_hidden
    n_neighbors = (model.adata_manager.create_torch_dataset().neighbors >= 0).sum(axis=1)
    applies = (n_neighbors < 6)[:, None] & ~known & known.any(axis=1, keepdims=True)
    assert applies.any() and (~known & ~applies).any()

    def std():
        return model.get_completed_expression(observed="model", return_std=True, return_numpy=True)[1]

    def upper():
        return model.get_prediction_interval(0.8, observed="model", return_numpy=True)[1]

    before, ends = std(), upper()
    monkeypatch.setattr(kinds["border"], "std_factor", 2 * kinds["border"].std_factor)
    np.testing.assert_allclose(std(), np.where(applies, 2, 1) * before, rtol=1e-5)
    thresholds = {"rate": kinds["border"].intervals.thresholds["rate"] + 2.0}
    monkeypatch.setattr(kinds["border"].intervals, "thresholds", thresholds)
    after = upper()
    assert (after[applies] >= ends[applies]).all() and (after[applies] > ends[applies]).mean() > 0.5
    np.testing.assert_array_equal(after[~applies], ends[~applies])

    model.complete(silent=True)
    assert slide.uns["completed"]["std_factors"]["border"] == kinds["border"].std_factor
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=slide.copy())
    np.testing.assert_array_equal(loaded.get_prediction_interval(0.8, observed="model", return_numpy=True)[1], after)


# ---- stages and a diffusion of another model


class Pointer(BaseModuleClass):
    """Where a point lies, given some vectors: at their mean, to one side of it or to the other."""

    def __init__(self):
        super().__init__()
        self.guess = torch.nn.Linear(3, 3)
        self.diffusion = ResidualDiffusion(3, 3, n_hidden=32, n_layers=2, n_heads=2, n_timesteps=100, n_draws=4)

    def posterior(self, batch):
        """Mean and spread of a first guess, and condition tokens."""
        tokens = batch["vectors"].reshape(len(batch["X"]), -1, 3)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        mean = self.guess(tokens[:, 0])
        return mean, torch.full_like(mean, 0.5), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)

    # scvi-tools' three steps play no part
    _get_inference_input = _get_generative_input = inference = generative = loss = None


class GuessStage(StagePlan):
    def __init__(self, module):
        super().__init__(module, module.guess, "guess", lr=3e-2, weight_decay=0.0)

    def training_loss(self, batch, batch_idx):
        return ((self.module.posterior(batch)[0] - batch["X"]) ** 2).mean()

    validation_loss = training_loss


class SideStage(StagePlan):
    finishing = "sides"

    def __init__(self, module):
        super().__init__(module, module.diffusion.denoiser, "sides_diffusion", lr=3e-3, weight_decay=0.0)

    def prepare(self, batches):
        squares = []
        with torch.no_grad():
            for batch in batches:
                mean, spread, *_ = self.module.posterior(batch)
                squares.append((((batch["X"] - mean) / spread) ** 2).mean(0))
        self.module.diffusion.set_scale(torch.stack(squares))

    def finish(self, batches):
        self.module.diffusion.trained.fill_(True)
        return {"scale": self.module.diffusion.scale.mean().item()}

    def training_loss(self, batch, batch_idx, generator=None):
        diffusion, (mean, spread, tokens, valid) = self.module.diffusion, self.module.posterior(batch)
        noise = diffusion.noise(len(mean), generator, mean.device)[1]
        target = batch["X"][:, None].expand_as(noise)
        noised = diffusion.noised(target, noise, mean, spread, generator)
        return diffusion.loss(noised, mean, spread, tokens, valid)[0]

    def validation_loss(self, batch, batch_idx):
        return self.training_loss(batch, batch_idx, torch.Generator().manual_seed(batch_idx))


class PointerModel(BaseModelClass):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = Pointer()
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata):
        manager = AnnDataManager([LayerField("X", None, is_count_data=False), ObsmField("vectors", "vectors")])
        manager.register_fields(adata)
        cls.register_manager(manager)

    def train(self, max_epochs):
        splitter = DataSplitter(self.adata_manager, train_size=0.8, batch_size=64)
        stages = [GuessStage(self.module), SideStage(self.module)]
        for stage in stages:
            arguments = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
            assert run_stage(self, stage, splitter, max_epochs, 0.9, stages=[one.stage for one in stages], **arguments)


def test_stages_and_a_diffusion_of_another_model():
    rng = np.random.default_rng(0)
    vectors, side = rng.normal(size=(600, 4, 3)), rng.choice([-1.0, 1.0], size=(600, 1))
    middle = vectors.mean(axis=1)
    adata = AnnData((middle + side).astype(np.float32))
    adata.obsm["vectors"] = vectors.reshape(600, -1).astype(np.float32)
    scvi.settings.seed = 0
    PointerModel.setup_anndata(adata)
    model = PointerModel(adata)
    model.train(40)
    scvi.settings.seed = None
    assert {"guess/validation_loss", "sides_diffusion/validation_loss", "sides/scale"} <= set(model.history_)
    assert model.is_trained_ and not model.module.training

    batch = {"X": torch.zeros(600, 3), "vectors": torch.from_numpy(adata.obsm["vectors"])}
    middle = torch.from_numpy(middle).float()
    with torch.no_grad():
        posterior = model.module.posterior(batch)
        assert ((model.module.diffusion.mean(*posterior) - middle) ** 2).mean() < 0.15
        noise = torch.randn(600, 8, 3, generator=torch.Generator().manual_seed(0))
        samples = model.module.diffusion.sample(*posterior, noise, n_steps=10)
    sides = samples - middle[:, None]
    # to one side or the other, and seldom between: of a Gaussian a third would lie within half of the spread
    assert (sides.abs() < 0.5).float().mean() < 0.2
    assert 0.35 < (sides > 0).float().mean() < 0.65
    # all three coordinates are on one side
    assert ((sides > 0).all(-1) | (sides < 0).all(-1)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("folder", "allowed"), [("train", ("train",)), ("module/diffusion", ("module.diffusion", "module.nn"))]
)
def test_stages_and_diffusion_know_nothing_of_lgdist(folder, allowed):
    files = sorted((Path(lgdist_scvi.__file__).parent / folder).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in names:
                    if name.startswith("lgdist_scvi"):
                        inside = [f"lgdist_scvi.{one}" for one in allowed]
                        assert any(name == one or name.startswith(f"{one}.") for one in inside), f"{file}: {name}"
