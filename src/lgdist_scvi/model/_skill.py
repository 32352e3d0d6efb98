"""Predictions of set-aside entries, by the model and by cheap baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi._units import COUNTS_PER
from lgdist_scvi.metrics._skill import compare
from lgdist_scvi.metrics.baselines._means import MOLECULES
from lgdist_scvi.model._batches import Estimand
from lgdist_scvi.model._prediction import PredictionMixin

_MAX_SPOTS = 4096
_DEPTH_ENTRIES = 10.0  # shrinkage of the dependence on depth, in known entries
_ENTRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # shrinkage of the neighbour mean, in known entries


class SkillMixin(PredictionMixin):
    """Skill of :class:`~lgdist_scvi.LGDiST` on the entries that training set aside."""

    def skill_table(self, estimand: Estimand | None = None, neighbors_only: bool = False) -> pd.DataFrame:
        """Compare with cheap baselines on set-aside entries; see :func:`lgdist_scvi.metrics.skill_per_gene`.

        Parameters
        ----------
        estimand
            ``"rate"`` or ``"captured"``; ``None``: what the likelihood offers, rate first.
        neighbors_only
            Whether to hide all of a spot's own entries from the model, so that it knows the neighbours alone.

        Returns
        -------
        One row per registered gene: `n`, `mse_model`, `mse_baseline`, `baseline`, `skill`, `skill_se`, and the mean squared
        error of every baseline under ``"mse: <name>"``.

        Raises
        ------
        ValueError
            If the model is not trained, or its likelihood does not offer the estimand.
        """
        self._check_trained()
        estimand = self._estimand(estimand)
        if self.adata is None and (neighbors_only or "skill" not in self.calibration_):
            raise ValueError("skill is measured on the data that the model was trained on; load it with them")
        if neighbors_only:
            measured = self._measure_skill(neighbors_only=True)
        else:
            # beside the calibration, which a new training replaces and save() keeps
            if "skill" not in self.calibration_:
                self.calibration_["skill"] = self._measure_skill()
            measured = self.calibration_["skill"]
        return pd.DataFrame(measured[estimand], index=pd.Index(self.get_var_names_registered(), name="gene"))

    @torch.inference_mode()
    def _measure_skill(self, neighbors_only: bool = False) -> dict[str, dict[str, np.ndarray]]:
        self.module.eval()
        self._complete_first_round(self.adata, "set_aside")
        self._apply_regions(self.adata, "set_aside")
        dataset = self.adata_manager.create_torch_dataset()
        spots = np.setdiff1d(np.arange(len(dataset)), self.module.spots_set_aside(len(dataset)))
        spots = np.sort(np.random.default_rng(0).permutation(spots)[:_MAX_SPOTS])
        lines = self._lines(dataset)
        with _own_entries(self.module, self.module.own_entries and not neighbors_only):
            blocks = self._batches(self.adata, spots)
            parts = [self._entries(tensors, lines) for _, tensors, _ in blocks]
        entries = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        estimands = ("rate", "captured") if self.module.vae.counts_are_modelled else ("captured",)
        n_genes = len(self.module.vae.gene_rate)
        return {estimand: self._compare(entries, estimand, n_genes) for estimand in estimands}

    def _lines(self, dataset: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean log1p(CP10K) of the visible entries of each gene as a line in :func:`_depth`: intercept and slope, (n_genes,)."""
        patterns = self.module.set_aside_patterns.cpu().numpy()
        sums = {estimand: np.zeros((5, patterns.shape[1])) for estimand in ("rate", "captured")}
        for spots in dataset.blocks():
            counts, known, library = dataset.rows(spots)
            known *= ~patterns[spots % len(patterns)]
            values = np.log1p(counts / np.maximum(library, 1) * COUNTS_PER)
            depth = _depth(torch.from_numpy(library)).numpy()
            for estimand, among in (("rate", known), ("captured", known * (counts > 0))):
                terms = (1.0, depth, values, depth**2, depth * values)
                sums[estimand] += [(term * among).sum(axis=0, dtype=np.float64) for term in terms]
        return {estimand: _line(*total, self.module.device) for estimand, total in sums.items()}

    def _entries(self, tensors: dict[str, torch.Tensor], lines: dict[str, tuple]) -> dict[str, torch.Tensor]:
        """Set-aside entries of a batch, (n_entries,) each: what was measured, predicted, and seen in the neighbours."""
        module, vae = self.module, self.module.vae
        counts, library = tensors[keys.COUNTS], tensors[keys.LIBRARY]
        rows, genes = (tensors[keys.MASK].bool() & module.set_aside(tensors[keys.SPOT])).nonzero(as_tuple=True)
        condition = module.condition(tensors, "set_aside")
        decoded = vae.decode(module.latent_mean(condition), condition)
        exposure = module.exposure(tensors)
        entries = {
            "gene": genes,
            "count": counts[rows, genes],
            "library": library[rows, 0],
            "exposure": exposure[rows, 0],
            # the expected count, or where captured values are modelled their expectation
            "predicted": decoded[rows, genes] * exposure[rows, 0]
            if vae.counts_are_modelled
            else self._in_units(decoded, tensors, "captured")[rows, genes],
            "share": vae.gene_rate[genes],
        }

        index, valid = tensors[keys.NEIGHBOR_INDEX].long(), tensors[keys.NEIGHBOR_VALID].float()

        def pooled(values: torch.Tensor) -> torch.Tensor:
            """Sum over the neighbours of each centre, (batch, n_genes); slot by slot, to hold no more than that."""
            return sum(values[index[:, slot]] * valid[:, slot, None] for slot in range(index.shape[1]))[rows, genes]

        seen = tensors[keys.NEIGHBOR_MASK] * ~module.set_aside(tensors[keys.NEIGHBOR_SPOT])
        others, depth = tensors[keys.NEIGHBOR_COUNTS], tensors[keys.NEIGHBOR_LIBRARY]
        values = torch.log1p(others / depth.clamp(min=1.0) * COUNTS_PER)
        for estimand, among in (("rate", seen), ("captured", seen * (others > 0))):
            intercept, slope = lines[estimand]
            entries[f"{estimand}/mean"] = intercept[genes] + slope[genes] * _depth(library)[rows, 0]
            entries[f"{estimand}/deviation"] = pooled((values - intercept - slope * _depth(depth)) * among)
            entries[f"{estimand}/number"] = pooled(among)
        entries["molecules"] = pooled(others * seen)
        entries["depth"] = pooled(depth * seen)
        return {name: values.cpu() for name, values in entries.items()}

    def _compare(self, entries: dict[str, torch.Tensor], estimand: str, n_genes: int) -> dict[str, np.ndarray]:
        """Squared errors of the expected measured value, summarised by gene."""
        if estimand == "captured":
            captured = entries["count"] > 0
            entries = {name: values[captured] for name, values in entries.items()}
        measured = torch.log1p(entries["count"] / entries["library"] * COUNTS_PER)

        def error(value: torch.Tensor) -> np.ndarray:
            return ((value - measured) ** 2).double().numpy()

        mean, deviation, number = (entries[f"{estimand}/{what}"] for what in ("mean", "deviation", "number"))
        of_gene = [error(mean)]
        of_neighbors = [error(mean + deviation / (number + strength)) for strength in _ENTRIES]
        predicted = entries["predicted"]
        if self.module.vae.counts_are_modelled:
            likelihood = self.module.vae.likelihood.of_genes(entries["gene"])
            value = likelihood.expected_captured if estimand == "captured" else likelihood.expected_value
            share, exposure = entries["share"], entries["exposure"]
            expected = [
                exposure * (entries["molecules"] + strength * share) / (entries["depth"] + strength)
                for strength in MOLECULES
            ]
            # Poisson loss: the mapping to log1p(CP10K) is dear
            nearest = min(expected, key=lambda m: float((m - torch.xlogy(entries["count"], m)).sum()))
            of_gene.append(error(value(exposure * share, entries["library"])))
            of_neighbors.append(error(value(nearest, entries["library"])))
            predicted = value(predicted, entries["library"])
        baselines = {"gene mean": min(of_gene, key=np.sum), "neighbor mean": min(of_neighbors, key=np.sum)}
        return compare(entries["gene"].numpy(), n_genes, error(predicted), baselines)


def _depth(library: torch.Tensor) -> torch.Tensor:
    """Logarithm of the library size in counts."""
    return torch.log(library.clamp(min=1.0))


def _line(
    n: np.ndarray, depth: np.ndarray, value: np.ndarray, square: np.ndarray, product: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares from sums over entries; slopes of genes with few entries are shrunk to 0."""
    n = np.maximum(n, 1e-9)
    variance = np.maximum(square - depth**2 / n, 0.0)
    typical = variance.sum() / n.sum()
    slope = (product - depth * value / n) / (variance + _DEPTH_ENTRIES * typical + 1e-9)
    overall = value.sum() / n.sum()
    intercept = np.where(n >= 1, (value - slope * depth) / n, overall)
    slope = np.where(n >= 1, slope, 0.0)
    return tuple(torch.from_numpy(line.astype(np.float32)).to(device) for line in (intercept, slope))


@contextmanager
def _own_entries(module: Any, own_entries: bool) -> Iterator[None]:
    """Let spots be predicted from their own visible entries, or not."""
    before, module.own_entries = module.own_entries, own_entries
    try:
        yield
    finally:
        module.own_entries = before
