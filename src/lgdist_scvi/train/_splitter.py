"""Which spots are trained on, and which validate."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader, DataSplitter
from torch.utils.data import DataLoader, Sampler

from lgdist_scvi.train._arguments import REMEDIES, refuse_unknown

_N_VALIDATION_SPOTS = 512
_PER_EPOCH = 16_384  # spots; of more, each epoch draws so many
_RUN = 1024  # rows that follow each other, drawn together: rows of a patch know each other's neighbours
_OF_THE_LOADER = {"dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "collate_fn"}  # it sets these itself
_REMEDIES = REMEDIES | {
    "batch_size": "pass train(batch_size=...)",
    "shuffle": "batches are drawn anew in every epoch; leave it out",
}


class EntrySplitter(DataSplitter):
    """Trains on all spots but those set aside whole, and validates on set-aside entries of some of them.

    Spots that validate by name, if any, are not trained on at all.

    Parameters
    ----------
    adata_manager
        Manager with registered data.
    set_aside, validation_spots
        Rows of the spots that are set aside whole, and of those that are not trained on; ``None`` if all are.
    rows
        Numbers by which rows are named, of each spot of the manager's data: these may be some of more data. ``None`` if they
        are named by their places.
    n_obs
        Number of spots among which rows are named.
    seed
        Of the choice of validation spots.
    batch_size
        Spots per step, and process.
    n_processes
        Number of processes that train together.
    datasplitter_kwargs
        For :class:`torch.utils.data.DataLoader`; and `external_indexing`, one to three arrays instead of
        `validation_spots`: rows that train, rows that validate (if none, those that train), and rows that do neither.

    Raises TypeError if a keyword is unknown, or would be ignored; ValueError if rows are not in the data, or train and
    validate at once, or none are left to train on.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        set_aside: np.ndarray,
        validation_spots: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        n_obs: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        n_processes: int = 1,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
    ):
        kwargs = dict(datasplitter_kwargs or {})
        allowed = {"external_indexing", *inspect.signature(DataLoader).parameters} - _OF_THE_LOADER
        refuse_unknown(kwargs, allowed, "datasplitter_kwargs", _REMEDIES)
        external_indexing = kwargs.pop("external_indexing", None)
        n_here = adata_manager.adata.n_obs
        rows = np.arange(n_here) if rows is None else rows
        spots = np.setdiff1d(np.arange(n_here), set_aside)
        if external_indexing is not None:
            if validation_spots is not None:
                raise ValueError(
                    "spots that validate are named twice: leave out external_indexing or validation_samples"
                )
            train, validation = _external(external_indexing, n_obs or n_here)
            train, candidates = (spots[np.isin(rows[spots], named)] for named in (train, validation))
            if not len(validation):
                candidates = train
            elif not len(candidates):
                raise ValueError("external_indexing: all rows that validate are set aside for calibration; name more")
        elif validation_spots is not None:
            candidates = spots[np.isin(rows[spots], validation_spots)]
            train = np.setdiff1d(spots, candidates)
        else:
            train = candidates = spots
        if len(train) < (batch_size if kwargs.get("drop_last") else 1) * n_processes:
            raise ValueError(f"{len(train):,} spots are left to train on, too few for a batch")
        super().__init__(adata_manager, train_size=1.0, batch_size=batch_size, **kwargs)
        chosen = np.random.default_rng(seed).permutation(candidates)[:_N_VALIDATION_SPOTS]
        self.train_idx, self.val_idx = train, np.sort(chosen)
        self.test_idx = np.array([], dtype=int)
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.seed, self.n_loaders = seed, 0
        self.part, self.n_parts = 0, 1  # this process's of the batches

    def setup(self, stage: str | None = None) -> None:
        """Give this process a part of every batch, while several train; the split itself is made on construction."""
        if self.trainer is not None:
            self.part, self.n_parts = self.trainer.global_rank, self.trainer.world_size

    def teardown(self, stage: str | None = None) -> None:
        """Give this process all batches: what goes before a stage and follows it looks at all of them."""
        self.trainer, self.part, self.n_parts = None, 0, 1

    @property
    def fingerprint(self) -> str:
        """Hash of what trains and what validates."""
        digest = hashlib.sha256(repr((self.seed, self.n_train, self.n_val)).encode())
        for rows in (self.train_idx, self.val_idx):
            digest.update(np.ascontiguousarray(rows, dtype=np.int64))
        return digest.hexdigest()

    @property
    def n_per_epoch(self) -> int:
        """Number of spots of an epoch."""
        return min(self.n_train, _PER_EPOCH)

    def train_dataloader(self) -> AnnDataLoader:
        """Batches of all spots, or of as many as an epoch has at most, in random order; of several processes, a part of each."""
        loader = super().train_dataloader()
        if self.n_parts > 1:
            # all processes draw the same, and take a part each; every one holds all data, and so the neighbours of its spots
            generator = torch.Generator().manual_seed(self.seed + self.n_loaders)
            self.n_loaders += 1  # another stage draws other batches
            loader.sampler.sampler = _SomeRuns(self.n_train, self.n_per_epoch, self.part, self.n_parts, generator)
        elif self.n_train > _PER_EPOCH:
            loader.sampler.sampler = _SomeRuns(self.n_train, _PER_EPOCH)
        return loader

    def val_dataloader(self) -> AnnDataLoader:
        """Batches of the spots that validate; of several processes, an equal part of them."""
        n = self.n_val // self.n_parts
        spots = self.val_idx[self.part * n : (self.part + 1) * n] if n else self.val_idx
        return self.data_loader_cls(
            self.adata_manager, indices=spots, pin_memory=self.pin_memory, **self.data_loader_kwargs
        )


