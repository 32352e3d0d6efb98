"""Writing a completed layer with its uncertainty, its skill and its provenance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import get_counts
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.metrics._skill import MIN_ENTRIES, skill_per_gene
from lgdist_scvi.model._arguments import check_interval, check_question, seed_or_default
from lgdist_scvi.model._batches import N_SAMPLES, Estimand, samples_for_spread
from lgdist_scvi.model._record import RecordMixin
from lgdist_scvi.model._skill import SkillMixin

if TYPE_CHECKING:
    from anndata import AnnData

_SUFFIXES = ("", "_std", "_lower", "_upper", "_provenance")
MEASURED, FILLED_ZERO, FILLED_MISSING, REPLACED, LEFT_MISSING = 0, 1, 2, 3, 4


class CompletionMixin(SkillMixin, RecordMixin):
    """Completion of an AnnData by :class:`~lgdist_scvi.LGDiST`."""

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
        silent: bool = False,
    ) -> None:
        """Write completed expression to a layer.

        Parameters
        ----------
        adata
            Data like those registered; ``None``: the registered data. `X` and all other layers stay as they are.
        layer_added
            Name of the layer.
        level
            Level of the prediction intervals; ``None`` leaves them out.
        n_samples
            Latent samples for the standard deviation and the intervals. The completed values are the posterior mean.
        genes
            Genes to complete: ``"all"`` registered ones; ``"skilled"``: those that the model predicts better than cheap
            baselines on entries set aside in training (:func:`lgdist_scvi.metrics.skill_per_gene`); or their names. The
            others keep their measured values, and 0 where nothing was measured.
        observed, fill, estimand, seed, n_steps, batch_size
            As in :meth:`get_completed_expression`.
        silent
            Whether to hide the progress bar.

        Returns
        -------
        Nothing; writes

        - ``layers[layer_added]``: completed expression, log1p(CP10K), float32;
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
            If the model is not trained, an argument is out of range, the data are backed by a file, or a layer that no
            completion wrote has one of the names.
        KeyError
            If a gene is not registered.
        """
        check_question(n_samples, observed, fill)
        if level is not None:
            check_interval(level, n_samples)
        target = self._asked(adata)
        if target.isbacked:
            raise ValueError(
                "layers cannot be added to an AnnData that is backed by a file; call adata.to_memory() first"
            )
        _check_target(target, layer_added)
        estimand, seed = self._estimand(estimand), seed_or_default(seed)
        skill = skill_per_gene(self, estimand)
        adata = self._prepare(adata)
        chosen = self._chosen(genes, skill)
        arguments = {
            "level": level, "n_samples": n_samples, "observed": observed, "fill": fill, "estimand": estimand,
            "genes": genes if isinstance(genes, str) else list(chosen), "seed": seed, "n_steps": n_steps,
            "batch_size": batch_size,
        }  # fmt: skip
        asked = {key: value for key, value in arguments.items() if key != "genes"}
        layers = self._completed(adata, chosen, silent, **asked)
        layers["_provenance"] = provenance = self._provenance(adata, observed, fill, chosen)

        positions = adata.var_names.get_indexer(chosen)
        if adata.n_vars > len(positions):
            others = self._others(adata, chosen)
            layers = {suffix: _spread_columns(suffix, block, positions, *others) for suffix, block in layers.items()}
        elif not np.array_equal(positions, np.arange(len(positions))):
            layers = {suffix: block[:, np.argsort(positions)] for suffix, block in layers.items()}
        record = self._record(adata, arguments, chosen)
        for suffix in _SUFFIXES:
            target.layers.pop(layer_added + suffix, None)  # of an earlier completion
        for suffix, block in layers.items():
            target.layers[layer_added + suffix] = block
        for column, missing in (("skill", np.nan), ("skilled", False)):
            target.var[f"{layer_added}_{column}"] = skill[column].reindex(target.var_names, fill_value=missing)
        target.uns[layer_added] = record
        _warn_of_no_skill(skill.loc[chosen], layer_added)
        if len(chosen) and np.isin(provenance, (MEASURED, LEFT_MISSING)).all():
            warnings.warn(
                f"Nothing was filled: of the genes chosen, fill={fill!r} names no entry. Zeros are filled with "
                'fill="zeros"; missing entries are those that a mask_layer registered at setup_anndata names.',
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    @torch.inference_mode()
    def _completed(
        self,
        adata: AnnData,
        chosen: np.ndarray,
        silent: bool,
        level: float | None,
        n_samples: int,
        observed: str,
        fill: str,
        estimand: Estimand,
        seed: int,
        n_steps: int | None,
        batch_size: int | None,
    ) -> dict[str, np.ndarray]:
        """Values, and from one set of samples standard deviations and intervals, of the chosen genes, by suffix of their layers."""
        positions, _ = self._genes(chosen)
        suffixes = ("", "_std") if level is None else ("", "_std", "_lower", "_upper")
        layers = {suffix: np.empty((adata.n_obs, len(chosen)), dtype=np.float32) for suffix in suffixes}
        for place, tensors, library in self._batches(adata, np.arange(adata.n_obs), batch_size, silent):
            condition = self.module.condition(tensors)
            latents = self._latents(condition, tensors, samples_for_spread(n_samples), seed, n_steps)
            value = self._value(self.module.latent_mean(condition), condition, tensors, estimand)
            spreads = {
                what: self._spread(latents, condition, tensors, what)
                for what in ({estimand} if level is None else {estimand, self._modelled})
            }
            std = self._std(spreads[estimand], latents, condition, tensors, estimand)
            blocks = [block.cpu().numpy()[:, positions] for block in (value, std)]
            if level is not None:
                predictive = self._predictive(spreads[self._modelled], tensors, estimand)
                blocks += self._interval(predictive, tensors, estimand, level, positions)
            kept, measured = self._kept(tensors, library, observed, fill, positions)
            for suffix, block in zip(suffixes, blocks, strict=True):
                layers[suffix][place] = np.where(kept, 0.0 if suffix == "_std" else measured, block)
        return layers

    def _chosen(self, genes: str | Sequence[str], skill: pd.DataFrame) -> np.ndarray:
        """Names of the genes to complete, in the order of registration."""
        if isinstance(genes, str) and genes == "all":
            return skill.index.to_numpy()
        if isinstance(genes, str) and genes == "skilled":
            return skill.index[skill["skilled"]].to_numpy()
        positions, _ = self._genes(genes)
        if not len(positions):
            raise ValueError('genes is empty; pass names of genes, "skilled" or "all"')
        return skill.index[np.unique(positions)].to_numpy()

    def _provenance(self, adata: AnnData, observed: str, fill: str, chosen: np.ndarray) -> np.ndarray:
        """Where each value of the chosen genes comes from, uint8."""
        dataset = self.get_anndata_manager(adata, required=True).create_torch_dataset()
        positions, _ = self._genes(chosen)
        provenance = np.empty((len(dataset), len(positions)), dtype=np.uint8)
        for spots in dataset.blocks():
            counts, known = (block[:, positions] for block in dataset.rows(spots)[:2])
            kept = (known > 0) & ((counts > 0) | (fill == "masked"))
            filled = np.where(known > 0, FILLED_ZERO, FILLED_MISSING)
            if observed == "model":
                filled, kept = np.where((known > 0) & (counts > 0), REPLACED, filled), np.zeros_like(kept)
            provenance[spots] = np.where(kept, MEASURED, filled)
        return provenance

    def _others(self, adata: AnnData, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measured log1p(CP10K) of every gene of `adata`, and which entries of genes not chosen are missing."""
        manager = self.get_anndata_manager(adata, required=True)
        dataset = manager.create_torch_dataset()
        measured = log1p_cp10k(get_counts(adata, manager.data_registry[keys.COUNTS].attr_key), dataset.library)
        missing = np.zeros(adata.shape, dtype=bool)
        left, names = np.setdiff1d(np.arange(len(dataset.genes)), self._genes(chosen)[0]), dataset.genes
        columns = adata.var_names.get_indexer(names[left])
        for spots in dataset.blocks():
            missing[spots[:, None], columns] = dataset.rows(spots)[1][:, left] == 0
        # what a mask hides is not known, whatever the counts say
        measured[missing] = 0
        return measured, missing


