"""Latent gene diffusion for spatial transcriptomics, on scvi-tools."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lgdist_scvi._version import __version__

if TYPE_CHECKING:
    from lgdist_scvi import datasets, metrics, pl, pp
    from lgdist_scvi.model import C2LST, LGDiST, Stem

__all__ = ["C2LST", "LGDiST", "Stem", "__version__", "datasets", "metrics", "pl", "pp"]


def __getattr__(name: str) -> Any:
    # torch, scanpy and squidpy take seconds to import: only whoever asks for them waits
    if name in ("C2LST", "LGDiST", "Stem"):
        return getattr(import_module("lgdist_scvi.model"), name)
    if name in __all__:
        return import_module(f"lgdist_scvi.{name}")
    raise AttributeError(f"module 'lgdist_scvi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
