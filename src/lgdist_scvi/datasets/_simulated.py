"""Simulated Visium slides whose expected expression is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._checks import check_positive_int
from lgdist_scvi.datasets._image import PITCH, appearance, library

_N_PROGRAMMES = 5
_N_CELL_STATES = 3
_COUNTS_PER_GENE = 0.65  # median library size per gene; gives about 70 % zeros
_BLOCK = 1 << 21  # entries simulated in one go: float64 temporaries stay below 100 MB


def simulated_visium(
    n_spots: int = 1000,
    n_genes: int = 200,
    n_samples: int = 1,
    seed: int = 0,
    *,
    n_domains: int = 4,
    image: bool = False,
) -> AnnData:
    r"""Simulate Visium slides with tissue domains, gene programmes and known rates.

    The rate of gene g in spot i is

    .. math:: \rho_{ig} \propto \exp(\beta_g + F_i W_g + D_{d(i) g} + C_i V_g), \quad \sum_g \rho_{ig} = 1

    (genes with and without spatial structure share the library in fixed parts, so that the latter have none at all), with
    smooth programmes F (Gaussian random fields), domains d (smooth regions), and cell composition C, which has no
    spatial structure. A gene follows one programme, marks one domain, or has no spatial structure at all. Counts are
    negative binomial with mean library size times rate; library sizes are log-normal.

    Parameters
    ----------
    n_spots
        Number of spots of all slides together.
    n_genes
        Number of genes.
    n_samples
        Number of slides. They share genes, programmes and domains; their coordinates overlap.
    seed
        Seed; the same arguments give the same data.
    n_domains
        Number of tissue domains.
    image
        Paint an image like H&E of about two megapixels, with nuclei and stroma: how dense and large nuclei are and how red
        stroma is follows from the domain, the same on all slides, and from the first two programmes. Everything else stays the same.

    Returns
    -------
    Annotated data, (n_spots, n_genes), with

    - `X`: counts, CSR float32, between 60 and 90 % zeros;
    - ``layers["rate"]``: expected fraction of the library, float32, dense, rows sum to 1;
    - `obs`: ``"sample"``, ``"domain"``, ``"library_size"`` (expected counts of the spot), ``"in_tissue"``,
      ``"array_row"``, ``"array_col"``; with `image` also ``"cell_density"`` (expected nuclei in 100 x 100 micrometres);
    - `var`: ``"pattern"`` (``"programme_1"``, ..., ``"domain_1"``, ..., ``"none"``), ``"dispersion"`` (the negative
      binomial's inverse dispersion);
    - ``obsm["spatial"]``: pixels, hexagonal lattice with a pitch of 100;
    - ``uns["spatial"]``: image and scale factors of each slide, so that :func:`squidpy.pl.spatial_scatter` draws the
      tissue underneath.

    Raises
    ------
    ValueError
        If a number is not a whole number of at least 1, or there are more slides than spots.
    """
    numbers = {"n_spots": n_spots, "n_genes": n_genes, "n_samples": n_samples, "n_domains": n_domains}
    for name, value in numbers.items():
        check_positive_int(value, name)
    if n_samples > n_spots:
        raise ValueError(f"n_samples={n_samples} slides need at least as many spots, got n_spots={n_spots}")

    rng = np.random.default_rng(seed)
    pattern, loadings = _gene_loadings(n_genes, n_domains, rng)
    slides = [_slide(len(part), n_domains, rng) for part in np.array_split(np.arange(n_spots), n_samples)]
    obs = pd.concat([slide[0] for slide in slides], ignore_index=True)
    samples = np.repeat([f"slide_{i + 1}" for i in range(n_samples)], [len(slide[0]) for slide in slides])
    domains = obs["domain"].to_numpy()
    names = [f"domain_{i + 1}" for i in range(n_domains)]
    obs["domain"] = pd.Categorical.from_codes(domains, names)
    obs.insert(0, "sample", pd.Categorical(samples, pd.unique(samples)))
    obs["library_size"] = _COUNTS_PER_GENE * n_genes * rng.lognormal(sigma=0.45, size=n_spots)
    obs.index = [f"{s}_{r}x{c}" for s, r, c in zip(samples, obs["array_row"], obs["array_col"], strict=True)]

    scores = np.hstack(
        [
            np.concatenate([slide[2] for slide in slides]),
            np.eye(n_domains)[domains],
            rng.normal(size=(n_spots, _N_CELL_STATES)),
            np.ones((n_spots, 1)),  # for the base level
        ]
    )
    dispersion = rng.lognormal(np.log(8), 0.4, size=n_genes)
    counts, rate = _counts(scores, loadings, pattern == "none", obs["library_size"].to_numpy(), dispersion, rng)

    looks = appearance(domains, scores, n_domains) if image else None
    if image:
        obs["cell_density"] = looks["density"]
        rng = np.random.default_rng([seed, 1])
    coordinates = np.concatenate([slide[1] for slide in slides])
    spatial = {}
    for name in pd.unique(samples):
        spots = samples == name
        its_looks = None if looks is None else {what: values[spots] for what, values in looks.items()}
        spatial[name] = library(coordinates[spots], domains[spots], its_looks, rng)
    width = len(str(n_genes))
    var = pd.DataFrame(
        {"pattern": pd.Categorical(pattern), "dispersion": dispersion},
        index=[f"gene_{i + 1:0{width}d}" for i in range(n_genes)],
    )
    return AnnData(
        X=counts, obs=obs, var=var, layers={"rate": rate}, obsm={"spatial": coordinates}, uns={"spatial": spatial}
    )


def _gene_loadings(n_genes: int, n_domains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw what each gene follows: its name, and its loadings on programmes, domains, cell states and the base level."""
    kind = rng.permutation(np.arange(n_genes) % 10)  # 4 of 10 follow a programme, 3 mark a domain, 3 do neither
    programme = rng.integers(_N_PROGRAMMES, size=n_genes)
    domain = rng.integers(n_domains, size=n_genes)
    genes = np.arange(n_genes)

    on_programmes = rng.normal(0, 0.1, size=(_N_PROGRAMMES, n_genes))
    on_programmes[programme, genes] = rng.choice([-1, 1], size=n_genes) * rng.uniform(0.5, 1.2, size=n_genes)
    on_programmes[:, kind >= 4] = 0
    on_domains = np.zeros((n_domains, n_genes))
    on_domains[domain, genes] = rng.uniform(0.7, 2.2, size=n_genes)
    on_domains[:, (kind < 4) | (kind >= 7)] = 0
    on_states = rng.normal(0, 0.3, size=(_N_CELL_STATES, n_genes)) * (rng.random(n_genes) < 0.5)
    base = rng.normal(0, 1.3, size=(1, n_genes))

    pattern = np.where(kind < 4, [f"programme_{i + 1}" for i in programme], [f"domain_{i + 1}" for i in domain])
    pattern = np.where(kind < 7, pattern, "none")
    return pattern, np.vstack([on_programmes, on_domains, on_states, base])


def _slide(n_spots: int, n_domains: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Lay out one slide: array positions and domains, pixel coordinates, programme scores."""
    # the tissue is a bent disc: of a lattice that is surely large enough, the spots nearest to its middle
    half = int(np.ceil(np.sqrt(n_spots))) + 2
    row, half_column = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
    column = 2 * half_column + row % 2
    x, y = column * PITCH / 2, row * PITCH * np.sqrt(3) / 2
    angle, bend = np.arctan2(y, x), rng.uniform(0, 2 * np.pi, size=2)
    outline = 1 + 0.15 * np.cos(2 * angle + bend[0]) + 0.08 * np.cos(3 * angle + bend[1])
    inside = np.sort(np.argsort(np.hypot(x, y) / outline, kind="stable")[:n_spots])
    row, column = row[inside] - row[inside].min(), column[inside] - column[inside].min()
    xy = np.column_stack([x[inside], y[inside]])
    xy += 1.5 * PITCH - xy.min(axis=0)

    radius = PITCH * np.sqrt(n_spots * np.sqrt(3) / 2 / np.pi)
    length = np.clip(0.35 * radius, 2 * PITCH, 12 * PITCH)
    domain = _smooth_fields(xy, n_domains, 1.3 * length, rng).argmax(axis=1)
    obs = pd.DataFrame({"domain": domain, "in_tissue": 1, "array_row": row, "array_col": column})
    return obs, xy, _smooth_fields(xy, _N_PROGRAMMES, length, rng)


def _smooth_fields(xy: np.ndarray, n_fields: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian random fields of unit variance by random Fourier features (Rahimi and Recht 2007), (n_spots, n_fields)."""
    n_waves = 100
    fields = np.empty((len(xy), n_fields))
    for field in range(n_fields):
        waves = rng.normal(0, 1 / length, size=(2, n_waves))
        phases = rng.uniform(0, 2 * np.pi, size=n_waves)
        fields[:, field] = np.cos(xy @ waves + phases).sum(axis=1) * np.sqrt(2 / n_waves)
    return fields


def _counts(
    scores: np.ndarray,
    loadings: np.ndarray,
    unstructured: np.ndarray,
    library: np.ndarray,
    dispersion: np.ndarray,
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Draw negative binomial counts (gamma-Poisson) by blocks of spots; give them and their rates."""
    n_spots, n_genes = len(scores), loadings.shape[1]
    level = np.exp(loadings[-1])
    groups = [genes for genes in (unstructured, ~unstructured) if genes.any()]
    rate = np.empty((n_spots, n_genes), dtype=np.float32)
    blocks = []
    step = max(1, _BLOCK // n_genes)
    for start in range(0, n_spots, step):
        block = slice(start, start + step)
        expected = np.exp(scores[block] @ loadings)
        # each row sums to 1; normalised together, all genes would mirror the sum of the structured ones
        for genes in groups:
            expected[:, genes] *= level[genes].sum() / level.sum() / expected[:, genes].sum(axis=1, keepdims=True)
        rate[block] = expected
        expected *= library[block, None]
        mean = rng.standard_gamma(np.broadcast_to(dispersion, expected.shape)) * expected / dispersion
        blocks.append(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr")), rate
