"""Registration of data, and of other data that a model is asked about."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from anndata import AnnData
from mudata import MuData
from scvi.data.fields import BaseAnnDataField

from lgdist_scvi import _keys as keys
from lgdist_scvi.data import ModalityField, NeighborhoodManager
from lgdist_scvi.model._setup import (
    check_anndata,
    choose_sample_key,
    modality_of,
    warn_of_equal_totals,
    warn_of_masked_library,
    warn_of_spots,
    with_graph,
)


class RegistrationMixin:
    """Fields of spots and their neighbours; a model names them in `_fields`."""

    _manager: ClassVar[type[NeighborhoodManager]] = NeighborhoodManager

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[BaseAnnDataField]:
        """Fields to register; `setup` holds the arguments of `setup_anndata`."""
        raise NotImplementedError

    @classmethod
    def _register(
        cls, container: AnnData | MuData, adata: AnnData, setup_method_args: dict[str, Any], kwargs: dict[str, Any]
    ) -> None:
        """Register the fields of `adata`, which is the container or a modality of it."""
        setup = setup_method_args["setup_args"]
        fields = cls._fields(setup)
        if container is not adata:
            fields = [ModalityField(field, setup["modality"]) for field in fields]
        adata_manager = cls._manager(fields=fields, setup_method_args=setup_method_args)
        with with_graph(adata, setup["graph_key"], setup["sample_key"], setup["spatial_key"]):
            adata_manager.register_fields(container, **kwargs)
            dataset = adata_manager.register_now()
        warn_of_spots(adata, setup["graph_key"], setup["mask_layer"])
        warn_of_equal_totals(dataset)
        warn_of_masked_library(dataset, setup["size_factor_key"])
        cls.register_manager(adata_manager)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a saved model, as in scvi-tools; `adata` may hold the genes in another order, or more of them."""
        with warnings.catch_warnings():
            # genes are found by their names
            warnings.filterwarnings("ignore", message=".*var_names.* does not match")
            return super().load(*args, **kwargs)

    def _validate_anndata(self, adata: AnnData | MuData | None = None, copy_if_view: bool = True) -> AnnData | MuData:
        if adata is None or adata is self.adata:
            return super()._validate_anndata(adata, copy_if_view)
        setup = self.registry_["setup_args"]
        if (modality := setup.get("modality")) is None:
            check_anndata(adata, "a question")
        holder = adata if modality is None else modality_of(adata, modality, "a question")
        # before scvi-tools looks for a manager: it registers copies of known data while it looks, and they may lack the graph
        sample_key = choose_sample_key(holder, setup["sample_key"], setup["spatial_key"])
        built_with = self.get_state_registry(keys.GRAPH)["n_neighbors"]
        with with_graph(holder, setup["graph_key"], sample_key, setup["spatial_key"], built_with):
            validated = super()._validate_anndata(adata, copy_if_view)
        warn_of_spots(holder, setup["graph_key"], setup["mask_layer"])
        return validated
