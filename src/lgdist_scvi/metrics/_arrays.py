"""Arguments of the scores: arrays, sparse matrices and data frames of one shape."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

Matrix: TypeAlias = np.ndarray | sparse.spmatrix | sparse.sparray | pd.DataFrame


def check_alike(**matrices: Matrix) -> None:
    """Refuse matrices of different shapes, and data frames with other spots or genes, or another order (ValueError)."""
    (first, reference), *others = matrices.items()
    for name, matrix in others:
        if matrix.shape != reference.shape:
            raise ValueError(f"{name} has shape {matrix.shape} and {first} {reference.shape}; they must agree")
    frames = {name: matrix for name, matrix in matrices.items() if isinstance(matrix, pd.DataFrame)}
    for name, frame in frames.items():
        first, reference = next(iter(frames.items()))
        for what, labels, expected in zip(("spots", "genes"), frame.axes, reference.axes, strict=True):
            if not labels.equals(expected):
                raise ValueError(
                    f"the {what} of {name} and {first} differ or are ordered differently; "
                    f"call {name}.reindex(index={first}.index, columns={first}.columns)"
                )


def dense(matrix: Matrix) -> np.ndarray:
    """Return a dense array."""
    if isinstance(matrix, pd.DataFrame):
        return matrix.to_numpy()
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def scored_entries(mask: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries to score; a mask that is not bool or names none is refused (ValueError)."""
    mask = dense(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask has dtype {mask.dtype}; expected bool, True for the entries to score")
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("mask names no entry to score; hide some first with pp.hold_out(adata)")
    return rows, columns


def take(matrix: Matrix, rows: np.ndarray, columns: np.ndarray, name: str) -> np.ndarray:
    """Values at the scored entries, float64; NaN and infinite ones are refused (ValueError)."""
    if sparse.issparse(matrix):
        values = np.asarray(matrix.tocsr()[rows, columns]).ravel()
    else:
        values = dense(matrix)[rows, columns]
    values = values.astype(np.float64)
    if n_bad := int((~np.isfinite(values)).sum()):
        raise ValueError(
            f"{n_bad:,} of {len(values):,} scored entries of {name} are NaN or infinite; "
            "predict every scored gene, or leave those entries out of the mask"
        )
    return values
