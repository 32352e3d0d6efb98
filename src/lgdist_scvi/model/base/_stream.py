"""Completing into a store, block by block: in this process or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lgdist_scvi.inference import EstimatedEffects, StreamedEvidence, spots_at_a_time
from lgdist_scvi.model.base._blocks import Question, completed_block, n_filled
from lgdist_scvi.model.base._cluster import Cluster, active_client
from lgdist_scvi.model.base._query import Query
from lgdist_scvi.model.base._store import LayerStore, write_block

_SLIDES = "slides.npy"  # sums over slides, which every block needs


def complete_into(
    path: str | os.PathLike,
    question: Question,
    layer_added: str,
    record: Mapping[str, Any],
    columns: Mapping[str, pd.Series],
    arguments: Mapping[str, Any],
    block_size: int | None,
    client: Any | None,
    silent: bool,
) -> bool:
    """Complete into a store; see :meth:`lgdist_scvi.LGDiST.complete`. Whether any entry was filled.

    `record` goes to `uns`, and `columns`, by the names of registered genes, to `var`; `arguments` are those of the call.
    """
    query = question.query
    store = LayerStore(
        path,
        {layer_added + suffix: dtype for suffix, dtype in question.dtypes.items()},
        {
            "layer_added": layer_added,
            **arguments,
            **{name: record[name] for name in ("version", "torch_version", "data", "weights", "std_factors")},
        },
        query.adata.obs_names,
        query.genes,
        [f"uns/{layer_added}", *(f"var/{name}" for name in columns)],
        block_size or spots_at_a_time(query.predictor.n_genes),
    )
    if store.is_finished and not store.work.exists():
        return True
    with store.alone():
        if store.is_finished:
            store.tidy_up()
            return True
        store.begin(query.adata, columns, (layer_added, record))
        if store.left:
            _complete(store, question, layer_added, client, silent)
        store.finish(columns, (layer_added, record))
    return any(store.filled.values())


def _complete(store: LayerStore, question: Question, layer_added: str, client: Any | None, silent: bool) -> None:
    client = active_client() if client is None else client
    cluster = None if client is None else Cluster(client, store.work)
    evidence = streamed_evidence(question.query)
    if cluster is not None:
        with store.told():
            cluster.send(question)
    if evidence is not None and evidence.needs_sums:
        _sum_over_slides(store, evidence, cluster, silent)
    n_done = sum(len(store.rows(number)) for number in store.filled)
    with tqdm(
        total=len(store.spots), initial=n_done, desc="Spots", unit=" spots", disable=silent, leave=False
    ) as progress:
        if cluster is None:
            for number in store.left:
                layers = completed_block(question, store.rows(number), progress.update)
                with store.told():
                    write_block(store.root, store.rows(number), _named(layers, layer_added))
                    store.finish_block(number, n_filled(layers))
        else:
            blocks = {number: store.rows(number) for number in store.left}
            for number, filled in cluster.each(_on_worker, blocks, store.root.absolute(), layer_added):
                with store.told():
                    store.finish_block(number, filled)
                progress.update(len(blocks[number]))
    if evidence is not None:
        evidence.forget()


def _named(layers: Mapping[str, np.ndarray], layer_added: str) -> dict[str, np.ndarray]:
    return {layer_added + suffix: block for suffix, block in layers.items()}


def streamed_evidence(query: Query) -> StreamedEvidence | None:
    """What region effects are computed from, if it is not in memory."""
    effects = query.predictor.region_effects
    evidence = effects.effects.evidence if isinstance(effects, EstimatedEffects) else None
    return evidence if isinstance(evidence, StreamedEvidence) else None


def _sum_over_slides(store: LayerStore, evidence: StreamedEvidence, cluster: Cluster | None, silent: bool) -> None:
    """Sums over slides: from all spots, once for a store."""
    file = store.work / _SLIDES
    if file.exists():
        evidence.sums = np.load(file)
        return
    numbers = range(evidence.n_runs)
    parts = map(evidence.of_run, numbers) if cluster is None else cluster.in_order(_sums_on_worker, numbers)
    evidence.sums = sum(tqdm(parts, total=len(numbers), desc="Slides", disable=silent, leave=False))
    with store.told():
        begun = file.with_name(f"new_{file.name}")
        np.save(begun, evidence.sums)
        begun.rename(file)


def _sums_on_worker(question: Question, number: int) -> np.ndarray:
    return streamed_evidence(question.query).of_run(number)


def _on_worker(question: Question, rows: np.ndarray, root: Path, layer_added: str) -> int:
    evidence = streamed_evidence(question.query)
    if evidence is not None and evidence.needs_sums:
        evidence.sums = np.load(root.with_name(_SLIDES))
    layers = completed_block(question, rows)
    write_block(root, rows, _named(layers, layer_added))
    return n_filled(layers)
