"""From a method to a baseline: the signature that all share, reading, refusal and the shape of the answer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from anndata import AnnData

from lgdist_scvi._checks import check_positive_int
from lgdist_scvi.metrics.baselines._data import read, read_graph

NEEDS_EVERY_ENTRY = "{name} needs every entry (mask_layer=None, zeros are data); with a mask, use soft_impute"

_HEADING = "Parameters\n----------\n"

_PARAMETERS = """\
adata
    Annotated data with raw counts, (n_obs, n_vars). Not modified.
layer
    Layer that holds raw counts; ``None`` reads `adata.X`.
mask_layer
    Layer with True where an entry is observed. Given: the values elsewhere are unknown and never looked at, and the
    answer is the expected log1p(CP10K) of an entry *of the observed kind* (where the mask calls every zero missing: given
    that it was captured). ``None``: zeros are data, and the answer is log1p(1e4 * rate).
size_factor_key
    Column of `adata.obs` with the library size in counts; ``None`` sums the observed counts of `adata`.
graph_key
    Key of `adata.obsp` with the neighbourhood graph, for the baselines that use neighbours.
genes
    Genes to predict: their names, or a bool column of `var` (such as ``"target_gene"``); ``None`` for all. All genes are
    input in any case; hyper-parameters are chosen for these.
seed
    Seed of the inner hold-out and of random starts.
"""

_RETURNS = """

Returns
-------
log1p(CP10K), float32, (n_obs, n_vars); NaN in the columns of genes that are not predicted.

Raises
------
KeyError
    If a layer, a column of `obs`, the graph or a gene is absent.
ValueError
    If values are not counts, the mask is not bool, or a gene to predict has no observed entry."""


def baseline(
    *, with_mask: str | None = None, without_mask: str | None = None
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Turn a method into a baseline of a slide.

    The method names what it needs first, of `data` (`LogData` where a mask is given, else `CountData`), `graph` and
    `seed`; what follows are its own parameters, which come after the shared ones. Its docstring describes its own
    parameters only. It returns values (`LogData`) or rates (`CountData`) of the genes to predict, (n_obs, n_columns).
    `with_mask` and `without_mask` say why ``{name}``, the method, refuses data with a mask, or without one.
    """

    def decorate(method: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        parameters = inspect.signature(method).parameters
        own = {name: p for name, p in parameters.items() if name not in ("data", "graph", "seed")}

        def run(
            adata: AnnData,
            layer: str | None = None,
            mask_layer: str | None = None,
            size_factor_key: str | None = None,
            graph_key: str = "spatial_connectivities",
            genes: str | Sequence[str] | None = None,
            seed: int = 0,
            *args: Any,
            **kwargs: Any,
        ) -> np.ndarray:
            refusal = without_mask if mask_layer is None else with_mask
            if refusal is not None:
                raise ValueError(refusal.format(name=method.__name__))
            for name, value in {**dict(zip(own, args, strict=False)), **kwargs}.items():
                if name in own and value is not None:
                    _check(name, value, own[name].annotation)
            data = read(adata, layer, mask_layer, size_factor_key, genes)
            given = {"data": data, "seed": seed}
            if "graph" in parameters:
                given["graph"] = read_graph(adata, graph_key)
            needed = (given[name] for name in parameters if name in given)
            return data.answer(method(*needed, *args, **kwargs))

        signature = inspect.signature(run)
        shared = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        summary, _, described = inspect.cleandoc(method.__doc__ or "").partition(_HEADING)
        functools.update_wrapper(run, method)
        run.__signature__ = signature.replace(parameters=[*shared, *own.values()])
        run.__doc__ = f"{summary.rstrip()}\n\n{_HEADING}{_PARAMETERS}{described}".rstrip() + _RETURNS
        return run

    return decorate


def _check(name: str, value: Any, annotation: str) -> None:
    """Refuse a hyper-parameter that is no whole number of at least 1, or where it need not be whole, no number of at least 0."""
    if "int" in annotation:
        check_positive_int(value, name)
    elif not (isinstance(value, Real) and 0 <= value < np.inf):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
