"""What is asked of a trained model: data, spots, genes, estimand and seed; and the answers along the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import settings
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice, check_positive_int, did_you_mean, list_names
from lgdist_scvi.inference import LEVELS, N_SAMPLES, Prediction, measured, provenance
from lgdist_scvi.model.base._calibration import calibration_of, resolve_estimand
from lgdist_scvi.model.base._predictor import predictor_of
from lgdist_scvi.module.likelihood import choose_likelihood, name_of


class Query:
    """A question to a trained model.

    Arguments are those of :meth:`lgdist_scvi.LGDiST.get_completed_expression`; `region_effects` are needed where
    expected values are asked for, and not latents alone; `library_size`, of each spot or of all, stands in the place of
    what was counted, for models that do not look at counts; `sampling` are `n_samples` and `n_steps` of a
    :class:`~lgdist_scvi.inference.Prediction`.

    Attributes
    ----------
    adata, dataset
        The AnnData asked about (of a MuData, the registered modality), and the same, read and checked once.
    rows
        Rows of the spots, (n_obs,).
    positions, genes
        Positions among the registered genes, and names, (n_genes,).
    calibration
        Of the model.
    """

    def __init__(
        self,
        model: BaseModelClass,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        estimand: str | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        silent: bool = True,
        region_effects: bool = True,
        library_size: float | Sequence[float] | None = None,
        **sampling: Any,
    ):
        if batch_size is not None:
            check_positive_int(batch_size, "batch_size")
        for name in ("n_samples", "n_steps"):
            if sampling.get(name) is not None:
                check_positive_int(sampling[name], name)
        self.calibration = calibration_of(model)
        self.estimand, self.seed = resolve_estimand(model, estimand), seed_or_default(seed)
        registered = asked_about(model, adata)
        adata = model._validate_anndata(registered)
        self.dataset = model.get_anndata_manager(adata, required=True).create_torch_dataset()
        self.adata = self.dataset.adata
        if library_size is not None:
            self.dataset = self.dataset.with_library(depths(library_size, self.adata.n_obs))
        if registered is not model.adata and keys.MASK in self.dataset.registered_keys:
            shown = self.dataset.shows_zeros(), self.dataset.hides_every_zero()
            choose_likelihood(name_of(model.module.likelihood), *shown)
        self.rows = spots_at(self.adata, indices)
        self.positions, self.genes = self._genes(gene_list)
        self._batches = {"batch_size": batch_size, "silent": silent}
        self._sampling = {"seed": self.seed, **sampling}
        model.module.eval()
        self.predictor = predictor_of(model, self.dataset, region_effects=region_effects, silent=silent)

    def _genes(self, gene_list: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Positions among the registered genes, and names, in the caller's order."""
        names = self.dataset.genes
        if gene_list is None:
            return np.arange(len(names)), names
        gene_list = [gene_list] if isinstance(gene_list, str) else list(gene_list)
        positions = pd.Index(names).get_indexer(gene_list)
        if (positions < 0).any():
            unknown = [gene for gene, position in zip(gene_list, positions, strict=True) if position < 0]
            raise KeyError(
                f"{len(unknown):,} of {len(gene_list):,} genes are not registered with the model: {list_names(unknown)}; "
                f"{did_you_mean(unknown, names)}available: {list_names(names)}"
            )
        return positions, names[positions]

    def choose(self, genes: Sequence[str]) -> None:
        """Ask about these genes."""
        self.positions, self.genes = self._genes(genes)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of spots and of genes."""
        return len(self.rows), len(self.genes)

    def predictions(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Prediction]]:
        """Positions in :attr:`rows` and predictions, batch by batch; or in other rows, and without a progress bar."""
        if rows is None:
            return self.predictor.predictions(self.rows, **self._batches, **self._sampling)
        return self.predictor.predictions(rows, self._batches["batch_size"], **self._sampling)

    def origins(self, prediction: Prediction, observed: str, fill: str) -> tuple[np.ndarray, np.ndarray]:
        """Measured log1p(CP10K) of a batch, and the provenance of completed values; (batch, n_genes) each."""
        library = self.dataset.library[prediction.batch[keys.SPOT].cpu().numpy().ravel()]
        values = measured(prediction.batch, library)[:, self.positions]
        counts, known = (prediction.batch[name].cpu().numpy()[:, self.positions] for name in (keys.COUNTS, keys.MASK))
        return values, provenance(counts, known, observed, fill)

    def frame(self, values: np.ndarray) -> pd.DataFrame:
        """Values of the spots and genes, (n_obs, n_genes), as a data frame."""
        return pd.DataFrame(values, index=self.adata.obs_names[self.rows], columns=self.genes)


def anndata_of(model: BaseModelClass, adata: AnnData | MuData) -> AnnData:
    """The AnnData that holds the registered fields: of a MuData, the registered modality."""
    modality = model.registry_["setup_args"].get("modality")
    return adata if modality is None else adata.mod[modality]


def asked_about(model: BaseModelClass, adata: AnnData | MuData | None) -> AnnData | MuData:
    """The data that are asked about: the registered ones unless others are given."""
    adata = model.adata if adata is None else adata
    if adata is None:
        raise ValueError("the model was loaded without data; pass adata")
    if not adata.n_obs:
        raise ValueError("adata has no spots")
    return adata


def seed_or_default(seed: int | None) -> int:
    """Seed, a whole number from 0 to 2**63 - 1 (else ValueError), or else that of scvi-tools."""
    if seed is None:
        return int(settings.seed or 0)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
    return int(seed)


def spots_at(adata: AnnData, indices: Sequence[int] | None) -> np.ndarray:
    """Rows of the chosen spots."""
    if indices is None:
        return np.arange(adata.n_obs)
    given, indices = indices, np.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(f"indices must be a list of positions of spots, or a bool mask, got {given!r}")
    if indices.dtype == bool:
        if len(indices) != adata.n_obs:
            raise ValueError(f"indices is a mask of {len(indices):,} values for {adata.n_obs:,} spots")
        return np.flatnonzero(indices)
    if indices.dtype.kind not in "iu" and len(indices):
        raise ValueError(
            "indices must be positions of spots or a bool mask; adata.obs_names.get_indexer(names) gives them"
        )
    indices = indices.astype(np.int64)
    if len(indices) and (indices.min() < -adata.n_obs or indices.max() >= adata.n_obs):
        raise ValueError(f"indices reach beyond the {adata.n_obs:,} spots")
    return indices % max(adata.n_obs, 1)


def depths(library_size: float | Sequence[float], n_obs: int) -> np.ndarray:
    """Library sizes, in counts, of all spots, (n_obs,), from one for each or one for all."""
    values = np.asarray(library_size)
    if values.dtype.kind not in "iuf" or values.shape not in ((), (1,), (n_obs,)):
        raise ValueError(f"library_size must be a number, or one for each of the {n_obs:,} spots, got {library_size!r}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError("library_size must be positive and finite: a number of counts")
    return np.broadcast_to(values, n_obs).astype(np.float64)


def check_question(n_samples: int, observed: str, fill: str) -> None:
    """Refuse arguments that no completion can have."""
    check_positive_int(n_samples, "n_samples")
    check_choice("observed", observed, ("keep", "model"))
    check_choice("fill", fill, ("zeros", "masked"))


def check_interval(level: float, n_samples: int) -> None:
    """Refuse arguments that no interval can have."""
    if isinstance(level, bool) or not isinstance(level, Real):
        raise ValueError(f"level must be a number, such as 0.9, got {type(level).__name__}")
    if not 0 < level <= LEVELS[-1]:
        raise ValueError(f"level must lie between 0 and {LEVELS[-1]}, got {level}")
    if n_samples < 2:
        raise ValueError(f"an interval needs n_samples of at least 2, got {n_samples}")


def check_library_size(library_size: float | str) -> None:
    """Refuse what rates cannot be multiplied by."""
    if isinstance(library_size, str) and library_size == "latent":
        return
    if isinstance(library_size, bool) or not isinstance(library_size, Real) or not 0 < library_size < np.inf:
        raise ValueError(f'library_size must be a positive number or "latent", got {library_size!r}')


def samples_for_spread(n_samples: int) -> int:
    """Number of samples to draw where their spread is asked for: one has none."""
    return n_samples if n_samples > 1 else N_SAMPLES


_UNSUPPORTED = {
    "transform_batch": "there is no batch correction",
    "weights": "latents are not weighted; pass n_samples",
    "n_samples_overall": "pass n_samples, and indices for some spots",
    "dataloader": "pass adata, whose graph tells the neighbours",
    "mc_samples": "the posterior mean takes no samples; return_dist=True gives the variance over 25",
    "library_key": "slides are named at setup_anndata",
}


def refuse_unsupported(method: str, given: Mapping[str, Any]) -> None:
    """Refuse keywords of scvi-tools that a question does not have, and unknown ones (TypeError)."""
    for name in given:
        remedy = _UNSUPPORTED.get(name, "see its documentation for those that it has")
        raise TypeError(f"{method}() takes no {name!r}; {remedy}")
