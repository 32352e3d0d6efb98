"""Methods that predict a section from its image: each gives shares of the library, from what the training sections show.

Hyper-parameters are those under which the counts of inner held-out training sections are most likely. What a method predicts of a
gene is brought to the gene's mean in training, without which the expected logarithm, far below the logarithm of the expected rate,
would be punished for its scale; and a tuned part of the gene means is blended in, since a count under a rate near 0 costs much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import lgdist_scvi
from benchmarks._image_spread import spread_scores
from benchmarks._sections import Sections
from lgdist_scvi._units import counts_per_cp10k, from_cp10k, log1p_cp10k  # noqa: PLC2701  the one scale

if TYPE_CHECKING:
    from anndata import AnnData

    from lgdist_scvi import Stem

OWN, AROUND = ("X_image",), ("X_image", "X_image_context")
ALL = (*AROUND, "X_stain", "X_stain_context")
_N_COMPONENTS = 128  # of each kind of features
_RANK = 20
_BLENDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
_PENALTIES = tuple(10.0 ** np.arange(-2, 4.5, 0.5))
_POISSON_PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0)
_UNSEEN = 0.1  # molecules of a gene that training does not have, as in the score

# Of the training spots to fit on (bool) and settings: for each setting, rates of all training spots and of the held-out ones.
Predictor = Callable[[np.ndarray, Sequence], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Method:
    """A method of the table.

    Attributes
    ----------
    run
        Function of sections and a seed; gives shares of the library, (n_held_out, n_scored), or a pair of them and of further
        scores.
    control
        What is done to the patches before: see :func:`benchmarks._sections.hold_out`.
    few_pairs
        It is run on few pairs too: not if its targets were completed on all training sections.
    sources
        Patterns of files, beside those that all share, whose change makes an old result obsolete.
    standardized
        Features are standardised in each section.
    """

    run: Callable[[Sections, int], np.ndarray | tuple[np.ndarray, dict[str, float]]]
    control: str | None = None
    few_pairs: bool = True
    sources: tuple[str, ...] = ()
    standardized: bool = True


def tuned(data: Sections, predictor: Predictor, settings: Sequence, to_means: bool = True) -> np.ndarray:
    """Choose a setting and a blend with the gene means on inner sections, and predict the held-out section."""
    likelihood = np.zeros((len(settings), len(_BLENDS)))
    for name in np.unique(data.section):
        fitted = data.section != name
        mean = _gene_mean(data, fitted)
        for i, (rates, _) in enumerate(predictor(fitted, settings)):
            factor = _to_means(data, rates, fitted) if to_means else 1
            rate = np.minimum(rates[~fitted] * factor, _highest(data, fitted))
            for j, blend in enumerate(_BLENDS):
                expected = data.library[~fitted, None] * ((1 - blend) * rate + blend * mean)
                expected = np.maximum(expected, 1e-12 * data.library[~fitted, None])
                likelihood[i, j] += (data.counts[~fitted] * np.log(expected) - expected).sum()
    best, j = np.unravel_index(likelihood.argmax(), likelihood.shape)
    everything = np.full(len(data.section), True)
    ((rates, held_out),) = predictor(everything, [settings[best]])
    factor = _to_means(data, rates, everything) if to_means else 1
    rate = np.minimum(held_out * factor, _highest(data, everything))
    return (1 - _BLENDS[j]) * rate + _BLENDS[j] * _gene_mean(data, everything)


def _gene_mean(data: Sections, fitted: np.ndarray) -> np.ndarray:
    molecules = data.library[fitted].sum()
    return np.maximum(data.counts[fitted].sum(axis=0), _UNSEEN) / molecules


def _highest(data: Sections, fitted: np.ndarray) -> np.ndarray:
    """Highest share of each gene among the spots fitted on, (n_scored,): few spots extrapolate to any value."""
    return np.maximum((data.counts[fitted] / data.library[fitted, None]).max(axis=0), _gene_mean(data, fitted))


def _to_means(data: Sections, rates: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Factor of each gene that brings predictions for the spots fitted on to their counts, (n_scored,)."""
    expected = data.library[fitted] @ rates[fitted]
    counted = np.maximum(data.counts[fitted].sum(axis=0), _UNSEEN)
    return np.divide(counted, expected, out=np.ones_like(counted), where=expected > 0)


def _rate(log1p: np.ndarray) -> np.ndarray:
    return from_cp10k(np.expm1(np.maximum(log1p, 0)))


