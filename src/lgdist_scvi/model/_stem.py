"""Stem: expression predicted from image features."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import BaseAnnDataField
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice, require_key
from lgdist_scvi.data import ImageDataset, ImageManager, gene_statistics
from lgdist_scvi.inference import N_SAMPLES
from lgdist_scvi.model._lgdist import LGDiST
from lgdist_scvi.model._registration import RegistrationMixin
from lgdist_scvi.model._setup import DEFAULT_GRAPH, check_anndata, check_keywords, choose_sample_key, same_key
from lgdist_scvi.model._stem_fields import stem_fields
from lgdist_scvi.model._stem_stages import STAGES
from lgdist_scvi.model._stem_synthetic import note_sources
from lgdist_scvi.model._stem_targets import Targets, targets_of
from lgdist_scvi.model.base import (
    CompletionMixin,
    ExpressionMixin,
    RecordMixin,
    SkillMixin,
    TrainingMixin,
    random_state,
)
from lgdist_scvi.module import GeneStemModule, StemConfig, StemModule
from lgdist_scvi.module.likelihood import LIKELIHOODS, choose_likelihood


class Stem(RegistrationMixin, RecordMixin, TrainingMixin, ExpressionMixin, SkillMixin, CompletionMixin, BaseModelClass):
    """Spatial expression from the tissue image, by latent diffusion (after Zhu et al. 2025, ICLR, "Stem").

    Features of the image patch around a spot and of those around its neighbours predict its expected rates; no count of a spot is
    looked at. What is learnt are expected rates by :class:`LGDiST`, fitted on the same slides. Whatever is chosen in training -
    when to stop, weights of the expert, noise, intervals - is chosen by counts of slides that the predicting network did not see.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.
    gene_likelihood
        ``"nb"`` or ``"poisson"``.
    standardise
        ``"slide"``: features are standardised by the mean and the standard deviation of each slide, which takes differences
        of staining off; ``"all"``: by those of the training.
    n_components
        Principal components of the image features, of each encoder where several made them.
    n_latent
        Principal axes of log rates: the latent.
    n_hidden, n_layers, n_heads, dropout_rate
        Sizes of the networks.
    hide_patch
        In training, share of the patches that are hidden.
    n_denoiser_hidden, n_denoiser_layers, n_denoiser_heads, n_timesteps
        Sizes of the denoiser, and the number of noise steps it is trained with.
    n_draws
        Noise draws per spot in a training step of the diffusion.
    decoded_weight
        Weight of the counts' loss by the decoded posterior mean in the diffusion's loss.
    n_folds
        Parts of the slides, at least 2, each left out by a network. ``None``: the slides, at most 5; of a single slide 4 strips.
    denoiser
        ``"latent"``; ``"genes"``: the paper's transformer, a token for each gene under the features of the own patch. There is no
        network or expert beside it: `n_latent`, `n_hidden`, `n_layers`, `n_heads`, `dropout_rate` and `hide_patch` are not used.
        A single denoiser learns all parts of the slides but the first, on which noise, intervals and skill are then measured;
        of the other training slides it predicts what it has seen.

    Raises
    ------
    ValueError
        If the likelihood does not fit the mask, or an argument is out of range.

    Examples
    --------
    >>> Stem.setup_anndata(adata)
    >>> stem = Stem(adata)
    >>> stem.train()
    >>> stem.get_predicted_expression(other)
    """

    _module_cls = StemModule
    _manager = ImageManager
    _depth_is_free = True  # no count is looked at
    _stages = STAGES["latent"]

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        gene_likelihood: Literal["nb", "poisson"] = "nb",
        standardise: Literal["slide", "all"] = "slide",
        n_components: int = 128,
        n_latent: int = 32,
        n_hidden: int = 128,
        n_layers: int = 1,
        n_heads: int = 4,
        dropout_rate: float = 0.3,
        hide_patch: float = 0.1,
        n_denoiser_hidden: int = 128,
        n_denoiser_layers: int = 2,
        n_denoiser_heads: int = 4,
        n_timesteps: int = 1000,
        n_draws: int = 4,
        decoded_weight: float = 0.1,
        n_folds: int | None = None,
        denoiser: Literal["latent", "genes"] = "latent",
    ):
        super().__init__(adata, registry)
        self.random_state_ = random_state()
        check_choice(
            "gene_likelihood", gene_likelihood, [name for name, one in LIKELIHOODS.items() if "rate" in one.estimands]
        )
        check_choice("standardise", standardise, ("slide", "all"))
        if n_folds is not None and n_folds < 2:
            raise ValueError(f"n_folds must be at least 2, one part to judge what is learnt from others; got {n_folds}")
        given, sizes = locals(), [field.name for field in fields(StemConfig)]
        config = StemConfig(**{name: given[name] for name in sizes})
        dataset = None if adata is None else self.adata_manager.create_torch_dataset()
        if dataset is not None and not dataset.counted:
            dataset = None  # load() fills in what counts would tell
        if dataset is not None:
            choose_likelihood(gene_likelihood, dataset.shows_zeros(), dataset.hides_every_zero())
            n_folds = int(dataset.folds(n_folds).max()) + 1
        compositional = keys.LIBRARY not in self.registry_["field_registries"]
        self._stages = STAGES[denoiser]
        self.module = (GeneStemModule if denoiser == "genes" else self._module_cls)(
            gene_likelihood,
            n_genes=self.summary_stats["n_vars"],
            blocks=self.get_state_registry(keys.IMAGE)["blocks"],
            compositional=compositional,
            per_slide=standardise == "slide",
            n_folds=n_folds,
            config=config,
        )
        if dataset is not None:  # else load() fills in parameters and statistics
            patterns = self.module.set_aside_patterns.numpy()
            counted_among = LIKELIHOODS[gene_likelihood].counted_among
            self.module.initialise(gene_statistics(dataset, patterns, counted_among, compositional, 2))
            self.module.components.fit(dataset.fields[keys.IMAGE], dataset.samples)
        self.training_seed_ = None
        self.calibration_ = None
        self.n_rounds_ = 1
        self._targets: Targets | None = None
        self.init_params_ = self._get_init_params(locals())

    @staticmethod
    def paper_preset() -> dict[str, Any]:
        """Give the paper's network, as arguments of the constructor: 33 million parameters, made for some 200 genes and a GPU.

        Follow it by ``train(targets="counts")``, as the paper has no completed targets.
        """
        sizes = {"n_denoiser_hidden": 384, "n_denoiser_layers": 12, "n_denoiser_heads": 6}
        return {"denoiser": "genes", **sizes, "n_draws": 2, "decoded_weight": 0.0}

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        image_key: str = "X_image",
        layer: str | None = None,
        sample_key: str | None = None,
        size_factor_key: str | None = None,
        mask_layer: str | None = None,
        graph_key: str = DEFAULT_GRAPH,
        spatial_key: str = "spatial",
        library_key: str | None = None,
        target_layer: str | None = None,
        allow_synthetic: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register the fields of an AnnData.

        Parameters
        ----------
        adata
            Training slides, (n_obs, n_vars), with counts and image features.
        image_key
            Key of `adata.obsm` with features of the patch around each spot, (n_obs, n_features), of any encoder; a row of NaN where
            there is no image. Of several encoders side by side, ``adata.uns[image_key]["blocks"]`` holds the number of features of
            each, as :func:`~lgdist_scvi.pp.image_features` writes it.
        layer, sample_key, size_factor_key, mask_layer, graph_key, spatial_key, library_key, allow_synthetic
            As in :meth:`LGDiST.setup_anndata`. Data that are predicted later need none of the counts, library sizes and masks.
        target_layer
            Layer of log1p(CP10K) of expected rates to learn, such as ``LGDiST.complete(observed="model")`` writes, in the place of
            those that :meth:`train` would have an LGDiST find.
        **kwargs
            For scvi-tools' registration.

        Raises
        ------
        TypeError
            If `adata` is no AnnData, or a keyword argument is unknown.
        KeyError
            If a key is absent; the message lists those that are there.
        ValueError
            If features, counts, mask, coordinates, graph or library sizes are not what they should be.
        """
        check_anndata(adata, allow_synthetic=allow_synthetic)
        check_keywords(kwargs, list(inspect.signature(cls.setup_anndata).parameters)[1:-1])
        if target_layer is not None and "source_registry" not in kwargs:
            require_key(adata.layers, target_layer, "adata.layers", 'LGDiST.complete(observed="model") writes one')
        sample_key, library_key = choose_sample_key(adata, same_key(sample_key, library_key), spatial_key), None
        cls._register(adata, adata, cls._get_setup_method_args(**locals()), kwargs)

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[BaseAnnDataField]:
        return stem_fields(setup)

    def _data_for(self, dataset: ImageDataset, hide: str = "nothing") -> ImageDataset:
        """Components in the place of features, and what training needs; data of the training know which network not to ask."""
        module = self.module
        further = {keys.IMAGE: module.components.transform(dataset.fields[keys.IMAGE], dataset.samples)}
        if hide == "set_aside" or (self.training_data_ and dataset.fingerprint == self.training_data_):
            further[keys.FOLD] = dataset.folds(module.n_folds)[:, None]
        if hide == "set_aside" and self._targets is not None:
            further |= self._targets.fields()
        return dataset.with_fields(**further)

    def train(
        self,
        max_epochs: int | None = None,
        stage: Literal["all", "network", "diffusion"] = "all",
        targets: Literal["expected", "counts"] | LGDiST = "expected",
        synthetic: AnnData | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        early_stopping: bool = True,
        ema_decay: float | None = 0.99,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the networks, fit the expert beside them, and train the diffusion of what they leave open.

        Parameters
        ----------
        max_epochs
            Passes over the spots in each stage. ``None``: about 400 steps for the networks and 300 for the diffusion.
        stage
            ``"network"``, ``"diffusion"`` (needs trained networks) or ``"all"``; in gene space ``"diffusion"`` is all.
        targets
            ``"expected"``: rates that an :class:`LGDiST` expects, fitted on the same slides, or those of `target_layer`;
            ``"counts"``: the counts themselves, and principal components of them for the latent. A trained :class:`LGDiST` of the
            same slides spares fitting another one.
        synthetic
            Pairs of :meth:`C2LST.synthetic_pairs` of the same spots, with image features: further patches for the targets of the spots
            that they were made for. How much they count is chosen on slides that were not seen; nothing, unless more is certain to pay.
        accelerator, devices, batch_size, early_stopping, ema_decay, plan_kwargs, datasplitter_kwargs, **trainer_kwargs
            As in :meth:`LGDiST.train`.

        Raises
        ------
        ValueError, TypeError
            As :meth:`LGDiST.train`.
        """
        shared = {"accelerator": accelerator, "devices": devices}
        super()._check_call(stage, 1, max_epochs, batch_size, ema_decay)
        show = trainer_kwargs.get("enable_progress_bar", True)
        several = {name: trainer_kwargs[name] for name in ("strategy", "num_nodes") if name in trainer_kwargs}
        self._targets = targets_of(self, targets, stage, synthetic, enable_progress_bar=show, **shared, **several)
        try:
            super().train(
                max_epochs=max_epochs,
                stage=stage,
                batch_size=batch_size,
                early_stopping=early_stopping,
                ema_decay=ema_decay,
                plan_kwargs=plan_kwargs,
                datasplitter_kwargs=datasplitter_kwargs,
                **shared,
                **trainer_kwargs,
            )
        finally:
            self._targets = None
        note_sources(self, targets, synthetic)

    def get_predicted_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        return_std: bool = False,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        return_numpy: bool | None = None,
        silent: bool = True,
        **unsupported: Any,
    ) -> pd.DataFrame | np.ndarray | tuple:
        """Predict expression from the image, in log1p(CP10K) of the expected rate.

        Parameters
        ----------
        adata
            Data with image features and coordinates; counts are not needed. ``None``: the training data, each slide predicted by
            the network that did not see it.
        indices, gene_list, n_samples, return_mean, return_std, seed, n_steps, batch_size, return_numpy, silent
            As in :meth:`LGDiST.get_completed_expression`.

        Returns
        -------
        (n_obs, n_genes), a data frame unless `return_numpy`; with ``n_samples > 1`` and not `return_mean` an array
        (n_samples, n_obs, n_genes). With `return_std` a pair of the result and its standard deviation.
        """
        return super().get_completed_expression(
            adata, indices, gene_list, n_samples, return_mean, return_std, observed="model", seed=seed, n_steps=n_steps,
            batch_size=batch_size, return_numpy=return_numpy, silent=silent, **unsupported,
        )  # fmt: skip

    def get_prediction_interval(
        self,
        level: float = 0.9,
        adata: AnnData | None = None,
        library_size: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Give an interval that holds the measured value of an entry with probability `level`.

        Calibrated on slides that the predicting network did not see. `library_size` is the depth, in counts, of the measurement that
        it is for, of each spot or of all; ``None``: that of the data, or the training's typical one. Other arguments as in
        :meth:`LGDiST.get_prediction_interval`.
        """
        return super().get_prediction_interval(
            level, adata, **{"observed": "model", "library_size": library_size, **kwargs}
        )

    def predict(
        self,
        adata: AnnData | None = None,
        layer_added: str = "predicted",
        level: float | None = 0.9,
        n_samples: int = N_SAMPLES,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        silent: bool = False,
    ) -> None:
        """Write predicted expression to a layer, as :meth:`LGDiST.complete` does, in every entry.

        Parameters
        ----------
        adata
            Data with image features, coordinates and the genes of the model (`adata.var_names`); counts are not needed. ``None``:
            the training data.
        layer_added, level, n_samples, seed, n_steps, batch_size, silent
            As in :meth:`LGDiST.complete`.

        Raises
        ------
        ValueError
            If genes of the model are not in `adata.var_names`.
        """
        genes = super().get_var_names_registered()
        if adata is not None and (n_missing := int((~np.isin(genes, adata.var_names)).sum())):
            raise ValueError(
                f"{n_missing:,} of the {len(genes):,} predicted genes have no place in adata.var_names; give them one: "
                "AnnData(obs=adata.obs, obsm=dict(adata.obsm), var=pd.DataFrame(index=model.get_var_names_registered()))"
            )
        super().complete(
            adata, layer_added, level, n_samples, observed="model", seed=seed, n_steps=n_steps, batch_size=batch_size,
            silent=silent,
        )  # fmt: skip

    def __repr__(self) -> str:
        stats, n_parameters = self.summary_stats, sum(p.numel() for p in self.module.parameters())
        status = "trained" if self.module.diffusion.trained else "networks trained, diffusion not trained"
        n_features, networks = self.get_state_registry(keys.IMAGE)["n_features"], self.module.networks
        kind = f"{len(networks)} networks" if len(networks) else "a token for each gene"
        return (
            f"Stem: {stats['n_cells']:,} spots x {stats['n_vars']:,} genes from {n_features:,} image features\n"
            f"  {kind}, {n_parameters:,} parameters, latent of {self.module.diffusion.n_data}\n"
            f"  {status if self.is_trained_ else 'not trained'}"
        )
