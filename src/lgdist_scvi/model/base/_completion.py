"""Writing a completed layer with its uncertainty, its skill and its provenance."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings
from tqdm.auto import tqdm

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import get_counts
from lgdist_scvi._checks import check_choice, check_new_key, check_positive_int, did_you_mean, list_names, mapping
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.inference import LEFT_MISSING, MEASURED, N_SAMPLES
from lgdist_scvi.metrics._skill import MIN_ENTRIES, skill_per_gene
from lgdist_scvi.model.base._blocks import Question, completed_block, n_filled
from lgdist_scvi.model.base._memory import check_fits
from lgdist_scvi.model.base._query import (
    Query,
    anndata_of,
    asked_about,
    check_interval,
    check_question,
    samples_for_spread,
)
from lgdist_scvi.model.base._record import completion_record
from lgdist_scvi.model.base._stream import complete_into
from lgdist_scvi.module.likelihood import Estimand

_SEVERAL = ("all", "skilled")
_SUFFIXES = ("", "_std", "_lower", "_upper", "_provenance")
_MISSING = {"skill": np.nan, "skilled": False}  # of genes that are not registered


class CompletionMixin:
    """Completion of an AnnData."""

    def complete(
        self,
        adata: AnnData | None = None,
        layer_added: str = "completed",
        level: float | None = 0.9,
        n_samples: int = N_SAMPLES,
        observed: Literal["keep", "model"] = "keep",
        fill: Literal["zeros", "masked"] = "zeros",
        genes: Literal["all", "skilled"] | Sequence[str] = "all",
        estimand: Estimand | None = None,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        store: str | os.PathLike | None = None,
        block_size: int | None = None,
        client: Any | None = None,
        silent: bool = False,
    ) -> None:
        """Write completed expression to a layer, or block by block into a store.

        Parameters
        ----------
        adata
            Data like those registered; ``None``: the registered data. `X` and all other layers stay as they are. Of data that are
            backed by a file the new layers live in memory; ``adata.write_h5ad`` keeps them, in another file.
        layer_added
            Name of the layer.
        level
            Level of the prediction intervals; ``None`` leaves them out.
        n_samples
            Latent samples for the standard deviation and the intervals; 0, with ``level=None``: neither, which is several times
            faster. The completed values are the posterior mean.
        genes
            Genes to complete: ``"all"`` registered ones; ``"skilled"``: those that the model predicts better than cheap
            baselines on entries set aside in training (:func:`lgdist_scvi.metrics.skill_per_gene`); or their names. The
            others keep their measured values, and 0 where nothing was measured.
        observed, fill, estimand, seed, n_steps, batch_size
            As in :meth:`get_completed_expression`.
        dtype
            Type of all values; ``"float16"`` has three digits, and halves the size.
        store
            Folder of a zarr store that takes the layers instead of the data, for slides that memory does not hold: a new AnnData
            of the completed genes, with `obs`, `obsm`, `obsp` and `uns` of the data and without `X`; or an AnnData in zarr with the
            same spots and genes, to which the layers are added. It can be read when it is finished, and not before: until then all
            is in ``<store>.unfinished``, with a journal of finished blocks. Interrupted at any moment, the same call goes on where
            it stopped and gives the same bits.
        block_size
            Spots that are completed and written together, which are a chunk of the store; ``None``: 8,192 of 1,024 genes, more of
            fewer genes.
        client
            A :class:`dask.distributed.Client` whose workers complete the blocks; they must see the folder. ``None``: the active one,
            if there is one.
        silent
            Whether to hide the progress bar.

        Returns
        -------
        Nothing; writes

        - ``layers[layer_added]``: completed expression, log1p(CP10K);
        - ``layers[layer_added + "_std"]``: standard deviation of the filled entries, 0 elsewhere;
        - ``layers[layer_added + "_lower"]``, ``"_upper"``: prediction interval of the measured value;
        - ``layers[layer_added + "_provenance"]``, uint8: 0 measured, 1 filled zero, 2 filled missing entry, 3 measured value
          replaced by the model's (only with ``observed="model"``), 4 missing and not filled (only with `genes`);
        - ``var[layer_added + "_skill"]``, ``"_skilled"``: skill on set-aside entries of the training data, and whether there
          is any, as :func:`lgdist_scvi.metrics.skill_per_gene` gives them; NaN and False for genes that are not registered.
          A warning tells how many genes are completed without;
        - ``uns[layer_added]``: versions, arguments, seeds, hashes of data and weights, genes, the number of set-aside entries
          that calibrated the intervals and their coverage: what it takes to judge and to repeat (:meth:`repeat_completion`).

        Genes that are not registered keep their measured values. Nothing is written if anything fails.

        Raises
        ------
        ValueError
            If the model is not trained, an argument is out of range, the data are a view of a file, a layer that no completion wrote
            has one of the names, or the store holds or was begun with something else.
        KeyError
            If a gene is not registered.
        MemoryError
            If there is no store, and the layers take more than half of the free memory.
        OSError
            If the store cannot be written; what is finished is kept.
        RuntimeError
            If another call completes into the store at the same time.
        ImportError
            If the group `scale` of optional dependencies, which a store needs, is not installed.
        """
        with_std = not (n_samples == 0 and level is None)
        check_question(n_samples if with_std else 1, observed, fill)
        check_choice("dtype", dtype, ("float32", "float16"))
        if level is not None:
            check_interval(level, n_samples)
        if block_size is not None:
            check_positive_int(block_size, "block_size")
        if store is None and (client is not None or block_size is not None):
            raise ValueError("client and block_size are of a store: name one, complete(store=...)")
        target = anndata_of(self, asked_about(self, adata))
        if store is None:
            check_target(target, layer_added)
        else:
            check_new_key(layer_added, "layer_added")
        skill = skill_per_gene(self, estimand)
        query = Query(
            self, adata, estimand=estimand, seed=seed, batch_size=batch_size, silent=silent, n_steps=n_steps,
            n_samples=samples_for_spread(n_samples), gene_list=_named(genes, skill.index),
        )  # fmt: skip
        chosen = _chosen(genes, query, skill)
        arguments = {
            "level": level, "n_samples": n_samples, "observed": observed, "fill": fill, "estimand": query.estimand,
            "genes": genes if isinstance(genes, str) else list(chosen), "seed": query.seed, "n_steps": n_steps,
            "batch_size": batch_size, "dtype": dtype,
        }  # fmt: skip
        columns = {f"{layer_added}_{name}": skill[name] for name in ("skill", "skilled")}
        # a store holds the completed genes alone, in the order of the data
        query.choose(chosen if store is None else target.var_names[target.var_names.isin(chosen)])
        question = Question(query, level, observed, fill, dtype, with_std)
        if store is not None:
            if not len(chosen):
                raise ValueError(
                    "no gene shows clear skill, so that the store would be empty; name the genes to complete"
                )
            record = completion_record(self, query, arguments)
            filled = complete_into(store, question, layer_added, record, columns, arguments, block_size, client, silent)
        else:
            size = sum(kind.itemsize for kind in question.dtypes.values())
            check_fits(target.shape, size * int(np.prod(target.shape)), "pp.select_genes chooses genes")
            with tqdm(total=len(query.rows), desc="Spots", unit=" spots", disable=silent, leave=False) as progress:
                layers = completed_block(question, query.rows, progress.update)
            filled = n_filled(layers)
            layers = _among_all_genes(query, layers)
            record = completion_record(self, query, arguments)
            for suffix in _SUFFIXES:
                target.layers.pop(layer_added + suffix, None)  # of an earlier completion
            for suffix, block in layers.items():
                target.layers[layer_added + suffix] = block
            for name, values in columns.items():
                target.var[name] = values.reindex(target.var_names, fill_value=_MISSING[name.rsplit("_", 1)[1]])
            target.uns[layer_added] = record
        _warn_of_no_skill(skill.loc[chosen], layer_added, could_keep=observed == "keep")
        if len(chosen) and not filled:
            warnings.warn(
                f"Nothing was filled: of the genes chosen, fill={fill!r} names no entry. Zeros are filled with "
                'fill="zeros"; missing entries are those that a mask_layer registered at setup_anndata names.',
                stacklevel=settings.warnings_stacklevel,
            )


def _named(genes: str | Sequence[str], registered: pd.Index) -> Sequence[str] | None:
    """Genes that are asked for by names; ``None`` if by a word for several; KeyError if a word is neither."""
    if not isinstance(genes, str):
        return genes
    if genes in _SEVERAL:
        return None
    if genes not in registered:
        raise KeyError(
            f'genes={genes!r} is neither "all" nor "skilled", nor a gene registered with the model; '
            f"{did_you_mean([genes], [*_SEVERAL, *registered])}available: {list_names(registered)}"
        )
    return [genes]


def _chosen(genes: str | Sequence[str], query: Query, skill: pd.DataFrame) -> np.ndarray:
    """Names of the genes to complete, in the order of registration."""
    if isinstance(genes, str) and genes in _SEVERAL:
        return skill.index[skill["skilled"] | (genes == "all")].to_numpy()
    if not len(query.positions):
        raise ValueError('genes is empty; pass names of genes, "skilled" or "all"')
    return skill.index[np.unique(query.positions)].to_numpy()


def _among_all_genes(query: Query, layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put completed genes in their places among all genes of the data; the others keep what was measured."""
    adata, dataset = query.adata, query.dataset
    positions = adata.var_names.get_indexer(query.genes)
    if adata.n_vars == len(positions):
        in_order = np.array_equal(positions, np.arange(len(positions)))
        return layers if in_order else {suffix: block[:, np.argsort(positions)] for suffix, block in layers.items()}
    layer = dataset.adata_manager.data_registry[keys.COUNTS].attr_key
    measured = log1p_cp10k(get_counts(adata, layer), dataset.library)
    missing = np.zeros(adata.shape, dtype=bool)
    left = np.setdiff1d(np.arange(len(dataset.genes)), query.positions)
    columns = adata.var_names.get_indexer(dataset.genes[left])
    for spots in dataset.blocks():
        missing[spots[:, None], columns] = dataset.rows(spots)[1][:, left] == 0
    # what a mask hides is not known, whatever the counts say
    measured[missing] = 0
    for suffix, block in layers.items():
        if suffix == "_provenance":
            out = np.where(missing, np.uint8(LEFT_MISSING), np.uint8(MEASURED))
        else:
            out = np.zeros(measured.shape, block.dtype) if suffix == "_std" else measured.astype(block.dtype)
        out[:, positions] = block
        layers[suffix] = out
    return layers


