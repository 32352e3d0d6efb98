"""LGDiST: registration and construction."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from mudata import MuData
from scvi.data.fields import BaseAnnDataField
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice
from lgdist_scvi.data import (
    CoordinatesField,
    CountsField,
    LibraryField,
    MaskField,
    NeighborhoodDataset,
    ObspField,
    OptionalImageField,
    PrefillField,
    SampleField,
    gene_statistics,
    set_aside_patterns,
)
from lgdist_scvi.model._registration import RegistrationMixin
from lgdist_scvi.model._setup import (
    DEFAULT_GRAPH,
    check_anndata,
    check_keywords,
    choose_sample_key,
    modality_of,
    same_key,
)
from lgdist_scvi.model._stages import DiffusionStage, VAEStage
from lgdist_scvi.model.base import (
    EstimateMixin,
    RecordMixin,
    SkillMixin,
    TrainingMixin,
    random_state,
)
from lgdist_scvi.module import LGDiSTConfig, LGDiSTModule
from lgdist_scvi.module.lgdist import Hide
from lgdist_scvi.module.likelihood import LIKELIHOODS, choose_likelihood


class LGDiST(RegistrationMixin, RecordMixin, TrainingMixin, EstimateMixin, SkillMixin, BaseModelClass):
    """Latent gene diffusion for the completion of spatial transcriptomics (Cárdenas et al. 2025, arXiv 2509.01864).

    A neighbourhood VAE encodes each spot from its own visible entries and its spatial neighbours; a latent diffusion model
    over it gives the distribution of what was not seen. No single-cell reference is used.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.
    gene_likelihood
        ``"nb"`` or ``"poisson"``: raw counts, zeros are data. ``"normal"``: log1p(CP10K) of captured entries; the mask must
        call every zero missing. ``"auto"``: ``"normal"`` with such a mask, else ``"nb"``.
    conditioning
        ``"spot+neighborhood"``: a spot is predicted from its own visible entries and its neighbours. ``"neighborhood"``: from
        its neighbours only, as in the paper.
    n_latent, n_hidden, n_layers, n_heads, dropout_rate
        Sizes of the neighbourhood VAE.
    n_factors
        Number of factors of the linear expert, a factor analysis of counts whose prediction is averaged with the network's;
        there is none where zeros are missing.
    n_profiles
        Number of profiles of the mixture expert, a Gamma-Poisson factorisation whose prediction is averaged with the network's; where
        zeros are missing it is the only expert.
    n_mixtures
        Number of such factorisations, from different starts, whose predictions are averaged.
    n_denoiser_hidden, n_denoiser_layers, n_denoiser_heads, n_timesteps
        Sizes of the denoiser, and the number of noise steps it is trained with.
    hide_up_to
        In training, up to this share of each spot's known entries is hidden, to different degrees in groups of genes drawn
        anew in every step, and mostly those are scored.
    hide_spot
        Share of the spots, in training, of which everything is hidden; at least 0.3 in that of the diffusion, and 0.5 with
        ``conditioning="neighborhood"``.
    visible_weight
        Weight of what is visible in the reconstruction, against 1 for what is hidden; counts are split in the VAE's training instead.
    keep_at_least
        In training, visible counts are thinned to a share, uniform between this and 1, and the rest is fitted.
    set_aside_fraction
        Share of the entries that training never sees; validation scores them. One spot in 25 is set aside whole besides.
    n_draws
        Noise draws per spot in a training step of the diffusion.
    decoded_weight
        Weight of the reconstruction by the decoded posterior mean in the diffusion's loss.
    kl_weight
        Weight of the divergence from the prior in the VAE's loss.
    n_image_components
        Number of principal components of the image features, of each encoder, with `image_key`.
    hide_image
        Share of the spots, in training of the diffusion, whose image is hidden.
    seed
        Of the set-aside entries.

    Raises
    ------
    ValueError
        If the likelihood does not fit the mask, or an argument is out of range.

    Examples
    --------
    >>> LGDiST.setup_anndata(adata)
    >>> model = LGDiST(adata)
    >>> model.train()
    >>> model.complete()
    >>> sq.pl.spatial_scatter(adata, layer="completed", color="Ttn")
    """

    _module_cls = LGDiSTModule
    _stages = {"vae": VAEStage, "diffusion": DiffusionStage}

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        gene_likelihood: Literal["auto", "nb", "poisson", "normal"] = "auto",
        conditioning: Literal["spot+neighborhood", "neighborhood"] = "spot+neighborhood",
        n_latent: int = 64,
        n_factors: int = 32,
        n_profiles: int = 60,
        n_mixtures: int = 4,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout_rate: float = 0.1,
        n_denoiser_hidden: int = 128,
        n_denoiser_layers: int = 3,
        n_denoiser_heads: int = 4,
        n_timesteps: int = 1000,
        hide_up_to: float = 0.9,
        hide_spot: float = 0.05,
        visible_weight: float = 0.1,
        keep_at_least: float = 0.3,
        set_aside_fraction: float = 0.05,
        n_draws: int = 4,
        decoded_weight: float = 0.1,
        kl_weight: float = 0.2,
        n_image_components: int = 64,
        hide_image: float = 0.3,
        seed: int = 0,
    ):
        super().__init__(adata, registry)
        self.random_state_ = random_state()
        check_choice("gene_likelihood", gene_likelihood, ("auto", *LIKELIHOODS))
        check_choice("conditioning", conditioning, ("spot+neighborhood", "neighborhood"))
        config = LGDiSTConfig.of(locals())
        dataset = None if adata is None else self.adata_manager.create_torch_dataset()
        if dataset is not None:
            shown = dataset.shows_zeros(), dataset.hides_every_zero()
            gene_likelihood = choose_likelihood(gene_likelihood, *shown)
        patterns = set_aside_patterns(self.summary_stats["n_vars"], set_aside_fraction, seed)
        fields = self.registry_["field_registries"]
        compositional = keys.LIBRARY not in fields
        self.module = self._module_cls(
            gene_likelihood,
            compositional=compositional,
            own_entries=conditioning == "spot+neighborhood",
            set_aside_patterns=torch.from_numpy(patterns),
            config=config,
            image_blocks=fields[keys.IMAGE]["state_registry"]["blocks"] if keys.IMAGE in fields else None,
        )
        if dataset is not None:  # else load() fills in parameters and statistics
            counted_among = LIKELIHOODS[gene_likelihood].counted_among
            self.module.initialise(gene_statistics(dataset, patterns, counted_among, compositional, n_latent))
            image = dataset.fields.get(keys.IMAGE)
            if image is not None and np.isfinite(image).any():  # data to load a model with may lack it
                self.module.image.components.fit(image, dataset.samples)
        self.gene_likelihood_ = gene_likelihood
        self.training_seed_ = None
        self.calibration_ = None
        self.n_rounds_ = 1
        self.init_params_ = self._get_init_params(locals())

    @staticmethod
    def paper_preset() -> dict[str, Any]:
        """Give the sizes and the condition of the paper, as arguments of the constructor.

        A denoiser of about 220 million parameters is made for a GPU. The paper also trains in two rounds: ``train(n_rounds=2)``.
        """
        return {
            "conditioning": "neighborhood",
            "n_hidden": 512,
            "n_layers": 4,
            "n_heads": 1,
            "n_latent": 128,
            "n_denoiser_hidden": 1024,
            "n_denoiser_layers": 12,
            "n_denoiser_heads": 16,
            "n_timesteps": 1500,
        }

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        mask_layer: str | None = None,
        graph_key: str = DEFAULT_GRAPH,
        sample_key: str | None = None,
        size_factor_key: str | None = None,
        spatial_key: str = "spatial",
        library_key: str | None = None,
        prefill_layer: str | None = None,
        image_key: str | None = None,
        allow_synthetic: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register the fields of an AnnData.

        Parameters
        ----------
        adata
            Annotated data, (n_obs, n_vars). `X` is never modified. `X` and layers may be on disk (backed h5ad, zarr,
            :func:`anndata.experimental.read_lazy`): they stay there, are checked in one pass here, and are read by rows after. That
            they changed since is then noticed by their shape and 16 runs of 64 rows, not by every entry.
        layer
            Layer with raw counts; ``None`` reads `adata.X`. On disk they are stored by spots (csr or dense).
        mask_layer
            Bool layer, True where an entry is observed (see :func:`lgdist_scvi.pp.observed_mask`). ``None``: every entry is
            data, zeros included.
        graph_key
            Key of `adata.obsp` with the neighbourhood graph. If the default is absent, the graph is built with
            :func:`lgdist_scvi.pp.spatial_neighbors`.
        sample_key
            Column of `adata.obs` that names the slide of each spot. If ``None``, a column that clearly names several slides is
            used, with a warning: "sample" or "library_id", the regions of a SpatialData table, names of images in `uns["spatial"]`,
            or a column whose groups are lattices that lie on each other. Where this is not clear, a warning names candidates.
        size_factor_key
            Column of `adata.obs` with library sizes in counts. ``None``: the sum over the registered genes. Leave out counts of
            masked entries. For a spot with no observed entry it is the depth to predict for.
        spatial_key
            Key of `adata.obsm` with the coordinates, (n_obs, 2).
        library_key
            squidpy's word for `sample_key`.
        prefill_layer
            Layer of log1p(CP10K) values that stand in for missing entries of neighbours, such as an earlier completion: the paper's
            second round of training. Needs `mask_layer`.
        image_key
            Key of `adata.obsm` with features of the image patch around each spot, (n_obs, n_features), such as
            :func:`lgdist_scvi.pp.image_features` writes to ``"X_image"``; a row of NaN where there is no image. Whether they are used is
            decided on held-out entries. Other data may lack them.
        allow_synthetic
            Accept spots that :meth:`C2LST.synthetic_pairs` made.
        **kwargs
            For scvi-tools' registration.

        Warns
        -----
        UserWarning
            If slides were found that no argument names, or may be mixed; if spots lie outside the tissue, held-out entries are not
            masked, spots have very many neighbours, or values look normalised.

        Raises
        ------
        TypeError
            If `adata` is no AnnData, or a keyword argument is unknown.
        KeyError
            If a key is absent; the message lists those that are there.
        ValueError
            If counts, mask, coordinates, graph or library sizes are not what they should be.
        """
        check_anndata(adata, allow_synthetic=allow_synthetic)
        check_keywords(kwargs, list(inspect.signature(cls.setup_anndata).parameters)[1:-1])
        # resolved first: whoever reads the registry must know which spots are of one slide
        sample_key, library_key = choose_sample_key(adata, same_key(sample_key, library_key), spatial_key), None
        cls._register(adata, adata, cls._get_setup_method_args(**locals()), kwargs)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modality: str = "rna",
        layer: str | None = None,
        mask_layer: str | None = None,
        graph_key: str = DEFAULT_GRAPH,
        sample_key: str | None = None,
        size_factor_key: str | None = None,
        spatial_key: str = "spatial",
        library_key: str | None = None,
        prefill_layer: str | None = None,
        image_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the fields of one modality of a MuData; completed layers are written back to it.

        Parameters
        ----------
        mdata
            Multimodal data.
        modality
            The modality that holds counts, coordinates and graph.
        layer, mask_layer, graph_key, sample_key, size_factor_key, spatial_key, library_key, prefill_layer, image_key, **kwargs
            As in :meth:`setup_anndata`, of the modality.
        """
        adata = modality_of(mdata, modality)
        check_keywords(kwargs, list(inspect.signature(cls.setup_mudata).parameters)[1:-1])
        sample_key, library_key = choose_sample_key(adata, same_key(sample_key, library_key), spatial_key), None
        arguments = {name: value for name, value in locals().items() if name != "adata"}
        cls._register(mdata, adata, cls._get_setup_method_args(**arguments), kwargs)

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[BaseAnnDataField]:
        """Fields to register; `setup` holds the arguments of :meth:`setup_anndata`. A further field reaches the batch by itself."""
        sample_key, graph_key = setup["sample_key"], setup["graph_key"]
        if setup["prefill_layer"] is not None and setup["mask_layer"] is None:
            raise ValueError("prefill_layer stands in for missing entries: register the mask_layer that names them")
        fields = [
            CountsField(setup["layer"]),
            CoordinatesField(setup["spatial_key"], sample_key),
            ObspField(graph_key, sample_key, setup["spatial_key"]),
        ]
        optional = (
            (SampleField, sample_key),
            (MaskField, setup["mask_layer"]),
            (LibraryField, setup["size_factor_key"]),
            (PrefillField, setup["prefill_layer"]),
            (OptionalImageField, setup["image_key"]),
        )
        return fields + [field(key) for field, key in optional if key is not None]

    def _data_for(self, dataset: NeighborhoodDataset, hide: Hide = "nothing") -> NeighborhoodDataset:
        """Components in the place of image features, and what completes the data in a second round."""
        if self.module.image is not None:
            components = self.module.image.components.transform(dataset.fields[keys.IMAGE], dataset.samples)
            dataset = dataset.with_fields(**{keys.IMAGE: components})
        return super()._data_for(dataset, hide)

    def __repr__(self) -> str:
        stats = self.summary_stats
        n_slides = stats.get("n_samples", 1)
        n_parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"LGDiST: {stats['n_cells']:,} spots x {stats['n_vars']:,} genes on {n_slides} slide{'s' * (n_slides > 1)}\n"
            f"  likelihood {self.gene_likelihood_}, {n_parameters:,} parameters, latent of {self.module.config.n_latent}\n"
            f"  {self._status()}"
        )

    def _status(self) -> str:
        """What is trained, for people."""
        if not self.is_trained_:
            return "not trained"
        status = "VAE and diffusion trained" if self.module.diffusion.trained else "VAE trained, diffusion not trained"
        if self.module.own_entries and not self.module.experts.in_use:
            status += ", experts not fitted"
        if (image := self.module.image) is not None:
            status += ", image in use" if image.in_use else ", image not in use"
        return status if self.calibration_ is not None else f"{status}, intervals not calibrated"
