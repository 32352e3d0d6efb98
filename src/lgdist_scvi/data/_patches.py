"""Patches of tissue: their field, and pairs of patch and expression."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch.utils.data import Dataset, Subset

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import require_key
from lgdist_scvi._patches import check_patches
from lgdist_scvi.data._fields import _Field


class PatchField(_Field):
    """Patches of tissue around spots in `obsm`, uint8 (n_obs, size, size, 3)."""

    def __init__(self, patch_key: str):
        super().__init__(keys.PATCH, "obsm", patch_key)

    def validate_field(self, adata: AnnData) -> None:
        require_key(
            adata.obsm,
            self.attr_key,
            "adata.obsm",
            f"pp.image_patches(adata, key_added={self.attr_key!r}) cuts patches",
        )
        check_patches(adata.obsm[self.attr_key], f"adata.obsm[{self.attr_key!r}]")

    def register_field(self, adata: AnnData) -> dict:
        return super().register_field(adata) | {"size": int(adata.obsm[self.attr_key].shape[1])}


class PatchPairs(Dataset):
    """Patches and log1p(CP10K) of expected rates; stands in for the manager in scvi-tools' data loaders.

    Parameters
    ----------
    patches
        uint8, (n, size, size, 3).
    values
        float32, (n, n_genes).
    """

    def __init__(self, patches: np.ndarray, values: np.ndarray):
        self.patches, self.values = patches, values
        self.adata = SimpleNamespace(n_obs=len(patches), shape=(len(patches),))

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """The pairs themselves, or some of them."""
        return self if indices is None else Subset(self, np.asarray(indices))

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, indexes: Any) -> dict[str, np.ndarray]:
        rows = np.atleast_1d(np.arange(len(self))[indexes])
        return {REGISTRY_KEYS.X_KEY: self.values[rows], keys.PATCH: self.patches[rows]}