class _SomeRuns(Sampler):
    """Places in random order, of runs that are drawn anew every time; of several parts, one."""

    def __init__(
        self, n_places: int, n: int, part: int = 0, n_parts: int = 1, generator: torch.Generator | None = None
    ):
        self.n_places, self.n, self.part, self.n_parts, self.generator = n_places, n, part, n_parts, generator

    def __len__(self) -> int:
        return self.n // self.n_parts

    def __iter__(self) -> Iterator[int]:
        # as scvi-tools' sampler draws them: from the global generator, if no other is given
        runs = torch.arange(self.n_places).split(_RUN)
        drawn = torch.cat([runs[run] for run in torch.randperm(len(runs), generator=self.generator).tolist()])[: self.n]
        shuffled = drawn[torch.randperm(len(drawn), generator=self.generator)]
        yield from shuffled[self.part :: self.n_parts][: len(self)].tolist()


def _external(given: Sequence[Any], n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that train and rows that validate, as the user named them."""
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= 3:
        raise ValueError(
            "external_indexing must be a list of rows: [train], [train, validation] or [train, validation, test]"
        )
    parts = [_rows(part, n_obs) for part in given]
    named = zip(parts, ("train", "validate", "are left out"), strict=False)
    for (one, does), (other, too) in combinations(named, 2):
        if n_common := len(np.intersect1d(one, other)):
            raise ValueError(f"external_indexing: {n_common:,} rows both {does} and {too}; name each once")
    if not len(parts[0]):
        raise ValueError("external_indexing names no rows to train on")
    return parts[0], parts[1] if len(parts) > 1 else np.array([], dtype=int)


def _rows(part: Any, n_obs: int) -> np.ndarray:
    """Rows as whole numbers, from numbers or a mask."""
    rows = np.asarray([] if part is None else part)
    if rows.dtype.kind == "b" and rows.shape == (n_obs,):
        return np.flatnonzero(rows)
    if rows.size == 0:
        return np.array([], dtype=int)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n_obs:
        raise ValueError(f"external_indexing must hold row numbers from 0 to {n_obs - 1:,}, or masks of {n_obs:,} rows")
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"external_indexing: {len(rows) - len(np.unique(rows)):,} rows are named more than once")
    return rows
