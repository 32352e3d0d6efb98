"""Writing a completed layer with its uncertainty and its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import lgdist_scvi
from lgdist_scvi._checks import get_counts
from lgdist_scvi._expression import log1p_cp10k
from lgdist_scvi.data import _keys as keys
from lgdist_scvi.model._prediction import Estimand, _check_arguments, _seed

if TYPE_CHECKING:
    from anndata import AnnData

MEASURED, FILLED_ZERO, FILLED_MISSING, REPLACED = 0, 1, 2, 3


class CompletionMixin:
    """Completion of an AnnData by :class:`~lgdist_scvi.LGDiST`."""

    def complete(
        self,
        adata: AnnData | None = None,
        layer_added: str = "completed",
        level: float | None = 0.9,
        n_samples: int = 25,
        observed: Literal["keep", "model"] = "keep",
        fill: Literal["zeros", "masked"] = "zeros",
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
          replaced by the model's (only with ``observed="model"``);
        - ``uns[layer_added]``: version, arguments, seed, genes, and the coverage of the intervals on set-aside entries.

        Genes that are not registered keep their measured values. Nothing is written if anything fails.

        Raises
        ------
        ValueError
            If the model is not trained, an argument is out of range, the data are backed by a file, or a layer that no
            completion wrote has one of the names.
        """
        _check_arguments(n_samples, observed, fill)
        target = self.adata if adata is None else adata
        if target.isbacked:
            raise ValueError(
                "layers cannot be added to an AnnData that is backed by a file; call adata.to_memory() first"
            )
        _check_target(target, layer_added)
        adata, estimand, seed = self._prepare(adata), self._estimand(estimand), _seed(seed)
        shared = {
            "adata": adata, "observed": observed, "fill": fill, "estimand": estimand, "seed": seed, "n_steps": n_steps,
            "batch_size": batch_size, "return_numpy": True, "silent": silent,
        }  # fmt: skip
        layers = {layer_added: self.get_completed_expression(**shared)}
        _, layers[f"{layer_added}_std"] = self.get_completed_expression(**shared, n_samples=n_samples, return_std=True)
        if level is not None:
            ends = self.get_prediction_interval(level, **shared, n_samples=n_samples)
            layers[f"{layer_added}_lower"], layers[f"{layer_added}_upper"] = ends
        provenance, measured = self._provenance(adata, observed, fill)
        layers[f"{layer_added}_provenance"] = provenance

        positions = adata.var_names.get_indexer(self.get_var_names_registered())
        if adata.n_vars > len(positions):
            layers = {name: _spread_columns(name, block, positions, measured) for name, block in layers.items()}
        elif not np.array_equal(positions, np.arange(len(positions))):
            layers = {name: block[:, np.argsort(positions)] for name, block in layers.items()}
        record = self._record(adata, layer_added, level, n_samples, observed, fill, estimand, seed, n_steps)
        for name, block in layers.items():
            target.layers[name] = block
        target.uns[layer_added] = record

    def _provenance(self, adata: AnnData, observed: str, fill: str) -> tuple[np.ndarray, np.ndarray]:
        """Where each registered value comes from, and the measured log1p(CP10K) of every gene of `adata`."""
        dataset = self.get_anndata_manager(adata, required=True).create_torch_dataset()
        provenance = np.empty(dataset.counts.shape, dtype=np.uint8)
        for start in range(0, len(dataset), 2048):
            spots = np.arange(start, min(start + 2048, len(dataset)))
            counts, known, _ = dataset.rows(spots)
            kept = (known > 0) & ((counts > 0) | (fill == "masked"))
            filled = np.where(known > 0, FILLED_ZERO, FILLED_MISSING)
            if observed == "model":
                filled, kept = np.where((known > 0) & (counts > 0), REPLACED, filled), np.zeros_like(kept)
            provenance[spots] = np.where(kept, MEASURED, filled)
        measured = None
        if adata.n_vars > provenance.shape[1]:
            layer = self.get_anndata_manager(adata).data_registry[keys.COUNTS].attr_key
            measured = log1p_cp10k(get_counts(adata, layer), dataset.library)
        return provenance, measured

    def _record(
        self,
        adata: AnnData,
        layer_added: str,
        level: float | None,
        n_samples: int,
        observed: str,
        fill: str,
        estimand: str,
        seed: int,
        n_steps: int | None,
    ) -> dict[str, Any]:
        """What is needed to repeat and to judge the completion; only types that h5ad can store."""
        setup = {key: value for key, value in self.registry_["setup_args"].items() if value is not None}
        record = {
            "version": lgdist_scvi.__version__,
            "scvi_tools_version": version("scvi-tools"),
            "torch_version": version("torch"),
            "scale": "log1p(CP10K)",
            "observed": observed,
            "fill": fill,
            "estimand": estimand,
            "seed": seed,
            "n_samples": n_samples,
            "n_steps": n_steps or 0,
            "genes": self.get_var_names_registered().astype(str),
            "gene_likelihood": self.gene_likelihood_,
            "mask": setup.get("mask_layer", "every entry is data"),
            "setup": setup,
            "model": {key: value for key, value in self.init_params_["non_kwargs"].items() if value is not None},
            "provenance": np.array(["measured", "filled zero", "filled missing entry", "measured, replaced"]),
        }
        if self.training_seed_ is not None:
            record["training_seed"] = int(self.training_seed_)
        if level is not None:
            record["level"] = level
            record["n_calibration_entries"] = np.array(self.calibration_["n_entries"][estimand])
        return record


def _check_target(adata: AnnData, layer_added: str) -> None:
    """Refuse to write over anything but an earlier completion."""
    record = adata.uns.get(layer_added)
    if isinstance(record, Mapping) and "provenance" in record:
        return
    names = [layer_added + suffix for suffix in ("", "_std", "_lower", "_upper", "_provenance")]
    taken = [f"adata.layers[{name!r}]" for name in names if name in adata.layers]
    taken += [f"adata.uns[{layer_added!r}]"] * (record is not None)
    if taken:
        raise ValueError(f"{', '.join(taken)} would be written over; choose another layer_added, or delete it first")


def _spread_columns(name: str, block: np.ndarray, positions: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Put registered genes in their places among all genes of the data."""
    is_value = not name.endswith(("_std", "_provenance"))
    out = measured.astype(block.dtype) if is_value else np.zeros(measured.shape, dtype=block.dtype)
    out[:, positions] = block
    return out
