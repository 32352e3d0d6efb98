"""A zarr store that completed layers are written into block by block, and that is whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings

from lgdist_scvi._anndata import get_obs, get_var, in_memory
from lgdist_scvi.model.base._record import to_json

_FORMAT = 1  # of the store and its journal
_LOCK, _N_ATTEMPTS = "lock", 20
_BEGUN = ("store.zarr", "beside.zarr", "journal.new", _LOCK)  # of a call that was killed before its first line
_IDENTITY = "completion"  # attribute of a layer: what it is a completion of
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_MAPPING = {"encoding-type": "dict", "encoding-version": "0.1.0"}
_ROOT = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


class LayerStore:
    """Layers of a store in the making.

    They are written beside the store, into ``<store>.unfinished/store.zarr``, in chunks of `block_size` spots and all
    genes. A line of ``<store>.unfinished/journal.jsonl`` names every block that is written and closed; its first line
    says what is completed, so that nothing else goes on from there. When all blocks are there the layers are moved to
    where they are read. Whoever writes does so :meth:`alone`.

    Parameters
    ----------
    path
        Folder of the store: a new one, or an AnnData with the same spots and genes, to which layers are added.
    layers
        Types of the layers by their names.
    identity
        What is completed, and how: values that can be written down.
    spots, genes
        Names.
    beside
        What else is written of a completion, ``"uns/completed"``: an AnnData to which layers are added may not hold it.
    block_size
        Spots in a block.

    Raises ValueError if the store holds something else already, or was begun with something else, and ImportError
    without zarr.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        layers: Mapping[str, np.dtype],
        identity: Mapping[str, Any],
        spots: np.ndarray,
        genes: np.ndarray,
        beside: Sequence[str],
        block_size: int,
    ):
        self.path = Path(path)
        self.work = self.path.with_name(f"{self.path.name}.unfinished")
        self.root, self.journal = self.work / "store.zarr", self.work / "journal.jsonl"
        self.layers, self.block_size = dict(layers), block_size
        self.spots, self.genes, self.beside = np.asarray(spots), np.asarray(genes), beside
        names = {"spots": _hash(self.spots), "genes": _hash(self.genes)}
        self.identity = json.loads(to_json({"store": _FORMAT, **identity, **names, "block_size": block_size}))
        self.filled: dict[int, int] = {}  # number of filled entries by number of finished block
        self._look()

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.spots) // self.block_size)

    def rows(self, number: int) -> np.ndarray:
        """Rows of the spots of a block."""
        return np.arange(number * self.block_size, min((number + 1) * self.block_size, len(self.spots)))

    @property
    def left(self) -> list[int]:
        """Numbers of the blocks that are not finished."""
        return [number for number in range(self.n_blocks) if number not in self.filled]

    # ---- beginning

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Look again, and write while no other call does (RuntimeError): the lock ends with this process, however it ends."""
        file = self.work / _LOCK
        with self.told():
            lock = _locked(file)
        try:
            self._look()
            yield
        finally:
            with suppress(PermissionError):  # Windows removes no file that is open
                file.unlink(missing_ok=True)
            lock.close()
            with suppress(OSError):
                self.work.rmdir()  # if nothing is left in it

    def _look(self) -> None:
        """See what is there, and refuse what is something else."""
        zarr = import_zarr()
        self.is_finished = False  # whether all layers are where they are read
        self.adds_to: int | None = None  # format of the store that layers are added to; None: a new one
        if not self.path.exists():
            return
        try:
            group = zarr.open_group(self.path, mode="r")
            obs, var = (group[name][group[name].attrs["_index"]][:] for name in ("obs", "var"))
        except (KeyError, OSError, ValueError) as error:
            tables = sorted(path.name for path in (self.path / "tables").glob("*/"))
            remedy = f"name a table of it, {self.path / 'tables' / tables[0]}" if tables else "name another store"
            raise ValueError(f"{self.path} exists, and is no AnnData in zarr; {remedy}") from error
        layers = group["layers"] if "layers" in group else {}
        taken = [name for name in self.layers if name in layers]
        for name in taken:
            known = dict(layers[name].attrs).get(_IDENTITY)
            if known != self.identity:
                of = f", {_difference(known, self.identity)}" if known else ""
                raise ValueError(
                    f"{self.path} holds layers[{name!r}] already{of}; name another store or layer_added, or delete it first"
                )
        if len(taken) < len(self.layers) and (_hash(obs), _hash(var)) != (_hash(self.spots), _hash(self.genes)):
            raise ValueError(
                f"{self.path} exists, with other spots or genes than those to complete ({len(obs):,} x {len(var):,}, not "
                f"{len(self.spots):,} x {len(self.genes):,}); name another store"
            )
        if not taken and not self.journal.exists() and (known := [name for name in self.beside if name in group]):
            raise ValueError(
                f"{self.path} holds {', '.join(known)} already, which would be written over; choose another layer_added, or delete it"
            )
        # else it may have been killed before it said what the layers are
        self.is_finished = len(taken) == len(self.layers) and not self.journal.exists()
        self.adds_to = group.metadata.zarr_format

    def begin(self, adata: AnnData, columns: Mapping[str, pd.Series], record: tuple[str, Mapping[str, Any]]) -> None:
        """Make room for the layers, with what of `adata` belongs to them, or go on where an earlier call stopped.

        `columns` of `var` are told by the names of genes; `record` is the key and the value of what is written to `uns`.
        """
        with self.told():
            if not self.journal.exists():
                self._create(adata, columns, record)
            lines = self.journal.read_bytes().split(b"\n")
            if lines[-1]:  # a line that was being written
                with open(self.journal, "r+b") as file:
                    file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        header, *finished = map(json.loads, lines[:-1])
        if header != self.identity:
            raise ValueError(
                f"{self.work} was begun {_difference(header, self.identity)}; ask the same again to go on, or delete it to begin anew"
            )
        self.filled = {line["block"]: line["filled"] for line in finished}

    def _create(self, adata: AnnData, columns: Mapping[str, pd.Series], record: tuple[str, Mapping[str, Any]]) -> None:
        zarr = import_zarr()
        left = [part for part in self.work.iterdir() if part.name not in _BEGUN]
        if left:
            raise ValueError(f"{self.work} holds what no completion wrote ({left[0].name}); move it away")
        self.tidy_up()
        root = zarr.open_group(self.root, mode="w", zarr_format=self.adds_to or 3)
        layers = root.create_group("layers", attributes=_MAPPING)
        for name, dtype in self.layers.items():
            layers.create_array(
                name,
                shape=(len(self.spots), len(self.genes)),
                chunks=(min(self.block_size, len(self.spots)), len(self.genes)),
                dtype=dtype,
                attributes={**_ARRAY, _IDENTITY: self.identity},
            )
        if self.adds_to is None:
            self._annotate(adata, columns, record)
        begun = self.journal.with_suffix(".new")
        _write_synced(begun, _line(self.identity), "wb")
        begun.rename(self.journal)

    # ---- blocks

    def finish_block(self, number: int, n_filled: int) -> None:
        """Note that a block is written and closed."""
        _write_synced(self.journal, _line({"block": number, "filled": n_filled}), "ab")
        self.filled[number] = n_filled

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say what a full disk, or a folder that cannot be written, means for what is done."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.work} cannot be written ({error.strerror or error}); {len(self.filled):,} of {self.n_blocks:,} blocks are "
                "finished and kept: make room or give access, and ask the same again to go on",
            ) from error

    # ---- the end

    def finish(self, columns: Mapping[str, pd.Series], record: tuple[str, Mapping[str, Any]]) -> None:
        """Move the layers to where they are read; an AnnData that was there gets `columns` and `record`, as in :meth:`begin`."""
        with self.told():
            for part in self.root.rglob("*.partial"):  # of writers that were killed
                part.unlink()
            if self.adds_to is None:
                self._complete()
                self.root.rename(self.path)
            else:
                self._add(columns, record)
            self.tidy_up()

    def tidy_up(self) -> None:
        """Remove what belongs to layers in the making."""
        for part in [part for part in self.work.iterdir() if part.name != _LOCK]:
            shutil.rmtree(part) if part.is_dir() else part.unlink()

    def _annotate(
        self, adata: AnnData, columns: Mapping[str, pd.Series], record: tuple[str, Mapping[str, Any]]
    ) -> None:
        """Write what makes an AnnData of the layers, but `X`, apart from them: until they are whole nothing reads them as one."""
        beside = import_zarr().open_group(self.work / "beside.zarr", mode="w", zarr_format=3)
        elements = {
            "obs": get_obs(adata),
            "var": get_var(adata).loc[self.genes].assign(**_of_genes(columns, self.genes)),
            "obsm": {key: in_memory(value) for key, value in adata.obsm.items()},
            "obsp": {key: in_memory(value) for key, value in adata.obsp.items()},
            "varm": {},
            "varp": {},
            "uns": {**adata.uns, record[0]: record[1]},
        }
        for name, element in elements.items():
            _write(beside, name, element)

    def _complete(self) -> None:
        """Make an AnnData of the finished layers and what was written apart from them."""
        for part in [path for path in (self.work / "beside.zarr").iterdir() if path.is_dir()]:
            part.rename(self.root / part.name)
        zarr = import_zarr()
        root = zarr.open_group(self.root, mode="r+")
        root.attrs.update(_ROOT)
        _consolidate(zarr, root)

    def _add(self, columns: Mapping[str, pd.Series], record: tuple[str, Mapping[str, Any]]) -> None:
        """Add what is said of the layers to a store, each part on its own so that the rest is never in doubt, and then the layers."""
        zarr = import_zarr()
        root = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        if "layers" not in root:
            root.create_group("layers", attributes=_MAPPING)
        var = root["var"]
        for name, values in _of_genes(columns, self.genes).items():
            _write(var, name, values.to_numpy())
        var.attrs["column-order"] = list(dict.fromkeys([*var.attrs["column-order"], *columns]))
        _write(root, f"uns/{record[0]}", record[1])
        for name in self.layers:
            source, place = self.root / "layers" / name, self.path / "layers" / name
            if source.exists():  # else it was moved before
                source.rename(place)
        _consolidate(zarr, root)


def _of_genes(columns: Mapping[str, pd.Series], genes: np.ndarray) -> dict[str, pd.Series]:
    return {name: values.reindex(genes) for name, values in columns.items()}


def write_block(root: Path, rows: np.ndarray, layers: Mapping[str, np.ndarray]) -> None:
    """Write a block of layers, by their names, and see it on the disk."""
    zarr = import_zarr()
    group = zarr.open_group(root, mode="r+")["layers"]
    for name, block in layers.items():
        array = group[name]
        array[rows[0] : rows[-1] + 1] = block
        chunk = root / "layers" / name / array.metadata.encode_chunk_key((rows[0] // array.chunks[0], 0))
        if chunk.exists():  # else it is all zeros
            with open(chunk, "rb") as file:
                os.fsync(file.fileno())


def _locked(file: Path) -> IO[str]:
    """A file that this call alone has locked, until it is closed; RuntimeError if another call has."""
    for attempt in range(_N_ATTEMPTS):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(file, "a+")
        except FileNotFoundError:  # the folder was removed by a call that has just ended
            if attempt == _N_ATTEMPTS - 1:
                raise
            continue
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with lock:
                lock.seek(0)
                raise RuntimeError(
                    f"another call completes into {file.parent} now ({lock.read()}); wait for its end, or name another store"
                ) from error
        except (ImportError, OSError) as error:  # Windows, some network file systems
            warnings.warn(
                f"{file} cannot be locked ({error}): begin no other completion into the same store",
                stacklevel=settings.warnings_stacklevel,
            )
        with suppress(FileNotFoundError):  # of a call that has just ended, and removed it
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(file)):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {platform.node()}")
                lock.flush()
                return lock
        lock.close()
    raise OSError(f"{file} is another file whenever it is looked at")


def import_zarr() -> Any:
    """Import zarr; ImportError that says how to get it."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError('complete(store=...) needs zarr: pip install "lgdist-scvi[scale]"') from error
    return zarr


def _write(group: Any, name: str, element: Any) -> None:
    from anndata._io.specs.registry import IORegistryError  # noqa: PLC2701  it has no public name
    from anndata.io import write_elem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how zarr will write text one day
        try:
            write_elem(group, name, element)
        except (IORegistryError, TypeError) as error:
            raise ValueError(
                f"adata.{name} holds what zarr cannot ({str(error).splitlines()[0]}); delete it"
            ) from error


def _consolidate(zarr: Any, group: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not part of version 3 yet; anndata writes it too
        zarr.consolidate_metadata(group.store)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _write_synced(path: Path, line: bytes, mode: str) -> None:
    with open(path, mode) as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _hash(names: np.ndarray) -> str:
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, for people."""
    told = []
    for name in sorted({*before, *now}):
        first, second = before.get(name), now.get(name)
        if first != second:
            short = max(len(str(first)), len(str(second))) <= 30
            told.append(f"{name} ({first}, now {second})" if short else name)
    return f"with other {', '.join(told)}"
