"""Between AnnData and tensors."""

from lgdist_scvi.data._dataset import NeighborhoodDataset, registered_anndata
from lgdist_scvi.data._fields import (
    CoordinatesField,
    CountsField,
    LibraryField,
    MaskField,
    ModalityField,
    ObspField,
    PrefillField,
    SampleField,
)
from lgdist_scvi.data._graph import Surroundings, reach_further
from lgdist_scvi.data._images import (
    ImageDataset,
    ImageField,
    ImageManager,
    OptionalCountsField,
    OptionalImageField,
    OptionalLibraryField,
    OptionalMaskField,
)
from lgdist_scvi.data._manager import NeighborhoodManager
from lgdist_scvi.data._patches import PatchField, PatchPairs
from lgdist_scvi.data._statistics import GeneStatistics, gene_statistics, set_aside_patterns

__all__ = [
    "CoordinatesField",
    "CountsField",
    "GeneStatistics",
    "ImageDataset",
    "ImageField",
    "ImageManager",
    "LibraryField",
    "MaskField",
    "ModalityField",
    "NeighborhoodDataset",
    "NeighborhoodManager",
    "ObspField",
    "OptionalCountsField",
    "OptionalImageField",
    "OptionalLibraryField",
    "OptionalMaskField",
    "PatchField",
    "PatchPairs",
    "PrefillField",
    "SampleField",
    "Surroundings",
    "gene_statistics",
    "reach_further",
    "registered_anndata",
    "set_aside_patterns",
]
