"""The manager of registered data: what was read once is kept, and read again only where the data look changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scvi.data import AnnDataManager

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import get_obs
from lgdist_scvi._stored import new_digest, update_digest
from lgdist_scvi.data._dataset import NeighborhoodDataset, registered_anndata


class NeighborhoodManager(AnnDataManager):
    """An :class:`~scvi.data.AnnDataManager` whose batches carry the neighbours of their spots.

    `fingerprint` is the hash of the data when they were registered by `setup_anndata`; ``None`` of other data that a
    model is asked about.
    """

    fingerprint: str | None = None
    _last: tuple[str, NeighborhoodDataset] | None = None  # what was read, and the look of the data then

    def _read(self) -> NeighborhoodDataset:
        return NeighborhoodDataset(self)

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """Create a :class:`NeighborhoodDataset`, restricted to `indices` if given.

        The other arguments are part of scvi-tools' signature; a neighbourhood is always loaded whole and dense. Data
        that are not those that were registered are refused (ValueError). They are read and checked again only if they
        look changed: what is in memory is compared as a whole, matrices on disk by their shape and 16 runs of rows.
        """
        try:
            look = self._look()
            if self._last is None or self._last[0] != look:
                self._last = None
                self._last = look, self._read()
        except (KeyError, ValueError) as error:
            if self.fingerprint is None:
                raise
            raise ValueError(
                f"adata was changed after setup_anndata, and cannot be read any more: {error.args[0]}"
            ) from error
        dataset = self._last[1]
        if self.fingerprint not in (None, dataset.fingerprint):
            raise ValueError(
                "adata was changed after setup_anndata: its spots, counts, mask, library sizes, image features, slides, graph or coordinates "
                "are others now; restore them, call setup_anndata again and train a new model, or pass a copy as adata to ask about it as new data"
            )
        return dataset.create_torch_dataset(indices)

    def register_now(self) -> NeighborhoodDataset:
        """Read the data, check what no single field can see, and remember what they are."""
        look = self._look()
        dataset = self._read()
        self.fingerprint, self._last = dataset.fingerprint, (look, dataset)
        return dataset

    def _look(self) -> str:
        """Hash by which a change of the registered data shows, without a pass over what is on disk."""
        adata, digest = registered_anndata(self), new_digest()
        obs = get_obs(adata)
        update_digest(digest, np.asarray(adata.var_names, dtype=str))
        columns = {"array_row", "array_col", self.get_state_registry(keys.COORDINATES)["sample_key"]}
        for field in self.data_registry.values():
            if field.attr_name == "obs":
                columns.add(field.attr_key)
                continue
            values = adata.X if field.attr_name == "X" else getattr(adata, field.attr_name).get(field.attr_key)
            if values is not None:  # else told when it is read
                update_digest(digest, values)
        for column in sorted(columns & set(obs)):
            digest.update(column.encode())
            update_digest(digest, pd.util.hash_pandas_object(obs[column], index=False).to_numpy())
        return digest.hexdigest()
