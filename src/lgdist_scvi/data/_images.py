"""Image features: their field, data that may lack counts, and slides that are held out in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import in_memory
from lgdist_scvi._checks import check_encoder, check_has_spots, list_names, require_key
from lgdist_scvi.data._dataset import NeighborhoodDataset
from lgdist_scvi.data._fields import CountsField, LibraryField, MaskField, _Field
from lgdist_scvi.data._manager import NeighborhoodManager

_MAX_FOLDS, _N_STRIPS = 5, 4


class ImageField(_Field):
    """Features of the image patch around each spot, in `obsm`; a row of NaN where there is no image."""

    def __init__(self, image_key: str):
        super().__init__(keys.IMAGE, "obsm", image_key)

    def validate_field(self, adata: AnnData) -> None:
        self._features(adata)

    def register_field(self, adata: AnnData) -> dict:
        if not np.isfinite(self._features(adata)).any():
            raise ValueError(f"adata.obsm[{self.attr_key!r}] holds no feature of any spot: every row is NaN")
        return self._state(adata)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        return self._compared(state_registry, self.register_field(adata_target))

    def _state(self, adata: AnnData) -> dict:
        record = adata.uns.get(self.attr_key)  # features made elsewhere have none
        record = dict(record) if isinstance(record, Mapping) else {}
        encoder = record if "probe" in record else None
        n_features = self._features(adata).shape[1]
        blocks = [
            int(size) for size in record.get("blocks", (n_features,))
        ]  # features side by side, of several encoders
        if sum(blocks) != n_features or min(blocks) < 1:
            raise ValueError(
                f"adata.uns[{self.attr_key!r}]['blocks'] says {blocks} features, and adata.obsm[{self.attr_key!r}] has {n_features:,}; "
                "correct or delete it"
            )
        return super().register_field(adata) | {"n_features": n_features, "blocks": blocks, "encoder": encoder}

    def _compared(self, trained: dict, state: dict) -> dict:
        """The state of other data, if their features are such as those of the training."""
        if state["n_features"] != trained["n_features"]:
            raise ValueError(
                f"adata.obsm[{self.attr_key!r}] has {state['n_features']:,} features, and the model was trained on "
                f"{trained['n_features']:,}; make them with the encoder of the training"
            )
        if state["encoder"] is not None and trained["encoder"] is not None:
            check_encoder(trained["encoder"], state["encoder"], self.attr_key)
        return state

    def _features(self, adata: AnnData) -> np.ndarray:
        """Features, checked, (n_obs, n_features)."""
        where = f"adata.obsm[{self.attr_key!r}]"
        require_key(adata.obsm, self.attr_key, "adata.obsm", "pp.image_features(adata) writes features of the image")
        values = np.asarray(in_memory(adata.obsm[self.attr_key]))
        if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "buif":
            raise ValueError(f"{where} must hold numbers, (n_obs, n_features), got {values.dtype} {values.shape}")
        missing = np.isnan(values).all(axis=1) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        if n_bad := int((~np.isfinite(values[~missing])).any(axis=1).sum()):
            raise ValueError(
                f"{n_bad:,} rows of {where} hold NaN or infinite features beside finite ones; a spot without an image has a row of NaN"
            )
        return values


class OptionalImageField(ImageField):
    """Image features, in training; other data may lack them, of some spots or of all."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        if self.attr_key in adata_target.obsm:
            return self._compared(state_registry, self._state(adata_target))
        return {**state_registry, "absent": True}


class OptionalCountsField(CountsField):
    """Raw counts, of all genes in training; other data may lack them."""

    genes: np.ndarray | None = None

    def counted(self, adata: AnnData) -> bool:
        """Whether data hold values of every gene."""
        values = adata.X if self.attr_key is None else adata.layers.get(self.attr_key)
        return values is not None and (self.genes is None or bool(np.isin(self.genes, adata.var_names).all()))

    def validate_field(self, adata: AnnData) -> None:
        check_has_spots(adata)
        if self.counted(adata):
            super().validate_field(adata)

    def register_field(self, adata: AnnData) -> dict:
        self.genes = None
        if not self.counted(adata):
            where = "adata.X" if self.attr_key is None else f"adata.layers[{self.attr_key!r}]"
            raise ValueError(
                f"{where} holds no counts, from which the model would learn; pass layer=... where they are"
            )
        state = super().register_field(adata)
        self.genes = state["column_names"]
        return state | {"counted": True}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        self.genes = np.asarray(state_registry["column_names"])
        if counted := self.counted(adata_target):
            return super().transfer_field(state_registry, adata_target, **kwargs) | {"counted": counted}
        self.validate_field(adata_target)
        return {"n_obs": adata_target.n_obs, "n_vars": len(self.genes), "column_names": self.genes, "counted": counted}


