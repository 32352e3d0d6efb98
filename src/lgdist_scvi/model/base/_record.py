"""What must be known to repeat a completion, written down and read again."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import in_memory
from lgdist_scvi._checks import list_names
from lgdist_scvi._version import __version__
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference import REPORTED_LEVELS
from lgdist_scvi.model.base._query import Query

_LEGEND = ("measured", "filled zero", "filled missing entry", "measured, replaced", "missing, not filled")


class RecordMixin:
    """Record of how a layer was completed, and its repetition."""

    random_state_: np.ndarray | None = None  # when the model was made
    training_: tuple = ()  # calls of train
    training_data_: str = ""  # hash of the data

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
            If the data are not those recorded, or training was interrupted by hand.
        """
        record = adata.uns.get(layer)
        if not (isinstance(record, Mapping) and "recipe" in record):
            raise KeyError(f"adata.uns[{layer!r}] holds no record of a completion; model.complete(adata) writes one")
        recipe = json.loads(record["recipe"])
        # copies: torch crashes on a state whose memory is not aligned as its own
        states = [torch.tensor(state, dtype=torch.uint8) for state in record["random_state"]]
        _check_recipe(recipe, layer)
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
                f"({_environment(record)} recorded, {_environment(_versions())} now){lost}.",
                UserWarning,
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
        """
        setup = {**self.registry_["setup_args"], **(setup or {})}
        model = _rebuild(type(self), adata, {"setup": setup, "model": self.init_params_["non_kwargs"]})
        for arguments in [train_kwargs] if train_kwargs else [call["arguments"] for call in self.training_] or [{}]:
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
        parts |= {name: pd.DataFrame(index=getattr(self.adata, name).index) for name in ("obs", "var")}
        for field in self.adata_manager.data_registry.values():
            values = getattr(self.adata, field.attr_name)
            if field.attr_key is None:
                parts[field.attr_name] = in_memory(values)
            else:
                values = values[field.attr_key]
                parts[field.attr_name][field.attr_key] = values if field.attr_name == "obs" else in_memory(values)
        return AnnData(**parts)[:, self.get_state_registry(keys.COUNTS)["column_names"]].copy()


def completion_record(model: BaseModelClass, query: Query, arguments: dict[str, Any]) -> dict[str, Any]:
    """What is needed to repeat and to judge the completion; only types that h5ad can store."""
    setup = {key: value for key, value in model.registry_["setup_args"].items() if value is not None}
    made_with = model.init_params_["non_kwargs"]
    level, estimand = arguments["level"], arguments["estimand"]
    record = {
        **_versions(),
        "scale": "log1p(CP10K)",
        **{key: arguments[key] for key in ("observed", "fill", "estimand", "seed", "n_samples")},
        "n_steps": arguments["n_steps"] or 0,
        "genes": query.genes.astype(str),
        "registered_genes": query.dataset.genes.astype(str),
        "gene_likelihood": model.gene_likelihood_,
        "mask": setup.get("mask_layer", "every entry is data"),
        "setup": setup,
        "model": {key: value for key, value in made_with.items() if value is not None},
        "provenance": np.array(_LEGEND),
        "n_obs": query.adata.n_obs,
        "data": query.dataset.fingerprint,
        "weights": weights_fingerprint(model.module),
    }
    record["std_factors"] = query.calibration.std_factors
    if model.training_seed_ is not None:
        record["training_seed"] = int(model.training_seed_)
    if level is not None:
        record["level"] = level
        record["n_calibration_entries"] = np.array(query.calibration.hidden.n_entries[estimand])
        record["calibration_levels"] = np.array(REPORTED_LEVELS)
        # rows: levels; columns: all genes, then thirds by expression
        record["calibration_coverage"] = query.calibration.hidden.coverage[estimand]
    if model.training_:  # not known of models that were saved before it was kept
        calls = [{key: value for key, value in call.items() if key != "random_state"} for call in model.training_]
        recipe = {"setup": setup, "model": made_with, "training": calls, "completion": arguments}
        record["recipe"] = to_json(recipe)
        record["random_state"] = np.stack([model.random_state_, *(call["random_state"] for call in model.training_)])
        record["training_data"] = model.training_data_
    return record


def _rebuild(cls: type, adata: AnnData, recipe: Mapping[str, Any]) -> Any:
    """Register data and make a model of them as another was made."""
    cls.setup_anndata(adata, **recipe["setup"])
    return cls(adata, **recipe["model"])


def _versions() -> dict[str, Any]:
    return {
        "version": __version__,
        "scvi_tools_version": version("scvi-tools"),
        "torch_version": version("torch"),
        "n_threads": torch.get_num_threads(),
    }


def _environment(record: Mapping[str, Any]) -> str:
    return (
        f"lgdist-scvi {record['version']}, scvi-tools {record['scvi_tools_version']}, torch {record['torch_version']}, "
        f"{record['n_threads']} threads"
    )


def _check_recipe(recipe: Mapping[str, Any], layer: str) -> None:
    if any(call["interrupted"] for call in recipe["training"]):
        raise ValueError(
            f"the training behind layers[{layer!r}] was interrupted by hand and cannot be repeated; keep its model "
            "with model.save(...)"
        )


def _check_data(dataset: NeighborhoodDataset, recorded: str, layer: str) -> None:
    """Refuse data that are not those of the record."""
    if dataset.fingerprint != recorded:
        raise ValueError(
            f"the data ({len(dataset):,} spots) are not those behind layers[{layer!r}]: their counts, mask, library sizes or graph "
            "differ; if the model was trained on other data than it completed, pass them as trained_on"
        )


def random_state() -> np.ndarray:
    """State of torch's global generator, from which networks are initialised and trained, uint8."""
    return torch.get_rng_state().numpy().copy()


def remember_training(model: BaseModelClass, call: dict[str, Any], fingerprint: str) -> None:
    """Keep what :func:`training_call` gave, and whether it was interrupted."""
    model.training_seed_ = settings.seed
    model.training_ = [*model.training_, call]
    model.training_data_ = fingerprint


def training_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Record a call of `train` before it starts.

    Parameters
    ----------
    arguments
        `locals()` at its first line.

    Returns
    -------
    The arguments that can be written down, the names of those that cannot (callbacks, loggers), and the random state.
    """
    given = {name: value for name, value in arguments.items() if name not in ("self", "trainer_kwargs", "__class__")}
    given |= arguments.get("trainer_kwargs", {})
    kept, left_out = {}, []
    for name, value in given.items():
        try:
            kept[name] = json.loads(to_json(value))
        except TypeError:
            left_out.append(name)
    return {
        "arguments": kept,
        "left_out": left_out,
        "seed": None if settings.seed is None else int(settings.seed),
        "random_state": random_state(),
    }


def to_json(value: Any) -> str:
    """Write down numbers, texts, lists and mappings, numpy's included.

    Raises
    ------
    TypeError
        If something else is among them.
    """

    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            return item.tolist()
        raise TypeError(f"{type(item).__name__} cannot be written down")

    return json.dumps(value, default=plain)


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
