"""Training with several processes: what Lightning's strategy for data in parallel leaves to do.

Every process runs the whole script. The networks are trained together; what follows them is computed by each process alike,
and then replaced by what the first one has.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import distributed

from lgdist_scvi.train._plan import StagePlan

PARALLEL = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Strategies that run the script once for each process."""


def n_processes(arguments: Mapping[str, Any], parallel: bool) -> int:
    """How many processes train, by the arguments of `train`; several without a strategy for it are refused (ValueError).

    `parallel` says whether several may.
    """
    devices, strategy = arguments.get("devices"), arguments.get("strategy")
    n = _n_devices(devices)
    if not parallel and strategy not in (None, "auto"):
        raise ValueError(f"this training is in one process, got strategy={strategy!r}; leave it out")
    if not parallel and n > 1:
        raise ValueError(f"this training is on one device, got devices={devices!r}; pass one, such as devices=[0]")
    if strategy not in (None, "auto", *PARALLEL):
        raise ValueError(
            f"strategy={strategy!r} is none of {', '.join(map(repr, PARALLEL))}, which train in processes that keep the model: put the "
            'training into a script and pass strategy="ddp"'
        )
    if strategy not in PARALLEL:
        if n > 1 or arguments.get("num_nodes") not in (None, 1):
            raise ValueError(
                f'several processes need strategy="ddp" as well, got devices={devices!r}; or pass one device, such as devices=[0]'
            )
        return 1
    if devices in (None, "auto"):
        raise ValueError(f"strategy={strategy!r} needs the number of devices, such as devices=2")
    if hasattr(sys, "ps1") or not hasattr(sys.modules["__main__"], "__file__"):
        raise ValueError(
            f"strategy={strategy!r} runs the script once for each process, and there is none here: put the training into a file, and run "
            "it with python"
        )
    n_nodes = 1 if arguments.get("num_nodes") is None else arguments["num_nodes"]
    if not isinstance(n_nodes, int) or n_nodes < 1:
        raise ValueError(f"num_nodes must be a whole number of at least 1, got {n_nodes!r}")
    return n * n_nodes


def in_processes(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of `train` ask for several processes."""
    return arguments.get("strategy") in PARALLEL


def _n_devices(devices: Any) -> int:
    """Number of devices that a trainer would take."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([one for one in devices.split(",") if one.strip()])
    if devices in (-1, "-1"):
        return max(1, torch.cuda.device_count())
    return int(devices) if str(devices).isdecimal() else 1


def for_several(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a trainer for several processes, from those that `train` was given."""
    unused = arguments["strategy"].endswith("_true")
    return {
        **arguments,
        # buffers are the same from the start, and no step changes them
        "strategy": DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False),
        "use_distributed_sampler": False,
        # losses are in the curves; scvi-tools' own logger would write into the working directory
        "logger": arguments.get("logger") or False,
    }


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def share(module: torch.nn.Module, strategy: Strategy) -> None:
    """Give all processes the parameters and buffers that the first one has."""
    state = module.state_dict()
    first = strategy.broadcast({name: value.cpu() for name, value in state.items()})
    for name, value in state.items():
        value.copy_(first[name])


class Together(Callback):
    """Let all processes begin with the same weights, and draw random numbers of their own from then on.

    Comes before the callback that averages weights, which starts from them. `given` says what is trained on, and what is held
    out: where it differs between processes, training is refused (ValueError).
    """

    def __init__(self, given: Hashable):
        self.given = given

    def setup(self, trainer: Trainer, pl_module: StagePlan, stage: str) -> None:
        given: list[Hashable] = [None] * trainer.world_size
        distributed.all_gather_object(given, self.given)
        if len(set(given)) > 1:
            raise ValueError(
                "the processes were given different data, or hold out different ones: every one runs the whole script, so what is drawn "
                "at random in it needs a seed"
            )
        share(pl_module.module, trainer.strategy)

    def on_train_start(self, trainer: Trainer, pl_module: StagePlan) -> None:
        # what is hidden of one batch tells nothing about the next process's
        torch.manual_seed(int(torch.randint(2**31, ())) + trainer.global_rank)