class OptionalLibraryField(LibraryField):
    """Library sizes, of all spots in training; other data may lack the column."""

    def validate_field(self, adata: AnnData) -> None:
        if self.attr_key in adata.obs:
            super().validate_field(adata)

    def register_field(self, adata: AnnData) -> dict:
        LibraryField.validate_field(self, adata)
        return super().register_field(adata)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        self.validate_field(adata_target)
        return {}


class OptionalMaskField(MaskField):
    """A mask, in training; other data may lack the layer."""

    def validate_field(self, adata: AnnData) -> None:
        if self.attr_key in adata.layers:
            super().validate_field(adata)


class ImageManager(NeighborhoodManager):
    """A manager whose data sets are of spots with images."""

    def _read(self) -> ImageDataset:
        return ImageDataset(self)


class ImageDataset(NeighborhoodDataset):
    """Spots with image features and their neighbours with image features, whether or not anything is counted.

    Attributes
    ----------
    counted
        Whether there are counts; else counts are 0 and none is observed.
    pictured
        Spots with image features, bool, (n_obs,).
    """

    def __init__(self, adata_manager: ImageManager):
        self.counted = bool(adata_manager.get_state_registry(keys.COUNTS)["counted"])
        super().__init__(adata_manager)

    def _measured(self, registry: dict) -> tuple[Any, Any]:
        library, mask = registry.get(keys.LIBRARY), registry.get(keys.MASK)
        if self.counted:
            for field, part, where in (
                (library, self.adata.obs, "adata.obs"),
                (mask, self.adata.layers, "adata.layers"),
            ):
                if field is not None:
                    require_key(part, field.attr_key, where, "data with counts need it as the training did")
            return super()._measured(registry)
        return sparse.csr_matrix((self.adata.n_obs, len(self.genes)), dtype=np.float32), None

    def _library(self, registry: dict) -> np.ndarray:
        library = registry.get(keys.LIBRARY)
        if self.counted or library is None:
            return super()._library(registry)
        known = library.attr_key in self.adata.obs
        return np.asarray(self.adata.obs[library.attr_key], dtype=np.float64) if known else self.totals.observed

    def _has_content(self) -> np.ndarray:
        return super()._has_content() & self.counted

    @property
    def pictured(self) -> np.ndarray:
        return np.isfinite(self.fields[keys.IMAGE]).all(axis=1)

    @property
    def informative(self) -> np.ndarray:
        return self.pictured

    @property
    def for_training(self) -> NeighborhoodDataset:
        return self  # what it learns comes with each spot

    @property
    def for_calibration(self) -> NeighborhoodDataset:
        return self

    def _refuse_lost(self, lost: np.ndarray) -> None:
        if len(lost):
            raise ValueError(
                f"{len(lost):,} of {self.adata.n_obs:,} spots ({list_names(self.adata.obs_names[lost])}) lie on a slide of which "
                "no spot has image features, so nothing predicts them; make them, or drop that slide"
            )

    def folds(self, n_folds: int | None = None) -> np.ndarray:
        """Number of the part that each spot is held out with, (n_obs,): groups of slides, or strips of a single slide.

        ``None``: each slide is a part, but for at most 5; a single slide has 4.
        """
        n_slides = int(self.samples.max()) + 1
        if n_slides > 1:
            return self.samples * min(n_slides, n_folds or _MAX_FOLDS) // n_slides
        along = self.coordinates[:, np.ptp(self.coordinates, axis=0).argmax()]
        return along.argsort(kind="stable").argsort(kind="stable") * (n_folds or _N_STRIPS) // len(along)
