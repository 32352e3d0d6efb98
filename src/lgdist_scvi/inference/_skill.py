"""Skill: predictions of held-out entries, by the model and by cheap baselines."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from lgdist_scvi import _keys as keys
from lgdist_scvi._poisson import MOLECULES
from lgdist_scvi._units import to_log1p
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.metrics._skill import compare
from lgdist_scvi.module import LGDiSTModule
from lgdist_scvi.module._spots import sum_of_neighbors
from lgdist_scvi.module.likelihood import Estimand, Likelihood

_MAX_SPOTS = 4096
_DEPTH_ENTRIES = 10.0  # shrinkage of the dependence on depth, in known entries
_ENTRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # shrinkage of the neighbour mean, in known entries


Lines = dict[str, tuple[Tensor, Tensor]]
"""By estimand, mean log1p(CP10K) of each gene as a line in :func:`_depth`: intercept and slope, (n_genes,)."""


@torch.inference_mode()
def measure_skill(predictor: Predictor, neighbors_only: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Predict held-out entries, by the model and by cheap baselines; see :func:`lgdist_scvi.metrics.skill_per_gene`.

    `predictor` is of the training data, with region effects that do not know what is held out. `neighbors_only` hides
    all of a spot's own entries from the model. By estimand, the columns of :meth:`lgdist_scvi.LGDiST.skill_table`.
    """
    module, dataset = predictor.module, predictor.dataset
    spots = np.sort(np.random.default_rng(0).permutation(predictor.judging())[:_MAX_SPOTS])
    lines = _lines(module, dataset)
    parts = [_entries(module, batch, lines, not neighbors_only) for _, batch in predictor.batches(spots)]
    entries = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}  # large: one at a time
    return {estimand: _compare(module.likelihood, entries, estimand) for estimand in module.likelihood.estimands}


def _lines(module: LGDiSTModule, dataset: NeighborhoodDataset) -> Lines:
    """Lines through the visible entries of each gene."""
    patterns = module.set_aside_patterns.cpu().numpy()
    sums = {estimand: np.zeros((5, patterns.shape[1])) for estimand in ("rate", "captured")}
    for spots in dataset.blocks():
        counts, known, library = dataset.rows(spots)
        known *= ~patterns[spots % len(patterns)]
        values = to_log1p(counts, np.maximum(library, 1))
        depth = _depth(torch.from_numpy(library)).numpy()
        for estimand, among in (("rate", known), ("captured", known * (counts > 0))):
            terms = (1.0, depth, values, depth**2, depth * values)
            sums[estimand] += [(term * among).sum(axis=0, dtype=np.float64) for term in terms]
    return {estimand: _line(*total, module.device) for estimand, total in sums.items()}


def _entries(module: LGDiSTModule, tensors: dict[str, Tensor], lines: Lines, own_entries: bool) -> dict[str, Tensor]:
    """Held-out entries of a batch, (n_entries,) each: what was measured, predicted, and seen in the neighbours."""
    likelihood = module.likelihood
    counts, library = tensors[keys.COUNTS], tensors[keys.LIBRARY]
    rows, genes = (tensors[keys.MASK].bool() & module.set_aside(tensors[keys.SPOT])).nonzero(as_tuple=True)
    condition = module.condition(tensors, "set_aside", own_entries)
    decoded = module.decode(module.latent_mean(condition), condition)
    exposure = module.exposure(tensors)
    predicted = likelihood.for_skill(decoded, exposure, likelihood.usable(library))
    entries = {
        "gene": genes,
        "count": counts[rows, genes],
        "library": library[rows, 0],
        "exposure": exposure[rows, 0],
        "predicted": predicted[rows, genes],
        "share": likelihood.gene_rate[genes],
    }

    index, valid = tensors[keys.NEIGHBOR_INDEX].long(), tensors[keys.NEIGHBOR_VALID].float()

    def pooled(values: Tensor) -> Tensor:
        """Sum over the neighbours of the centre of each entry, (n_entries,)."""
        return sum_of_neighbors(values.expand(-1, counts.shape[1]), index, valid)[rows, genes]

    seen = tensors[keys.NEIGHBOR_MASK] * ~module.set_aside(tensors[keys.NEIGHBOR_SPOT])
    others, depth = tensors[keys.NEIGHBOR_COUNTS], tensors[keys.NEIGHBOR_LIBRARY]
    values = to_log1p(others, depth.clamp(min=1.0))
    for estimand, among in (("rate", seen), ("captured", seen * (others > 0))):
        intercept, slope = lines[estimand]
        entries[f"{estimand}/mean"] = intercept[genes] + slope[genes] * _depth(library)[rows, 0]
        entries[f"{estimand}/deviation"] = pooled((values - intercept - slope * _depth(depth)) * among)
        entries[f"{estimand}/number"] = pooled(among)
    entries["molecules"] = pooled(others * seen)
    entries["depth"] = pooled(depth * seen)
    return {name: values.cpu() for name, values in entries.items()}


