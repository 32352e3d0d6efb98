"""AnnData fields: what is registered, and every check that a registration makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import rich.pretty  # noqa: F401  (view_anndata_setup of scvi-tools uses it and does not import it)
import rich.table
from anndata import AnnData
from scipy import sparse
from scvi.data.fields import BaseAnnDataField, BaseMuDataWrapperClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import (
    get_coordinates,
    get_counts,
    get_graph,
    get_library,
    get_samples,
    observed_genes,
    open_counts,
)
from lgdist_scvi._checks import check_has_spots, check_unique_names, list_names, mapping, require_key
from lgdist_scvi._slides import find_sample_key
from lgdist_scvi._stored import StoredRows, is_stored, row_blocks


class _Field(BaseAnnDataField):
    """A field whose registration only checks; transfer to other data checks the same."""

    is_empty = False

    def __init__(self, registry_key: str, attr_name: str, attr_key: str | None):
        super().__init__()
        self._registry_key, self._attr_name, self._attr_key = registry_key, attr_name, attr_key

    @property
    def registry_key(self) -> str:
        return self._registry_key

    @property
    def attr_name(self) -> str:
        return self._attr_name

    @property
    def attr_key(self) -> str | None:
        return self._attr_key

    def register_field(self, adata: AnnData) -> dict:
        return super().register_field(adata)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        return self.register_field(adata_target)

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        return None


class CountsField(_Field):
    """Raw counts in `X` or a layer, in any format; other data may hold the genes in another order, or more of them."""

    def __init__(self, layer: str | None):
        super().__init__(keys.COUNTS, "X" if layer is None else "layers", layer)

    def validate_field(self, adata: AnnData) -> None:
        check_has_spots(adata)
        if not adata.n_vars:
            raise ValueError("adata has 0 genes; none is left to complete")
        check_unique_names(adata)
        if not isinstance(
            open_counts(adata, self.attr_key), StoredRows
        ):  # those are checked in the pass of the data set
            get_counts(adata, self.attr_key)

    def register_field(self, adata: AnnData) -> dict:
        super().register_field(adata)
        return {"n_obs": adata.n_obs, "n_vars": adata.n_vars, "column_names": np.asarray(adata.var_names)}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        genes = np.asarray(state_registry["column_names"])
        missing = genes[~np.isin(genes, adata_target.var_names)]
        if len(missing):
            raise ValueError(
                f"{len(missing):,} of the {len(genes):,} genes that the model was trained on are not in the new data "
                f"({list_names(missing)}); add them, or train a model on the shared genes"
            )
        self.validate_field(adata_target)
        return {"n_obs": adata_target.n_obs, "n_vars": len(genes), "column_names": genes}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_cells": state_registry["n_obs"], "n_vars": state_registry["n_vars"]}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        table = rich.table.Table(title="Counts")
        table.add_column("Spots")
        table.add_column("Genes")
        table.add_row(str(state_registry["n_obs"]), str(state_registry["n_vars"]))
        return table


class MaskField(_Field):
    """A layer that is True where an entry is observed."""

    def __init__(self, mask_layer: str):
        super().__init__(keys.MASK, "layers", mask_layer)

    def validate_field(self, adata: AnnData) -> None:
        observed_genes(adata, self.attr_key)

    def register_field(self, adata: AnnData) -> dict:
        unseen = adata.var_names[~observed_genes(adata, self.attr_key)]
        if len(unseen):
            raise ValueError(
                f"adata.layers[{self.attr_key!r}] marks nothing as observed for {len(unseen):,} of {adata.n_vars:,} genes "
                f"({list_names(unseen)}); nothing can be learnt about them: drop them with adata[:, mask.any(axis=0)]"
            )
        return {}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        # a trained model knows the genes: new data may hide one throughout
        self.validate_field(adata_target)
        return {}


class _OnSlides(_Field):
    """A field that must be right on each slide.

    The slide column is part of the registered state: `sample_key` of the registration, and for other data, of which
    nothing was named, what :func:`~lgdist_scvi._slides.find_sample_key` is sure of.
    """

    def __init__(self, registry_key: str, attr_name: str, attr_key: str, sample_key: str | None, spatial_key: str):
        super().__init__(registry_key, attr_name, attr_key)
        self.sample_key, self.spatial_key = sample_key, spatial_key

    def validate_slides(self, adata: AnnData, sample_key: str | None) -> None:
        raise NotImplementedError

    def validate_field(self, adata: AnnData) -> None:
        self.validate_slides(adata, self.sample_key)

    def register_field(self, adata: AnnData) -> dict:
        return super().register_field(adata) | {"sample_key": self.sample_key}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        sample_key = find_sample_key(adata_target, self.sample_key, self.spatial_key)
        self.validate_slides(adata_target, sample_key)
        return {"sample_key": sample_key}


class PrefillField(_Field):
    """A layer of log1p(CP10K) values that stand in for missing entries of neighbours."""

    def __init__(self, prefill_layer: str):
        super().__init__(keys.PREFILL, "layers", prefill_layer)

    def validate_field(self, adata: AnnData) -> None:
        remedy = "prefill_layer names completed values, as model.complete() writes them"
        require_key(adata.layers, self.attr_key, "adata.layers", remedy)
        values, where = adata.layers[self.attr_key], f"adata.layers[{self.attr_key!r}]"
        for block in row_blocks(StoredRows(values, where) if is_stored(values) else values):
            block = block.data if sparse.issparse(block) else np.asarray(block)
            if block.dtype.kind not in "fiu" or not np.isfinite(block).all() or (block < 0).any():
                raise ValueError(f"{where} must hold finite log1p(CP10K) values of at least 0; {remedy}")


class ObspField(_OnSlides):
    """A neighbourhood graph in `obsp`; row i holds the neighbours of spot i."""

    def __init__(self, graph_key: str, sample_key: str | None, spatial_key: str = "spatial"):
        super().__init__(keys.GRAPH, "obsp", graph_key, sample_key, spatial_key)

    def validate_slides(self, adata: AnnData, sample_key: str | None) -> None:
        graph, where = get_graph(adata, self.attr_key).tocoo(), f"adata.obsp[{self.attr_key!r}]"
        if n_loops := int((graph.row == graph.col).sum()):
            raise ValueError(
                f"{n_loops:,} spots are their own neighbours in {where} (self loops); "
                "build it with pp.spatial_neighbors(adata, sample_key=...)"
            )
        samples = get_samples(adata, sample_key)
        if n_crossing := int((samples[graph.row] != samples[graph.col]).sum()):
            raise ValueError(
                f"{n_crossing:,} edges of {where} join spots of different slides (adata.obs[{sample_key!r}]); "
                f"build it per slide with pp.spatial_neighbors(adata, sample_key={sample_key!r})"
            )

    def register_field(self, adata: AnnData) -> dict:
        return super().register_field(adata) | self._size(adata)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        return super().transfer_field(state_registry, adata_target) | self._size(adata_target)

    def _size(self, adata: AnnData) -> dict:
        built = mapping(adata.uns.get(f"{self.attr_key.removesuffix('_connectivities')}_neighbors"))
        n_neighbors = mapping(built.get("params")).get("n_neighbors")
        return {"n_edges": int(get_graph(adata, self.attr_key).nnz), "n_neighbors": n_neighbors}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_edges": state_registry["n_edges"]}


class CoordinatesField(_OnSlides):
    """Spot coordinates in `obsm`."""

    def __init__(self, spatial_key: str, sample_key: str | None):
        super().__init__(keys.COORDINATES, "obsm", spatial_key, sample_key, spatial_key)

    def validate_slides(self, adata: AnnData, sample_key: str | None) -> None:
        get_coordinates(adata, self.attr_key, sample_key)


class SampleField(_Field):
    """The slide of each spot in `obs`."""

    def __init__(self, sample_key: str):
        super().__init__(keys.SAMPLE, "obs", sample_key)

    def validate_field(self, adata: AnnData) -> None:
        get_samples(adata, self.attr_key)

    def register_field(self, adata: AnnData) -> dict:
        super().register_field(adata)
        return {"n_samples": int(get_samples(adata, self.attr_key).max(initial=-1)) + 1}

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_samples": state_registry["n_samples"]}


class LibraryField(_Field):
    """Library size of each spot in `obs`, in counts."""

    def __init__(self, size_factor_key: str):
        super().__init__(keys.LIBRARY, "obs", size_factor_key)

    def validate_field(self, adata: AnnData) -> None:
        get_library(adata, self.attr_key)


class ModalityField(BaseMuDataWrapperClass):
    """A field of one modality of a MuData."""

    def __init__(self, field: BaseAnnDataField, modality: str):
        super().__init__(mod_key=modality)
        self._adata_field = field
