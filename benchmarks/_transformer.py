"""A masked transformer over a spot and its neighbours, in the manner of SpaCKLE (Cárdenas et al. 2025).

The strongest simple network to compare with: no latent space, no diffusion, no uncertainty. Written from its description; no
code of SpaCKLE is used. Unlike there, attention runs over the spots of a neighbourhood, and what is missing is marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import shortest_path
from torch import nn

from lgdist_scvi._units import log1p_cp10k, to_cp10k  # noqa: PLC2701  the one scale

_HELD_OUT = 0.05  # entries that training never sees; they choose the step at which it stops
_VISIBLE_WEIGHT = 0.1  # of an entry that the network sees, against 1 for a hidden one
_HIDDEN_SPOTS = 0.1  # share of the spots, in training, of which everything is hidden
_FEW_MOLECULES = 1000  # per spot: below, more is hidden in training, so that the network relies on no single entry
_VALIDATE_EVERY = 50
_VALIDATION_SPOTS = 512


class MaskedTransformer(nn.Module):
    """Expression of a spot from the visible entries of itself and its neighbours.

    A token is the projection of [standardised value * visible, visible] of one spot; the first token is the centre.
    """

    def __init__(self, n_genes: int, n_hidden: int = 256, n_layers: int = 3, n_heads: int = 4, dropout: float = 0.1):
        super().__init__()
        self.embed = nn.Linear(2 * n_genes, n_hidden)
        self.role = nn.Parameter(torch.randn(2, n_hidden) * 0.02)
        layer = nn.TransformerEncoderLayer(
            n_hidden, n_heads, 2 * n_hidden, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(n_hidden), enable_nested_tensor=False)
        self.head = nn.Linear(n_hidden, n_genes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Standardised deviation from the gene mean, or logarithm of the ratio to the gene's mean rate, (batch, n_genes)."""
        centre = self.embed(torch.cat([batch.values * batch.visible, batch.visible], dim=-1)) + self.role[0]
        neighbors = torch.cat([batch.neighbor_values * batch.neighbor_visible, batch.neighbor_visible], dim=-1)
        neighbors = (self.embed(neighbors) + self.role[1])[batch.index]
        tokens = torch.cat([centre[:, None], neighbors], dim=1)
        padding = torch.cat([torch.zeros_like(batch.absent[:, :1]), batch.absent], dim=1)
        return self.head(self.encoder(tokens, src_key_padding_mask=padding)[:, 0])


@dataclass
class Batch:
    """Centres (batch, n_genes), each neighbour once (n, n_genes), and which neighbour is whose (batch, k)."""

    values: torch.Tensor
    visible: torch.Tensor
    neighbor_values: torch.Tensor
    neighbor_visible: torch.Tensor
    index: torch.Tensor
    absent: torch.Tensor


class _Slide:
    """Standardised values of a slide, what is observed of it, and its neighbourhoods."""

    def __init__(self, adata: ad.AnnData, mask_layer: str | None, size_factor_key: str | None, graph_key: str, device):
        counts = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
        observed = np.ones(counts.shape, bool) if mask_layer is None else np.asarray(adata.layers[mask_layer], bool)
        counts = np.where(observed, counts, 0).astype(np.float64)
        library = counts.sum(1) if size_factor_key is None else adata.obs[size_factor_key].to_numpy(np.float64)
        values = log1p_cp10k(counts, library).astype(np.float64)
        library = np.where(library > 0, library, np.median(library[library > 0]))[:, None]
        n_observed = np.maximum(observed.sum(0), 1)
        mean = (values * observed).sum(0) / n_observed
        scale = np.maximum(np.sqrt(((values - mean) ** 2 * observed).sum(0) / n_observed), 0.1)
        rate = np.maximum(counts.sum(0), 0.1) / library.sum()

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        self.zeros_are_data = mask_layer is None
        self.n_obs, self.n_genes = counts.shape
        self.counts, self.observed, self.library = tensor(counts), tensor(observed), tensor(library)
        self.mean, self.scale, self.log_rate = tensor(mean), tensor(scale), tensor(np.log(rate / rate.sum()))
        self.values = (tensor(values) - self.mean) / self.scale
        graph = sparse.csr_matrix(adata.obsp[graph_key])
        self.neighbors = np.full((self.n_obs, max(1, int(np.diff(graph.indptr).max(initial=0)))), -1)
        for spot in range(self.n_obs):
            neighbors = graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]]
            self.neighbors[spot, : len(neighbors)] = neighbors
        self._reach_further(graph, observed.any(axis=1))

    def _reach_further(self, graph: sparse.csr_matrix, has_content: np.ndarray) -> None:
        """Give spots without an observed neighbour the nearest observed spots along the graph: it is not trained on nothing."""
        lonely = np.flatnonzero(graph.astype(bool) @ has_content.astype(np.int64) == 0)
        if not len(lonely):
            return
        hops = shortest_path(graph, unweighted=True, indices=lonely)
        hops[:, ~has_content] = np.inf
        hops[np.arange(len(lonely)), lonely] = np.inf
        nearest = np.argsort(hops, axis=1, kind="stable")[:, : self.neighbors.shape[1]]
        reached = np.isfinite(np.take_along_axis(hops, nearest, axis=1))
        self.neighbors[lonely] = np.where(reached, nearest, -1)

    def batch(self, spots: np.ndarray, visible: torch.Tensor, shown: torch.Tensor) -> Batch:
        """Centres with `visible` (batch, n_genes), neighbours with what is `shown` (n_obs, n_genes)."""
        neighbors = self.neighbors[spots]
        unique, index = np.unique(neighbors, return_inverse=True)
        unique = np.maximum(unique, 0)  # a place without a neighbour: any row does, it is not attended to
        device = self.values.device
        return Batch(
            self.values[spots],
            visible,
            self.values[unique],
            shown[unique],
            torch.as_tensor(index.reshape(neighbors.shape), device=device),
            torch.as_tensor(neighbors < 0, device=device),
        )

    def loss(self, output: torch.Tensor, spots: np.ndarray, weight: torch.Tensor) -> torch.Tensor:
        """Squared error in log1p(CP10K), or Poisson loss of the counts, averaged with weights (batch, n_genes)."""
        if self.zeros_are_data:
            log_expected = torch.log_softmax(self.log_rate + output, dim=-1) + torch.log(self.library[spots])
            entries = torch.exp(log_expected) - self.counts[spots] * log_expected
        else:
            entries = ((output - self.values[spots]) * self.scale) ** 2
        return (entries * weight).sum() / weight.sum().clamp(min=1e-6)

    def expression(self, output: torch.Tensor) -> torch.Tensor:
        """log1p(CP10K)."""
        if self.zeros_are_data:
            return torch.log1p(to_cp10k(torch.softmax(self.log_rate + output, dim=-1)))
        return self.mean + self.scale * output


