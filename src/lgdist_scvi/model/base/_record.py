"""What must be known to repeat a completion, written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scvi import settings
from scvi.model.base import BaseModelClass

from lgdist_scvi._version import __version__
from lgdist_scvi.inference import REPORTED_LEVELS
from lgdist_scvi.model.base._query import Query
from lgdist_scvi.module.likelihood import name_of

_LEGEND = ("measured", "filled zero", "filled missing entry", "measured, replaced", "missing, not filled")


class Recorded:
    """A model that keeps how it was made and trained."""

    random_state_: np.ndarray | None = None  # when the model was made
    training_: tuple = ()  # calls of train
    training_data_: str = ""  # hash of the data


def completion_record(model: BaseModelClass, query: Query, arguments: dict[str, Any]) -> dict[str, Any]:
    """What is needed to repeat and to judge the completion; only types that h5ad can store."""
    setup = {key: value for key, value in model.registry_["setup_args"].items() if value is not None}
    made_with = model.init_params_["non_kwargs"]
    level, estimand = arguments["level"], arguments["estimand"]
    record = {
        **versions(),
        "scale": "log1p(CP10K)",
        **{key: arguments[key] for key in ("observed", "fill", "estimand", "seed", "n_samples")},
        "n_steps": arguments["n_steps"] or 0,
        "genes": query.genes.astype(str),
        "registered_genes": query.dataset.genes.astype(str),
        "gene_likelihood": name_of(model.module.likelihood),
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


def versions() -> dict[str, Any]:
    """Versions and threads that bits depend on."""
    return {
        "version": __version__,
        "scvi_tools_version": version("scvi-tools"),
        "torch_version": version("torch"),
        "n_threads": torch.get_num_threads(),
    }


def random_state() -> np.ndarray:
    """State of torch's global generator, from which networks are initialised and trained, uint8."""
    return torch.get_rng_state().numpy().copy()


def remember_training(model: BaseModelClass, call: dict[str, Any], fingerprint: str) -> None:
    """Keep what :func:`training_call` gave, and whether it was interrupted."""
    model.training_seed_ = settings.seed
    model.training_ = [*model.training_, call]
    model.training_data_ = fingerprint


def training_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Record a call of `train` before it starts, from `locals()` at its first line.

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
    """Write down numbers, texts, lists and mappings, numpy's included; TypeError if something else is among them."""

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