def _check_target(adata: AnnData, layer_added: str) -> None:
    """Refuse to write over anything but an earlier completion."""
    if not isinstance(layer_added, str) or not layer_added:
        raise ValueError(f"layer_added must be the name of a layer, got {layer_added!r}")
    record = adata.uns.get(layer_added)
    if isinstance(record, Mapping) and "provenance" in record:
        return
    names = [layer_added + suffix for suffix in _SUFFIXES]
    taken = [f"adata.layers[{name!r}]" for name in names if name in adata.layers]
    columns = [f"{layer_added}_{what}" for what in ("skill", "skilled")]
    taken += [f"adata.var[{name!r}]" for name in columns if name in adata.var]
    taken += [f"adata.uns[{layer_added!r}]"] * (record is not None)
    if taken:
        raise ValueError(f"{', '.join(taken)} would be written over; choose another layer_added, or delete it first")


def _spread_columns(
    suffix: str, block: np.ndarray, positions: np.ndarray, measured: np.ndarray, missing: np.ndarray
) -> np.ndarray:
    """Put completed genes in their places among all genes of the data."""
    if suffix == "_provenance":
        out = np.where(missing, np.uint8(LEFT_MISSING), np.uint8(MEASURED))
    else:
        out = np.zeros_like(measured) if suffix == "_std" else measured.copy()
    out[:, positions] = block
    return out


def _warn_of_no_skill(skill: pd.DataFrame, layer_added: str) -> None:
    n_unskilled = int((~skill["skilled"]).sum())
    if not len(skill):
        warnings.warn(
            "No gene shows clear skill over cheap baselines on entries set aside in training, so that nothing was completed; train "
            "longer, or name the genes to complete.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel + 1,
        )
    if n_unskilled:
        n_few = int((skill["n"] < MIN_ENTRIES).sum())
        few = f", {n_few:,} of them with fewer than {MIN_ENTRIES} such entries to tell" if n_few else ""
        warnings.warn(
            f"{n_unskilled:,} of {len(skill):,} completed genes show no clear skill over cheap baselines on entries set aside in "
            f"training{few}; adata.var['{layer_added}_skilled'] names the others, and complete(genes=\"skilled\") leaves "
            "these as measured.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel + 1,
        )