def masked_transformer(
    adata: ad.AnnData,
    mask_layer: str | None = None,
    size_factor_key: str | None = None,
    graph_key: str = "spatial_connectivities",
    seed: int = 0,
    n_steps: int = 1500,
    batch_size: int = 128,
    lr: float = 1e-3,
    n_hidden: int = 256,
) -> np.ndarray:
    """Train on a slide and predict every entry of it.

    Each step hides a further U(0, 0.7) of the observed entries of each centre (up to 0.95 where a spot has few molecules) and
    scores mostly those: squared error of log1p(CP10K) with a mask, Poisson loss where zeros are data. The weights are those of
    the step with the lowest loss on entries held out.

    Parameters
    ----------
    adata
        Raw counts in `X`, (n_obs, n_vars), with a neighbourhood graph.
    mask_layer
        Layer that is True where an entry is observed; ``None``: zeros are data.
    size_factor_key
        Column of `obs` with library sizes; ``None``: the sum over the genes.

    Returns
    -------
    log1p(CP10K), float32, (n_obs, n_vars)
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slide = _Slide(adata, mask_layer, size_factor_key, graph_key, device)
    few = slide.zeros_are_data and float(slide.counts.sum(1).median()) < _FEW_MOLECULES
    hide_up_to = 0.95 if few else 0.7
    held_out = slide.observed * (torch.rand_like(slide.observed) < _HELD_OUT)
    shown = slide.observed - held_out
    network = MaskedTransformer(slide.n_genes, n_hidden).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_steps, pct_start=0.1)

    with_entries = np.flatnonzero((shown.sum(1) > 0).cpu().numpy())
    validation = rng.permutation(with_entries)[:_VALIDATION_SPOTS]
    lowest, best = np.inf, None
    for step in range(n_steps + 1):
        if step % _VALIDATE_EVERY == 0 or step == n_steps:
            error = _validation_loss(network, slide, validation, shown, held_out)
            if error < lowest:
                lowest, best = error, {name: value.clone() for name, value in network.state_dict().items()}
        if step == n_steps:
            break
        network.train()
        spots = rng.choice(with_entries, min(batch_size, len(with_entries)), replace=False)
        part = torch.rand(len(spots), 1, device=device) * hide_up_to
        part = torch.where(torch.rand_like(part) < _HIDDEN_SPOTS, torch.ones_like(part), part)
        hidden = (torch.rand(len(spots), slide.n_genes, device=device) < part).float()
        visible = shown[spots] * (1 - hidden)
        weight = shown[spots] * (hidden + _VISIBLE_WEIGHT * (1 - hidden))
        loss = slide.loss(network(slide.batch(spots, visible, shown)), spots, weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if best is not None:
        network.load_state_dict(best)
    return _predict(network, slide)


@torch.no_grad()
def _validation_loss(
    network: MaskedTransformer, slide: _Slide, spots: np.ndarray, shown: torch.Tensor, held_out: torch.Tensor
) -> float:
    network.eval()
    total = weight = 0.0
    for block in np.array_split(spots, max(1, len(spots) // 256)):
        scored = held_out[block]
        loss = slide.loss(network(slide.batch(block, shown[block], shown)), block, scored)
        total, weight = total + float(loss * scored.sum()), weight + float(scored.sum())
    return total / max(weight, 1.0)


@torch.no_grad()
def _predict(network: MaskedTransformer, slide: _Slide) -> np.ndarray:
    """Predict from everything that is observed."""
    network.eval()
    blocks = np.array_split(np.arange(slide.n_obs), max(1, slide.n_obs // 256))
    outputs = [network(slide.batch(block, slide.observed[block], slide.observed)) for block in blocks]
    return torch.cat([slide.expression(output) for output in outputs]).cpu().numpy()