def _compare(likelihood: Likelihood, entries: dict[str, Tensor], estimand: Estimand) -> dict[str, np.ndarray]:
    """Squared errors of the expected measured value, summarised by gene."""
    if estimand == "captured":
        captured = entries["count"] > 0
        entries = {name: values[captured] for name, values in entries.items()}
    genes, library = entries["gene"], entries["library"]
    measured = to_log1p(entries["count"], library)

    def error(value: Tensor) -> np.ndarray:
        return ((value - measured) ** 2).double().numpy()

    def expected(predicted: Tensor) -> Tensor:
        return likelihood.expected_log1p(predicted, library, genes, estimand)

    mean, deviation, number = (entries[f"{estimand}/{what}"] for what in ("mean", "deviation", "number"))
    of_gene = [error(mean)]
    of_neighbors = (error(mean + deviation / (number + strength)) for strength in _ENTRIES)  # one at a time as well
    share, exposure = entries["share"], entries["exposure"]
    # shares of molecules read at the spot's depth, where the likelihood knows what counts make of them
    of_gene += [error(expected(count)) for count in likelihood.count_baselines(exposure * share)]
    pooled = likelihood.count_baselines(
        *(
            exposure * (entries["molecules"] + strength * share) / (entries["depth"] + strength)
            for strength in MOLECULES
        )
    )
    if pooled:
        # Poisson loss: the mapping to log1p(CP10K) is slow
        nearest = min(pooled, key=lambda m: float((m - torch.xlogy(entries["count"], m)).sum()))
        of_neighbors = chain(of_neighbors, [error(expected(nearest))])
    baselines = {"gene mean": min(of_gene, key=np.sum), "neighbor mean": min(of_neighbors, key=np.sum)}
    n_genes = len(likelihood.gene_rate)
    return compare(genes.numpy(), n_genes, error(expected(entries["predicted"])), baselines)


def _depth(library: Tensor) -> Tensor:
    """Logarithm of the library size in counts."""
    return torch.log(library.clamp(min=1.0))


def _line(
    n: np.ndarray, depth: np.ndarray, value: np.ndarray, square: np.ndarray, product: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Least squares from sums over entries; slopes of genes with few entries are shrunk to 0."""
    n = np.maximum(n, 1e-9)
    variance = np.maximum(square - depth**2 / n, 0.0)
    typical = variance.sum() / n.sum()
    slope = (product - depth * value / n) / (variance + _DEPTH_ENTRIES * typical + 1e-9)
    overall = value.sum() / n.sum()
    intercept = np.where(n >= 1, (value - slope * depth) / n, overall)
    slope = np.where(n >= 1, slope, 0.0)
    return tuple(torch.from_numpy(line.astype(np.float32)).to(device) for line in (intercept, slope))
