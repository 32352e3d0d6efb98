"""Tasks on the workers of a Dask cluster, each of which reads the model and the data once."""

from __future__ import annotations

import ctypes
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager

# of glibc's malloc.h; 32 MiB is the most that it takes for the latter
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 2**29, 2**25  # bytes


def active_client() -> Any | None:
    """The active client of this process, if it has one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


class Cluster:
    """The workers of a client, which see a folder that this process sees.

    `client` is a :class:`dask.distributed.Client`; what they work on is sent by way of `folder`.
    """

    def __init__(self, client: Any, folder: Path):
        if not (hasattr(client, "submit") and hasattr(client, "scheduler_info")):
            raise TypeError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
        self.client, self.file = client, folder.absolute() / "question.pickle"

    def send(self, thing: Any) -> None:
        """Send what the tasks of this cluster work on, without the AnnData that it was read from."""
        with open(self.file, "wb") as file:
            try:
                _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
            except TypeError as error:
                raise TypeError(
                    f"the data cannot be sent to workers ({error}); of an .h5ad file, write a zarr store once and read that: "
                    "adata.to_memory().write_zarr(...), ad.experimental.read_lazy(...)"
                ) from error

    def each(self, task: Callable[..., Any], given: Mapping[int, Any], *shared: Any) -> Iterator[tuple[int, Any]]:
        """Numbers and answers as they come, of ``task(thing, given[number], *shared)``; what a lost worker did is done again."""
        from distributed import as_completed

        # one after the other on the same worker, which keeps what they share; whoever is idle takes over
        workers, futures = list(self.client.nthreads()) or [None], {}
        for worker, numbers in zip(workers, np.array_split(list(given), len(workers)), strict=True):
            where = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
            for number in numbers.tolist():
                sent = task, self._sent, given[number], *shared
                futures[self.client.submit(_run, *sent, pure=False, **where)] = number
        try:
            for future, answer in as_completed(futures, with_results=True):
                yield futures[future], answer
        finally:
            self.client.cancel(list(futures))

    def in_order(self, task: Callable[..., Any], given: Sequence[Any]) -> Iterator[Any]:
        """Answers of ``task(thing, each)`` in the order of `given`."""
        futures = [self.client.submit(_run, task, self._sent, value, pure=False) for value in given]
        try:
            for future in futures:
                yield future.result()
        finally:
            self.client.cancel(futures)

    @property
    def _sent(self) -> tuple[Path, int]:
        return self.file, self.file.stat().st_mtime_ns


class _Pickler(pickle.Pickler):
    """Leaves out the AnnData: what is read of it is in the data set."""

    def persistent_id(self, thing: Any) -> str | None:
        return "left out" if isinstance(thing, AnnData | MuData | AnnDataManager) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, _: str) -> None:
        return None


@lru_cache(maxsize=1)
def _received(file: Path, _written: int) -> Any:
    _keep_freed_memory()
    with open(file, "rb") as opened:
        return _Unpickler(opened).load()


def _run(task: Callable[..., Any], sent: tuple[Path, int], *given: Any) -> Any:
    return task(_received(*sent), *given)


def _keep_freed_memory() -> None:
    """Let this process use again what tensors leave, instead of asking the system for it anew.

    Dask starts workers so that they give all of it back at once (``MALLOC_TRIM_THRESHOLD_``), and half of the time would go by
    in the system.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
