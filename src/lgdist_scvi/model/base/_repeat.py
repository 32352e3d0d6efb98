"""Repeating a completion from its record, and training another model alike."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, Self

import pandas as pd
import torch
from anndata import AnnData
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import in_memory
from lgdist_scvi._checks import list_names, mapping
from lgdist_scvi.data import NeighborhoodDataset, registered_anndata
from lgdist_scvi.model.base._completion import check_target
from lgdist_scvi.model.base._query import Query
from lgdist_scvi.model.base._record import Recorded, versions, weights_fingerprint
from lgdist_scvi.model.base._training import TrainingMixin
from lgdist_scvi.train import in_processes


class RecordMixin(TrainingMixin, Recorded):
    """Record of how a layer was completed, and its repetition."""

    @classmethod
    def repeat_completion(
        cls,
        adata: AnnData,
        layer: str = "completed",
        layer_added: str = "repeated",
        trained_on: AnnData | None = None,
        silent: bool = False,
    ) -> Any:
        """Train a model and complete again as :attr:`uns` says a layer was made, to compare with it.

        On the same machine, with the same versions and number of threads, on a CPU, the layers agree bit by bit.

        Parameters
        ----------
        adata
            Data with ``layers[layer]`` and its record ``uns[layer]``, such as a file written after :meth:`complete`.
        layer
            The completion to repeat.
        layer_added
            Where to write its repetition.
        trained_on
            The data that the model was trained on, if they are not `adata`.
        silent
            Whether to hide the progress bars.

        Returns
        -------
        The model, trained as the recorded one was.

        Raises
        ------
        KeyError
            If there is no record.
        ValueError
            If the data are not those recorded, training was interrupted by hand, or several processes trained.
        """
        record = mapping(adata.uns.get(layer))
        if "recipe" not in record:
            raise KeyError(f"adata.uns[{layer!r}] holds no record of a completion; model.complete(adata) writes one")
        recipe = json.loads(record["recipe"])
        # copies: torch crashes on a state whose memory is not aligned as its own
        states = [torch.tensor(state, dtype=torch.uint8) for state in record["random_state"]]
        if any(call["interrupted"] for call in recipe["training"]):
            raise ValueError(
                f"the training behind layers[{layer!r}] was interrupted by hand and cannot be repeated; keep its model "
                "with model.save(...)"
            )
        if any(in_processes(call["arguments"]) for call in recipe["training"]):
            raise ValueError(
                f"the model behind layers[{layer!r}] was trained by several processes, which is not repeated; keep it with model.save(...)"
            )
        check_target(adata, layer_added)
        source, before = adata if trained_on is None else trained_on, settings.seed
        with torch.random.fork_rng(devices=[]):
            try:
                torch.set_rng_state(states[0])
                model = _rebuild(cls, source, recipe)
                _check_data(model.adata_manager.create_torch_dataset(), record["training_data"], layer)
                for call, state in zip(recipe["training"], states[1:], strict=True):
                    settings.seed = call["seed"]
                    torch.set_rng_state(state)
                    model.train(**call["arguments"] | ({"enable_progress_bar": False} if silent else {}))
            finally:
                settings.seed = before
        if weights_fingerprint(model.module) != record["weights"]:
            left_out = sorted({name for call in recipe["training"] for name in call["left_out"]})
            lost = f"; not recorded, and not given again: {list_names(left_out)}" if left_out else ""
            warnings.warn(
                f"The model trained again differs from the recorded one in bits, so that layers[{layer_added!r}] agrees with "
                f"layers[{layer!r}] only about; expected with other versions, threads or devices "
                f"({_environment(record)} recorded, {_environment(versions())} now){lost}.",
                stacklevel=settings.warnings_stacklevel,
            )
        _check_data(Query(model, adata, region_effects=False).dataset, record["data"], layer)
        model.complete(adata, layer_added, **recipe["completion"], silent=silent)
        return model

    def retrain(self, adata: AnnData, *, setup: Mapping[str, Any] | None = None, **train_kwargs: Any) -> Self:
        """Train a new model on other data as this one was trained.

        Parameters
        ----------
        adata
            Data with the same keys as this model's, such as a changed :meth:`copy_data`; they are registered.
        setup
            Arguments of `setup_anndata` that differ from this model's.
        **train_kwargs
            Arguments of `train`; without any, all calls of it are repeated (but for loggers and callbacks).

        Returns
        -------
        The new model; this one and its data stay as they are.

        Raises
        ------
        ValueError
            If several processes trained this one, and no arguments of `train` are given.
        """
        setup = {**self.registry_["setup_args"], **(setup or {})}
        model = _rebuild(type(self), adata, {"setup": setup, "model": self.init_params_["non_kwargs"]})
        calls = [train_kwargs] if train_kwargs else [call["arguments"] for call in self.training_] or [{}]
        if not train_kwargs and any(map(in_processes, calls)):
            raise ValueError(
                "the model was trained by several processes, which only a script can start; pass arguments of train, such as batch_size="
            )
        for arguments in calls:
            model.train(**arguments)
        return model

    def copy_data(self) -> AnnData:
        """Copy of all that is registered of the model's data, under the same keys, and of nothing else.

        Raises
        ------
        ValueError
            If the model has no data.
        """
        if self.adata is None:
            raise ValueError("the model has no data; load it with them: LGDiST.load(folder, adata=adata)")
        parts: dict[str, Any] = {name: {} for name in ("layers", "obsm", "obsp")}
        adata = registered_anndata(self.adata_manager)
        parts |= {name: pd.DataFrame(index=getattr(adata, name).index) for name in ("obs", "var")}
        for field in self.adata_manager.data_registry.values():
            values = getattr(adata, field.attr_name)
            if field.attr_key is None:
                parts[field.attr_name] = in_memory(values)
            else:
                values = values[field.attr_key]
                parts[field.attr_name][field.attr_key] = values if field.attr_name == "obs" else in_memory(values)
        return AnnData(**parts)[:, self.get_state_registry(keys.COUNTS)["column_names"]].copy()


def _rebuild(cls: type, adata: AnnData, recipe: Mapping[str, Any]) -> Any:
    """Register data and make a model of them as another was made."""
    # of a MuData, the modality is an AnnData of its own
    cls.setup_anndata(adata, **{name: value for name, value in recipe["setup"].items() if name != "modality"})
    return cls(adata, **recipe["model"])


def _environment(record: Mapping[str, Any]) -> str:
    return (
        f"lgdist-scvi {record['version']}, scvi-tools {record['scvi_tools_version']}, torch {record['torch_version']}, "
        f"{record['n_threads']} threads"
    )


def _check_data(dataset: NeighborhoodDataset, recorded: str, layer: str) -> None:
    """Refuse data that are not those of the record."""
    if dataset.fingerprint != recorded:
        raise ValueError(
            f"the data ({len(dataset):,} spots) are not those behind layers[{layer!r}]: their counts, mask, library sizes or graph "
            "differ; if the model was trained on other data than it completed, pass them as trained_on"
        )