def targets(data: Sections, kind: str, fitted: np.ndarray) -> np.ndarray:
    """Training targets of the spots fitted on, log1p(CP10K), float64, (n_fitted, n_scored).

    ``"raw"``; ``"pca"``: their 20 leading principal components over all chosen genes; ``"completed"``: by LGDiST.
    """
    training = data.training
    if kind == "completed":
        return training.layers["completed"][fitted][:, data.scored].astype(np.float64)
    if kind == "raw":
        return log1p_cp10k(data.counts[fitted], data.library[fitted]).astype(np.float64)
    raw = log1p_cp10k(training.X[fitted], data.library[fitted]).astype(np.float64)
    mean = raw.mean(axis=0)
    u, s, v = np.linalg.svd(raw - mean, full_matrices=False)
    return ((u[:, :_RANK] * s[:_RANK]) @ v[:_RANK] + mean)[:, data.scored]


def design(data: Sections, keys: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal components of the standardised features, of mean square norm 1: of training and held-out spots.

    Those of a few statistics are scaled towards equal variance, for each of them tells something; so does Stem.
    """
    parts = []
    for key in keys:
        training, held_out = (np.asarray(adata.obsm[key], np.float64) for adata in (data.training, data.held_out))
        mean, std = training.mean(axis=0), training.std(axis=0) + 1e-9
        training, held_out = (training - mean) / std, (held_out - mean) / std
        _, scale, axes = np.linalg.svd(training, full_matrices=False)
        if training.shape[1] <= _N_COMPONENTS:
            axes = axes / np.sqrt(np.maximum(scale, 1e-6 * scale[0]))[:, None]
        training, held_out = training @ axes[:_N_COMPONENTS].T, held_out @ axes[:_N_COMPONENTS].T
        norm = np.sqrt((training**2).sum(axis=1).mean())
        parts.append((training / norm, held_out / norm))
    return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])


def gene_mean(data: Sections, seed: int) -> np.ndarray:
    return np.broadcast_to(data.gene_mean, (data.held_out.n_obs, len(data.gene_mean)))


def measured_neighbors(data: Sections, seed: int) -> np.ndarray:
    return data.measured_neighbors()


def _ridge_on(data: Sections, x: np.ndarray, held_out: np.ndarray, target: str, to_means: bool = True) -> np.ndarray:
    def predictor(fitted: np.ndarray, penalties: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        y, center = targets(data, target, fitted), x[fitted].mean(axis=0)
        mean, part = y.mean(axis=0), x[fitted] - center
        values, axes = np.linalg.eigh(part.T @ part)
        for penalty in penalties:
            slopes = axes @ ((axes.T @ (part.T @ (y - mean))) / (np.maximum(values, 0) + penalty)[:, None])
            yield _rate((x - center) @ slopes + mean), _rate((held_out - center) @ slopes + mean)

    return tuned(data, predictor, _PENALTIES, to_means)


def depth(data: Sections, seed: int) -> np.ndarray:
    """Ridge on the logarithm of the measured library, which is known of no section that was not sequenced."""
    x, held_out = np.log(data.library)[:, None], np.log(data.measured_library)[:, None]
    return _ridge_on(data, x - x.mean(), held_out - x.mean(), "raw")


def depth_and_image(data: Sections, seed: int) -> np.ndarray:
    """Ridge on completed targets, on the measured library as well as on own and neighbouring patches."""
    (x, held_out), library = design(data, ALL), np.log(data.library)
    mean, scale = library.mean(), library.std() / 10  # the depth is hardly penalised
    x = np.column_stack([x, (library - mean) / scale])
    held_out = np.column_stack([held_out, (np.log(data.measured_library) - mean) / scale])
    return _ridge_on(data, x, held_out, "completed")


def ridge(data: Sections, seed: int, keys: tuple[str, ...], target: str, to_means: bool = True) -> np.ndarray:
    return _ridge_on(data, *design(data, keys), target, to_means)


def knn(data: Sections, seed: int, target: str) -> np.ndarray:
    """Pooled counts, or mean completed rates, of the training spots whose patches are most similar (cosine)."""
    x, held_out = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in design(data, ALL))

    def predictor(fitted: np.ndarray, numbers: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        spots = np.flatnonzero(fitted)
        library = data.library[spots]
        value = data.counts[spots]
        if target == "completed":  # each spot alike
            value, library = _rate(targets(data, target, fitted)), np.ones(len(spots))
        ranked = [np.argsort(-(part @ x[spots].T), axis=1, kind="stable") for part in (x, held_out)]
        for number in numbers:
            nearest = [order[:, :number] for order in ranked]
            yield tuple(value[near].sum(axis=1) / library[near].sum(axis=1)[:, None] for near in nearest)

    return tuned(data, predictor, (3, 5, 10, 20, 40, 80))


def poisson_ridge(data: Sections, seed: int, target: str) -> np.ndarray:
    """Poisson regression with logarithmic link and ridge penalty, all genes with one penalty."""
    from scipy.optimize import minimize

    x, held_out = design(data, ALL)

    def predictor(fitted: np.ndarray, penalties: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        part, library = x[fitted], data.library[fitted, None]
        counts = data.counts[fitted]
        if target == "completed":
            counts = counts_per_cp10k(library) * np.expm1(targets(data, target, fitted))
        start = np.log(np.maximum(counts.sum(axis=0), _UNSEEN) / library.sum())
        weights = np.zeros((1 + x.shape[1], counts.shape[1]))  # the first row is added to the logarithm of the mean

        def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
            w = flat.reshape(weights.shape)
            eta = part @ w[1:] + w[0]
            expected = library * np.exp(np.minimum(eta + start, 0))
            gradient = np.vstack([(expected - counts).sum(axis=0), part.T @ (expected - counts) + penalty * w[1:]])
            return float((expected - counts * eta).sum() + penalty / 2 * (w[1:] ** 2).sum()), gradient.ravel()

        for penalty in penalties:  # from strong to weak, each from the last
            found = minimize(loss, weights.ravel(), (penalty,), "L-BFGS-B", jac=True, options={"maxiter": 100})
            weights = found.x.reshape(weights.shape)
            yield tuple(np.exp(np.minimum(z @ weights[1:] + weights[0] + start, 0)) for z in (x, held_out))

    return tuned(data, predictor, _POISSON_PENALTIES)


def mlp(data: Sections, seed: int, target: str) -> np.ndarray:
    """Two hidden layers of 256; one network for each training section, stopped early on it; mean of their rates."""
    x, held_out = design(data, ALL)
    scale = x.std(axis=0) + 0.1 * x.std(axis=0).max()  # leading components do not drown the others

    def predictor(fitted: np.ndarray, settings: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        y = np.full((len(x), data.counts.shape[1]), np.nan)
        y[fitted] = targets(data, target, fitted)
        for _ in settings:
            answers = []
            for name in np.unique(data.section[fitted]):
                aside = fitted & (data.section == name)
                answers.append(_network(x / scale, y, fitted & ~aside, aside, held_out / scale, seed))
            yield tuple(np.mean([_rate(answer[k]) for answer in answers], axis=0) for k in (0, 1))

    return tuned(data, predictor, [None])


def _network(
    x: np.ndarray, y: np.ndarray, fitted: np.ndarray, aside: np.ndarray, held_out: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train on spots until the error of others rises; predictions for all training spots and the held-out ones."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    mean = y[fitted].mean(axis=0)
    inputs, outputs = torch.tensor(x, dtype=torch.float32), torch.tensor(y - mean, dtype=torch.float32)
    network = nn.Sequential(
        nn.Linear(x.shape[1], 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.2),
        nn.Linear(256, y.shape[1]),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    spots, other = torch.tensor(np.flatnonzero(fitted)), torch.tensor(aside)
    best, state, waited = np.inf, None, 0
    for _ in range(200):
        network.train()
        for batch in spots[torch.randperm(len(spots))].split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(network(inputs[batch]), outputs[batch]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            error = float(nn.functional.mse_loss(network(inputs[other]), outputs[other]))
        waited += 1
        if error < best:
            best, waited = error, 0
            state = {name: value.clone() for name, value in network.state_dict().items()}
        if waited == 10:
            break
    network.load_state_dict(state)
    with torch.no_grad():
        return tuple(
            network(torch.tensor(part, dtype=torch.float32)).numpy().astype(np.float64) + mean for part in (x, held_out)
        )


def stem(data: Sections, seed: int, target: str, part: str = "all") -> np.ndarray | tuple[np.ndarray, dict[str, float]]:
    """Stem with default settings; it sees the neighbouring patches by itself, and chooses on inner sections.

    Of few pairs the completed targets are those of an LGDiST that it fits to these itself. `part` ``"network"``: the network alone,
    without the expert.
    """
    is_raw = target == "raw"
    layer = "completed" if "completed" in data.training.layers and not is_raw else None
    model = _stem(data, data.training, seed, layer)
    model.train(targets="counts" if is_raw else "expected", enable_progress_bar=False)
    if part == "network":
        model.module.experts.weights_hidden.zero_()
    rate = _stem_rate(model, data)
    return (rate, spread_scores(model, data, seed)) if part == "all" else rate


def stem_paper(data: Sections, seed: int) -> np.ndarray:
    """``Stem.paper_preset()`` at the size of a CPU: 2 layers of 48 with 2 heads, and the scored genes alone, which are 250.

    Attention among all 1,024 genes would take eight times as long, and the paper's size two hundred times. Posterior mean alone.
    """
    from lgdist_scvi import Stem

    small = {"n_denoiser_hidden": 48, "n_denoiser_layers": 2, "n_denoiser_heads": 2}
    model = _stem(data, data.training[:, data.scored].copy(), seed, None, **(Stem.paper_preset() | small))
    model.train(targets="counts", max_epochs=30, batch_size=64, enable_progress_bar=False)
    return _stem_rate(model, data)


def _stem(data: Sections, training: AnnData, seed: int, target_layer: str | None, **arguments: object) -> Stem:
    """A Stem of features of both kinds."""
    import scvi

    from lgdist_scvi import Stem

    scvi.settings.seed = seed
    for adata in (training, data.held_out):
        parts = [adata.obsm[key] for key in ("X_image", "X_stain")]
        adata.obsm["X_both"] = np.hstack(parts)
        adata.uns["X_both"] = {"blocks": [part.shape[1] for part in parts]}
    keys = {"image_key": "X_both", "size_factor_key": "total_counts", "sample_key": "sample"}
    Stem.setup_anndata(training, **keys, target_layer=target_layer)
    return Stem(training, **arguments)


def _stem_rate(model: Stem, data: Sections) -> np.ndarray:
    genes = list(data.training.var_names[data.scored])
    return _rate(np.asarray(model.get_predicted_expression(data.held_out, gene_list=genes), dtype=np.float64))


def _with(function: Callable, **arguments: object) -> Method:
    return Method(partial(function, **arguments), few_pairs=arguments.get("target") != "completed")


# "context" sees the mean of the neighbours' patches as well, "everything" also colours and texture of all these patches, as kNN,
# Poisson ridge, MLP and Stem do
PEERS = {
    "gene_mean": Method(gene_mean),
    "stain_raw": _with(ridge, keys=("X_stain",), target="raw"),
    "ridge_raw": _with(ridge, keys=OWN, target="raw"),
    "ridge_pca": _with(ridge, keys=OWN, target="pca"),
    "ridge_completed": _with(ridge, keys=OWN, target="completed"),
    "context_raw": _with(ridge, keys=AROUND, target="raw"),
    "context_pca": _with(ridge, keys=AROUND, target="pca"),
    "context_completed": _with(ridge, keys=AROUND, target="completed"),
    "everything_raw": _with(ridge, keys=ALL, target="raw"),
    "everything_pca": _with(ridge, keys=ALL, target="pca"),
    "everything_completed": _with(ridge, keys=ALL, target="completed"),
    "knn_raw": _with(knn, target="raw"),
    "knn_completed": _with(knn, target="completed"),
    "poisson_raw": _with(poisson_ridge, target="raw"),
    "poisson_completed": _with(poisson_ridge, target="completed"),
    "mlp_raw": _with(mlp, target="raw"),
    "mlp_completed": _with(mlp, target="completed"),
}
MODELS = {}
if "Stem" in lgdist_scvi.__all__:
    _SOURCES = ("src/lgdist_scvi/**/*.py",)
    MODELS = {f"stem_{t}": Method(partial(stem, target=t), sources=_SOURCES) for t in ("raw", "completed")}
    MODELS["stem_network"] = replace(_with(stem, target="completed", part="network"), sources=_SOURCES)
    MODELS["stem_paper"] = Method(stem_paper, few_pairs=False, sources=_SOURCES)
# ridge without what was done for it: the scale of each gene as the logarithm left it; features not standardised in sections
AS_IT_IS = {
    "everything_raw_unscaled": _with(ridge, keys=ALL, target="raw", to_means=False),
    "everything_completed_unscaled": _with(ridge, keys=ALL, target="completed", to_means=False),
    "everything_raw_pooled": replace(PEERS["everything_raw"], standardized=False),
    "everything_completed_pooled": replace(PEERS["everything_completed"], standardized=False),
}
# they know what is measured in the held-out section
YARDSTICKS = {
    "depth": Method(depth),
    "depth_and_image": Method(depth_and_image, few_pairs=False),
    "measured_neighbors": Method(measured_neighbors),
}
CONTROLS = {
    f"{name}_{control}": replace(method, control=control)
    for name, method in {**PEERS, **MODELS}.items()
    for control in ("shuffled", "shifted", "stained")
    if name in ("everything_completed", "mlp_completed", "stem_completed")
}
METHODS = {**PEERS, **MODELS, **AS_IT_IS, **YARDSTICKS, **CONTROLS}
