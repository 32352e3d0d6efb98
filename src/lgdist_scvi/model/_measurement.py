"""What a measurement would show: draws from the posterior predictive distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_positive_int
from lgdist_scvi._units import COUNTS_PER
from lgdist_scvi.model._arguments import seed_or_default, spots_at
from lgdist_scvi.model._prediction import PredictionMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from sparse import GCXS


class MeasurementMixin(PredictionMixin):
    """Simulated measurements of :class:`~lgdist_scvi.LGDiST`."""

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        seed: int | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        silent: bool = True,
    ) -> GCXS:
        """Draw the counts that a second measurement as deep as the first would show.

        A latent is sampled, decoded, and measured with the likelihood's noise, which training brings to the size seen on
        set-aside entries. For :class:`scvi.criticism.PosteriorPredictiveCheck`, :func:`lgdist_scvi.metrics.crps` and
        :func:`lgdist_scvi.metrics.energy_score`. A model of captured values gives counts of at least 1: what would be seen,
        given that the gene is captured.

        Parameters
        ----------
        n_samples
            Number of draws.
        seed
            As in :meth:`get_completed_expression`; draws are a function of the seed, the spot's row and `n_samples`.
        adata, indices, gene_list, n_steps, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Counts, (n_obs, n_genes), or (n_obs, n_genes, n_samples) if ``n_samples > 1``, as scvi-tools has them.

        Raises
        ------
        ValueError
            If the model is not trained, or an argument is out of range.
        KeyError
            If genes are not registered.
        """
        from sparse import GCXS

        check_positive_int(n_samples, "n_samples")
        adata = self._prepare(adata)
        positions, names = self._genes(gene_list)
        rows, seed = spots_at(adata, indices), seed_or_default(seed)
        counts = np.empty((len(rows), len(names), n_samples), dtype=np.float32)
        for place, tensors, _ in self._batches(adata, rows, batch_size, silent):
            condition = self.module.condition(tensors)
            latents = self._latents(condition, tensors, n_samples, seed, n_steps)
            expected = torch.stack(
                [self._expected(latent, condition, tensors, self._modelled) for latent in latents.unbind(1)], dim=1
            )
            drawn = self._measured(expected, tensors, seed).cpu().numpy()
            counts[place] = drawn[:, :, positions].transpose(0, 2, 1)
        return GCXS.from_numpy(counts if n_samples > 1 else counts[:, :, 0])

    def _measured(self, expected: torch.Tensor, tensors: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
        """Counts drawn about what :meth:`_expected` gives, both (batch, n_samples, n_genes); a function of seed and spot."""
        vae = self.module.vae
        per_count = (COUNTS_PER / vae.usable(tensors[keys.LIBRARY]))[:, None]
        mean = expected / per_count if vae.counts_are_modelled else expected
        generator = torch.Generator(expected.device)
        drawn = torch.empty_like(mean)
        for row, spot in enumerate(tensors[keys.SPOT].flatten().tolist()):
            # not the stream of the latents' noise
            state = np.random.SeedSequence([seed, int(spot), 1]).generate_state(1, np.uint64)[0]
            drawn[row] = vae.likelihood.sample(mean[row], generator=generator.manual_seed(int(state) >> 1))
        if vae.counts_are_modelled:
            return drawn
        return torch.round(torch.expm1(drawn) / per_count).clamp(min=1.0)