def check_target(adata: AnnData, layer_added: str) -> None:
    """Refuse data that layers cannot be added to, and to write over anything but an earlier completion."""
    if adata.isbacked and adata.is_view:  # else they are in memory until the data are written
        raise ValueError(
            "layers cannot be added to a part of an AnnData that is backed by a file; call to_memory() on it first"
        )
    check_new_key(layer_added, "layer_added")
    record = adata.uns.get(layer_added)
    if "provenance" in mapping(record):
        return
    names = [layer_added + suffix for suffix in _SUFFIXES]
    taken = [f"adata.layers[{name!r}]" for name in names if name in adata.layers]
    columns = [f"{layer_added}_{what}" for what in ("skill", "skilled")]
    taken += [f"adata.var[{name!r}]" for name in columns if name in adata.var]
    taken += [f"adata.uns[{layer_added!r}]"] * (record is not None)
    if taken:
        raise ValueError(f"{', '.join(taken)} would be written over; choose another layer_added, or delete it first")


def _warn_of_no_skill(skill: pd.DataFrame, layer_added: str, could_keep: bool) -> None:
    """Say how many genes have no clear skill; `could_keep`: measured values could be left in their place."""
    n_unskilled = int((~skill["skilled"]).sum())
    if not len(skill):
        warnings.warn(
            "No gene shows clear skill over cheap baselines on entries set aside in training, so that nothing was completed; train "
            "longer, or name the genes to complete.",
            stacklevel=settings.warnings_stacklevel + 1,
        )
    if n_unskilled:
        n_few = int((skill["n"] < MIN_ENTRIES).sum())
        few = f", {n_few:,} of them with fewer than {MIN_ENTRIES} such entries to tell" if n_few else ""
        warnings.warn(
            f"{n_unskilled:,} of {len(skill):,} completed genes show no clear skill over cheap baselines on entries set aside in "
            f"training{few}; adata.var['{layer_added}_skilled'] names the others"
            + (', and complete(genes="skilled") leaves these as measured.' if could_keep else "; rely on those alone."),
            stacklevel=settings.warnings_stacklevel + 1,
        )
