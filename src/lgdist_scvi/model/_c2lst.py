"""C2LST: tissue patches generated for expression."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass
from scvi.utils import track

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import in_memory
from lgdist_scvi._checks import check_positive_int, require_key
from lgdist_scvi._patches import resize_patches
from lgdist_scvi.data import CountsField, LibraryField, PatchField, PatchPairs, SampleField
from lgdist_scvi.model._c2lst_central import N_STEPS, CentralModel, noise_of, seed_of
from lgdist_scvi.model._c2lst_expression import conditions, expected_values, profiles, read_counts
from lgdist_scvi.model._c2lst_pairs import drawn_rows, flagged_pairs
from lgdist_scvi.model._c2lst_posterior import PosteriorMixin
from lgdist_scvi.model._c2lst_pretraining import pretrain_central
from lgdist_scvi.model._c2lst_stage import AdapterStage, pair_splitter
from lgdist_scvi.model._setup import check_anndata, check_keywords, same_key
from lgdist_scvi.model.base._record import Recorded, random_state, training_call, weights_fingerprint
from lgdist_scvi.module.c2lst import C2LSTModule
from lgdist_scvi.train import check_trainer_arguments, copies_for_stages, listed, refuse_unknown, run_stage

GUIDANCE = 2.0


class C2LST(Recorded, PosteriorMixin, BaseModelClass):
    """Tissue patches that go with given expression, from a central model of tissue and few pairs (after Fang et al. 2025, "C2L-ST").

    A central diffusion model learns what tissue looks like from patches without expression (:meth:`pretrain`). It is then frozen, and
    a small adapter learns from the spots of a slide how to modulate it by their expression. Only the abstract of the paper is public:
    network, condition and guidance are this package's reading of it.

    Generated patches are no data: :meth:`synthetic_pairs` flags them, and other models refuse them.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of data.
    central
        Central model, the folder it was saved to, or the name of a pipeline of the Hugging Face hub.
    n_scores
        Principal axes of the genes' expected rates, which are the condition.
    n_hidden
        Width of the adapter.
    drop_condition
        Share of training patches for which no gene is shown, so that guidance knows what patches without a condition look like.
    hide_genes
        Share of training batches in which only some genes are shown, so that other panels can be asked for.

    Raises
    ------
    ValueError
        If there is no central model, or an argument is out of range.

    Examples
    --------
    >>> central = C2LST.pretrain(pp.image_patches(adata, tissue=True))
    >>> pp.image_patches(adata, key_added="patches")
    >>> C2LST.setup_anndata(adata, patch_key="patches")
    >>> model = C2LST(adata, central=central)
    >>> model.train()
    >>> patches = model.generate(adata[:10])
    """

    _module_cls = C2LSTModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        central: CentralModel | str | PathLike[str] | Mapping[str, Any] | None = None,
        n_scores: int = 32,
        n_hidden: int = 128,
        drop_condition: float = 0.1,
        hide_genes: float = 0.25,
    ):
        super().__init__(adata, registry)
        self.random_state_ = random_state()
        check_positive_int(n_scores, "n_scores")
        check_positive_int(n_hidden, "n_hidden")
        if not 0 <= drop_condition < 1 or not 0 <= hide_genes < 1:
            raise ValueError(
                f"drop_condition and hide_genes must be from 0 to below 1, got {drop_condition}, {hide_genes}"
            )
        if central is None:
            raise ValueError(
                "C2LST needs a central model: central=C2LST.pretrain(patches), the folder of one, or the name of a pipeline"
            )
        loading = isinstance(central, Mapping)  # load() brings the weights and the rest
        if loading:
            kept, self.central_ = CentralModel.without_weights(central), dict(central)
        else:
            kept = central if isinstance(central, CentralModel) else CentralModel.load(central)
            self.central_ = kept.description()
        self.central = kept
        sizes = (self.summary_stats["n_vars"], n_scores, n_hidden)
        self.module = self._module_cls(kept.unet, kept.scheduler, *sizes, drop_condition, hide_genes)
        if adata is not None and not loading:
            if (n_obs := self.adata.n_obs) < 3:
                raise ValueError(f"{n_obs} spots are too few to learn from; at least 3 are needed")
            counts, library, _ = self._counts
            self.module.scores.fit_rates(torch.from_numpy(counts), torch.from_numpy(library.astype(np.float32)))
            self.module.scores.fit(torch.from_numpy(self._values))
        self.init_params_ = self._get_init_params(locals())
        self.init_params_["non_kwargs"]["central"] = self.central_

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        patch_key: str = "patches",
        layer: str | None = None,
        sample_key: str | None = None,
        size_factor_key: str | None = None,
        expression_layer: str | None = None,
        library_key: str | None = None,
        allow_synthetic: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register the fields of an AnnData.

        Parameters
        ----------
        adata
            Spots with counts and patches, (n_obs, n_vars).
        patch_key
            Key of `adata.obsm` with the patch around each spot, uint8 (n_obs, size, size, 3), as :func:`lgdist_scvi.pp.image_patches`
            writes it; patches are reduced to the size of the central model.
        layer, sample_key, size_factor_key, library_key, allow_synthetic
            As in :meth:`LGDiST.setup_anndata`; generated pairs keep their slide.
        expression_layer
            Layer of log1p(CP10K) of expected rates to condition on, such as ``LGDiST.complete(observed="model")`` writes; ``None``:
            those of the counts, shrunk to the genes' means.
        **kwargs
            For scvi-tools' registration.

        Raises
        ------
        TypeError
            If `adata` is no AnnData, or a keyword argument is unknown.
        KeyError
            If a key is absent; the message lists those that are there.
        ValueError
            If patches, counts or library sizes are not what they should be.
        """
        check_anndata(adata, allow_synthetic=allow_synthetic)
        check_keywords(kwargs, list(inspect.signature(cls.setup_anndata).parameters)[1:-1])
        sample_key, library_key = same_key(sample_key, library_key), None
        setup_method_args = cls._get_setup_method_args(**locals())
        if expression_layer is not None:
            require_key(
                adata.layers,
                expression_layer,
                "adata.layers",
                'LGDiST.complete(observed="model") writes expected rates',
            )
        fields = [CountsField(layer), PatchField(patch_key)]
        fields += [] if sample_key is None else [SampleField(sample_key)]
        fields += [] if size_factor_key is None else [LibraryField(size_factor_key)]
        adata_manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        adata_manager.register_fields(adata, **kwargs)
        cls.register_manager(adata_manager)

    pretrain = staticmethod(pretrain_central)

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 32,
        validation_size: float = 0.1,
        early_stopping: bool = True,
        ema_decay: float | None = 0.99,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the adapter; the central model stays as it is.

        Parameters
        ----------
        max_epochs
            Passes over the spots; ``None``: about 600 steps.
        accelerator, devices, batch_size, early_stopping, ema_decay, **trainer_kwargs
            As in :meth:`LGDiST.train`, but in one process.
        validation_size
            Share of the spots that choose when to stop.
        plan_kwargs
            `lr` and `weight_decay`.

        Raises
        ------
        ValueError, TypeError
            As :meth:`LGDiST.train`.
        """
        call = training_call(locals())
        if self.adata is None:
            raise ValueError("the model was loaded without data to train on; load it with them: load(..., adata=adata)")
        check_positive_int(batch_size, "batch_size")
        if max_epochs is not None:
            check_positive_int(max_epochs, "max_epochs")
        if not 0 < validation_size < 1:
            raise ValueError(f"validation_size must lie between 0 and 1, got {validation_size!r}")
        arguments = {**trainer_kwargs, "early_stopping": early_stopping, "devices": devices}
        check_trainer_arguments(arguments, ["adapter"], inspect.signature(self.train).parameters)
        refuse_unknown(plan_kwargs or {}, ("lr", "weight_decay"), "plan_kwargs")
        plan = AdapterStage(self.module, **(plan_kwargs or {}))
        splitter = pair_splitter(self._pairs, validation_size, batch_size, seed_of(None))
        shared = (self, self.module, self.adata, self.adata_manager, *listed(trainer_kwargs.get("logger")))
        (callbacks,) = copies_for_stages(trainer_kwargs.pop("callbacks", None), [plan.stage], shared)
        completed = run_stage(
            self,
            plan,
            splitter,
            max_epochs=max_epochs or max(4, round(plan.n_steps * batch_size / splitter.n_train)),
            ema_decay=ema_decay,
            callbacks=callbacks,
            stages=[plan.stage],
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            **trainer_kwargs,
        )
        self.training_ = [*self.training_, {**call, "interrupted": not completed}]

    def generate(
        self,
        expression: AnnData | Any = None,
        n_per_spot: int = 1,
        guidance_scale: float = GUIDANCE,
        n_steps: int = N_STEPS,
        seed: int | None = None,
        batch_size: int = 32,
        silent: bool = True,
    ) -> np.ndarray:
        """Generate patches of tissue for expression.

        Parameters
        ----------
        expression
            ``None``: the training spots. An AnnData with counts (or `expression_layer`) as in the training, such as
            ``adata[rows]``; patches are not needed, and genes that it lacks are unknown. Or log1p(CP10K) of expected rates: a DataFrame
            with genes as columns, NaN where a value is unknown, or an array of all registered genes, (n, n_genes).
        n_per_spot
            Patches for each profile.
        guidance_scale
            How much more than in training the expression counts: 0 ignores it, 1 takes it as it was learnt, more exaggerates it.
        n_steps
            Steps of the sampler; more than 25 gain little.
        seed
            Of the noise; ``None``: that of scvi-tools, or 0. The same seed gives the same patches (in other batches, but for rounding).
        batch_size
            Patches at a time.
        silent
            Whether to show no progress.

        Returns
        -------
        uint8, (n * n_per_spot, size, size, 3), those of one profile one after the other, in pixels of the central model.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the model is not trained, an argument is out of range, or expression is of an unknown kind or of other genes.
        """
        if not self.is_trained_:
            raise ValueError("the model is not trained; call train() first")
        check_positive_int(n_per_spot, "n_per_spot")
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be a number of at least 0, got {guidance_scale!r}")
        condition = conditions(self.module.scores, *self._profiles(expression)).repeat_interleave(n_per_spot, dim=0)
        noise = noise_of(len(condition), self.central.noise_shape, seed).to(condition.device)
        self.module.eval()
        parts = list(zip(condition.split(batch_size), noise.split(batch_size), strict=True))
        parts = track(parts, description="generating patches", disable=silent)
        return np.concatenate([self.module.generate(*part, guidance_scale, n_steps).cpu().numpy() for part in parts])

    def synthetic_pairs(
        self,
        n: int,
        seed: int | None = None,
        guidance_scale: float = GUIDANCE,
        n_steps: int = N_STEPS,
        batch_size: int = 32,
        silent: bool = True,
    ) -> AnnData:
        """Generate patches for the expression of training spots, drawn at random: all once before any twice.

        Parameters
        ----------
        n
            Number of pairs.
        seed
            Of draws and noise.
        guidance_scale, n_steps, batch_size, silent
            As in :meth:`generate`.

        Returns
        -------
        Annotated data, (n, n_genes), with

        - `X`: counts of the spot that a patch was made for; ``layers["expression"]``: the condition, log1p(CP10K) of expected rates;
        - ``obsm[patch_key]``: generated patches; they have no place on a slide;
        - ``obs["synthetic"]``: True; ``obs["source"]``: name of the spot; its slide, if slides were registered;
        - ``uns["synthetic"]``: seed, settings, and hashes of central model and adapter.

        Raises
        ------
        ValueError
            If the model is not trained or has no data.
        """
        check_positive_int(n, "n")
        if self.adata is None:
            raise ValueError("the model was loaded without data, of which pairs are made: load(..., adata=adata)")
        seed, n_obs = seed_of(seed), self.adata.n_obs
        rows = drawn_rows(n, n_obs, np.random.default_rng(seed))
        how = {"guidance_scale": float(guidance_scale), "n_steps": int(n_steps), "seed": seed}
        patches = self.generate(self._values[rows], **how, batch_size=batch_size, silent=silent)
        identity = {"central": self.central_["fingerprint"], "adapter": weights_fingerprint(self.module)}
        expression = self._genes, self._counts[0], self._values
        return flagged_pairs(self.adata, rows, *expression, patches, self.registry_["setup_args"], how | identity)

    def save(self, dir_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the adapter as in scvi-tools, with identity and place of the central model, which ``model.central.save(folder)`` saves."""
        self.central_["path"] = self.central.path
        super().save(dir_path, *args, **kwargs)

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | bool | None = None,
        *args: Any,
        central: CentralModel | str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load an adapter, and the central model that it was trained on.

        Parameters
        ----------
        dir_path, adata, *args, **kwargs
            As in scvi-tools.
        central
            The central model, or where it is; ``None``: where it was.

        Raises
        ------
        ValueError
            If the central model is not there, or is another one.
        """
        model = super().load(dir_path, adata, *args, **kwargs)
        model.central = CentralModel.find(central, model.central_)
        model.module.unet.load_state_dict(model.central.unet.state_dict())
        return model

    def _profiles(self, expression: Any) -> tuple[np.ndarray, np.ndarray]:
        if expression is not None:
            return profiles(expression, self._genes, self.registry_["setup_args"], self.module.scores)
        if self.adata is None:
            raise ValueError("the model was loaded without data; pass expression, or load(..., adata=adata)")
        return self._values, np.ones_like(self._values, dtype=bool)

    @property
    def _genes(self) -> np.ndarray:
        return np.asarray(self.get_state_registry(keys.COUNTS)["column_names"])

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return read_counts(self.adata, self._genes, self.registry_["setup_args"])

    @cached_property
    def _values(self) -> np.ndarray:
        """log1p(CP10K) of expected rates of the training spots, float32 (n_obs, n_genes)."""
        setup = self.registry_["setup_args"]
        if setup["expression_layer"] is None:
            return expected_values(self.module.scores, *self._counts[:2])
        values, known = profiles(self.adata, self._genes, setup, self.module.scores)
        if n_missing := int((~known).sum()):
            raise ValueError(
                f"{n_missing:,} values of adata.layers[{setup['expression_layer']!r}] are NaN; the training needs all"
            )
        return values

    @property
    def _pairs(self) -> PatchPairs:
        patches = self.adata.obsm[self.registry_["setup_args"]["patch_key"]]
        return PatchPairs(resize_patches(in_memory(patches), self.central.size), self._values)
