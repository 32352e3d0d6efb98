"""Arguments for the trainer: what would fail or be ignored is refused before training begins."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import Logger
from scvi import train as scvi_train

from lgdist_scvi.train._processes import n_processes

_OWN_ROWS = 'name rows with datasplitter_kwargs={"external_indexing": [train, validation]}'
REMEDIES = {
    "train_size": f"all spots train, and validate by entries that are set aside; {_OWN_ROWS} to split spots",
    "validation_size": f"all spots validate by entries that are set aside; {_OWN_ROWS} to split spots",
    "shuffle_set_split": f"spots are not split at random; {_OWN_ROWS}",
    "external_indexing": _OWN_ROWS,
    "load_sparse_tensor": "batches are dense; leave it out",
    "datamodule": "it trains on the registered AnnData; leave it out",
    "plan_config": 'pass plan_kwargs, such as {"lr": 1e-3}',
    "trainer_config": "pass its entries as arguments of train()",
    "ckpt_path": "a stage cannot be resumed; save the model after a stage and train on",
    "lr": 'pass plan_kwargs={"lr": ...}',
    "weight_decay": 'pass plan_kwargs={"weight_decay": ...}',
    "num_workers": 'pass datasplitter_kwargs={"num_workers": ...}',
    "use_gpu": 'pass accelerator="gpu"',
    "use_distributed_sampler": "batches are split between processes as their neighbours need it; leave it out",
}
_FEW = 10  # names that a message can list
_NOT_FOR_THE_CALLER = {"self", "kwargs", "args", *REMEDIES}
_PRECISIONS = (None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed")


def refuse_unknown(
    given: Iterable[str], allowed: Iterable[str], where: str, remedies: Mapping[str, str] | None = None
) -> None:
    """Refuse keywords passed to `where` that are not allowed (TypeError), each with what to use instead.

    `remedies` are what to say of some names.
    """
    allowed = sorted(set(allowed))
    for name in given:
        if name in allowed:
            continue
        near = difflib.get_close_matches(str(name), allowed, n=1)
        if remedies and name in remedies:
            hint = remedies[name]
        elif len(allowed) <= _FEW:
            hint = f"choices: {', '.join(map(repr, allowed))}"
        else:
            hint = f"did you mean {near[0]!r}?" if near else "see its documentation"
        raise TypeError(f"{where} takes no {name!r}; {hint}")


def check_trainer_arguments(
    arguments: Mapping[str, Any], stages: Iterable[str], named: Iterable[str] = (), parallel: bool = False
) -> int:
    """Refuse arguments for :class:`scvi.train.Trainer` that it does not know or that stages cannot heed.

    The losses of all `stages` may be monitored; `named` are the other arguments of the caller, among which a mistyped
    one may be; `parallel` says whether several processes may train. Returns their number.

    Raises TypeError if an argument is unknown, or a callback or logger is none; ValueError if several processes are asked for
    that cannot train, weights would be kept in half or double precision, checkpoints be written, or no known loss be monitored.
    """
    known = {
        name
        for trainer in (scvi_train.Trainer, lightning.Trainer)
        for name in inspect.signature(trainer.__init__).parameters
    }
    refuse_unknown(arguments, (known | set(named)) - _NOT_FOR_THE_CALLER, "train()", REMEDIES)
    callbacks = listed(arguments.get("callbacks"))
    for one in callbacks:
        if not isinstance(one, lightning.Callback):
            raise TypeError(f"callbacks must be callbacks of Lightning, got {type(one).__name__}")
    for one in listed(arguments.get("logger")):
        if not isinstance(one, Logger | bool):
            raise TypeError(f"logger must be a logger of Lightning, True or False, got {type(one).__name__}")
    if arguments.get("limit_train_batches") == 0:
        raise ValueError("limit_train_batches=0 leaves nothing to train on; leave it out")
    if arguments.get("limit_val_batches") == 0 and arguments.get("early_stopping"):
        raise ValueError("with limit_val_batches=0 there is no loss to stop by; pass early_stopping=False")
    if arguments.get("overfit_batches") not in (None, 0):
        raise ValueError(
            f"overfit_batches={arguments['overfit_batches']!r} would replace the sampler of batches, which gathers neighbours; leave it out"
        )
    n = n_processes(arguments, parallel)
    every = arguments.get("check_val_every_n_epoch")
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ValueError(f"check_val_every_n_epoch must be a whole number of at least 1, got {every!r}")
    if arguments.get("precision") not in _PRECISIONS:
        raise ValueError(
            f"precision must be '32-true', '16-mixed' or 'bf16-mixed', got {arguments['precision']!r}: counts and weights "
            "are kept in single precision"
        )
    if arguments.get("enable_checkpointing") or any(isinstance(one, Checkpoint) for one in callbacks):
        raise ValueError(
            "checkpoints within a stage lack what later steps fit; leave out enable_checkpointing and checkpoint callbacks: "
            "train() keeps the weights with the lowest validation loss by itself, and model.save(...) keeps the whole model"
        )
    losses, stoppers = loss_names(stages), [one for one in callbacks if isinstance(one, EarlyStopping)]
    if len(stoppers) == len(callbacks):  # others may log metrics of their own
        monitored = {"early_stopping_monitor": arguments.get("early_stopping_monitor")}
        monitored |= {f"monitor of {type(one).__name__}": one.monitor for one in stoppers if one.strict}
        for name, monitor in monitored.items():
            if monitor is not None and monitor not in losses:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, losses))}, got {monitor!r}")
    return n


def loss_names(stages: Iterable[str]) -> list[str]:
    """Names under which the losses of these stages may be monitored."""
    return [
        f"{prefix}{part}_loss"
        for prefix in ("", *(f"{stage}_" for stage in stages))
        for part in ("train", "validation")
    ]


def listed(given: Any) -> list[Any]:
    """Callbacks or loggers as a list, however they were passed."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
