"""Checks of input: each failure is one sentence that a user understands."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

_SAME_FEATURES = 1e-2  # of the size of features: other machines and versions of torch differ less, other weights more
_BLOCK = 1 << 22  # entries looked at in one go: temporaries stay below 40 MB


def as_floats(values: Any) -> np.ndarray:
    """Numbers as float64.

    Raises
    ------
    TypeError, ValueError
        If they are none: text, dates, durations, complex numbers.
    """
    values = np.asarray(values)
    if values.dtype.kind in "cmM":  # numpy would drop the imaginary part, and count seconds
        raise TypeError(f"{values.dtype} are no real numbers")
    return values.astype(np.float64)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse an argument that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def either(**words: Any) -> Any:
    """The value of an argument that has two names; two values that differ are refused (ValueError)."""
    given = {name: value for name, value in words.items() if value is not None}
    if len({repr(value) for value in given.values()}) > 1:
        named = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"{named} are two words for the same; pass one of them")
    return next(iter(given.values()), None)


def mapping(value: Any) -> Mapping[Any, Any]:
    """What should be a mapping, such as an entry of `uns`; an empty one if it is anything else."""
    return value if isinstance(value, Mapping) else {}


@contextmanager
def needs(message: str) -> Iterator[None]:
    """Say of a package that is imported here, and may be absent, what it is for and how to get it (ImportError)."""
    try:
        yield
    except ImportError as error:
        raise ImportError(message) from error


def list_names(names: Iterable[Any], limit: int = 5) -> str:
    """Quote the first `limit` names, and say how many were left out."""
    names = list(names)
    listed = ", ".join(repr(str(name)) for name in names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit:,} more"


def did_you_mean(unknown: Iterable[Any], available: Iterable[Any]) -> str:
    """Suggest the available name that the first unknown one resembles, as a clause to put before a remedy.

    Another case comes before another spelling. Empty if nothing resembles it.
    """
    lower = {str(name).lower(): str(name) for name in available}
    for name in unknown:
        if close := difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.8):
            return f"did you mean {lower[close[0]]!r}? "
    return ""


def require_key(container: Any, key: str | None, where: str, remedy: str = "") -> None:
    """Refuse a key that is not in a mapping or data frame (KeyError), and list those that are.

    `where` names the container (``"adata.obsm"``), and `remedy` says what to call or pass, as a clause.
    """
    # anndata 0.13 lists X as layer None
    available = [name for name in container if name is not None]
    if key is not None and key in available:
        return
    message = f"{key!r} not found in {where}; available: {list_names(available, 20) or 'none'}"
    raise KeyError(f"{message}; {remedy}" if remedy else message)


def check_new_key(name: Any, argument: str) -> None:
    """Refuse a name for a new layer or matrix, which the user calls `argument`, that would leave a file unreadable.

    Raises ValueError if `name` is no string, empty, or holds a slash (HDF5 and zarr take it for a folder).
    """
    if not isinstance(name, str):
        raise ValueError(f"{argument} must be the name to write, got {name!r}")
    if not name.strip(". ") or "/" in name or "\0" in name:
        raise ValueError(f"{argument}={name!r} is no name that an .h5ad or zarr file can hold; give one without '/'")


def check_has_spots(adata: AnnData) -> None:
    """Refuse data without spots (ValueError)."""
    if not adata.n_obs:
        raise ValueError("adata has 0 spots; was it filtered too strictly (sc.pp.filter_cells)?")


def is_synthetic(adata: AnnData) -> np.ndarray:
    """Spots that :meth:`C2LST.synthetic_pairs` made, bool, (n_obs,).

    They are known by ``obs["synthetic"]``, and by their names where a concatenation has lost that column.
    """
    synthetic = np.asarray(adata.obs_names.astype(str).str.match(r"synthetic_\d+"))
    if "synthetic" in adata.obs:
        synthetic |= np.asarray(adata.obs["synthetic"]).astype(str) == "True"
    return synthetic


def check_not_synthetic(adata: AnnData, allow_synthetic: bool = False) -> None:
    """Refuse synthetic spots, unless they are wanted.

    Raises
    ------
    ValueError
        If there are any; says how to leave them out.
    """
    if not allow_synthetic and (n := int(is_synthetic(adata).sum())):
        raise ValueError(
            f"{n:,} of {adata.n_obs:,} spots are synthetic (adata.obs['synthetic']): their patches were generated and measure nothing; "
            "leave them out, or pass allow_synthetic=True"
        )


def check_positive_int(value: Any, name: str) -> None:
    """Refuse anything but a whole number of at least 1 (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _blocks(values: np.ndarray) -> Iterable[np.ndarray]:
    step = max(1, _BLOCK // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, values.shape[0], step):
        yield values[start : start + step]


def check_counts(
    x: np.ndarray | sparse.spmatrix | sparse.sparray, where: str, remedy: Callable[[], str] | None = None
) -> None:
    """Refuse what cannot be raw counts, dense or sparse; floats are fine if their values are whole numbers.

    `where` names the matrix for the message (``"adata.X"``), and `remedy` says which counts to pass instead.

    Raises ValueError if entries are not numbers, NaN, infinite, negative or not whole; says how many.
    """
    refuse_bad_counts(bad_counts(x, where), x.shape, where, remedy)


def bad_counts(x: np.ndarray | sparse.spmatrix | sparse.sparray, where: str) -> Counter[str]:
    """Number of entries of each kind that cannot be counts; refused (ValueError) if none of them can, by the dtype."""
    values = x.data if sparse.issparse(x) else np.asarray(x)
    if values.dtype.kind not in "buif":
        raise ValueError(f"{where} has dtype {values.dtype}; raw counts must be integers or floats")
    n_bad: Counter[str] = Counter()
    if values.dtype.kind in "bu":
        return n_bad
    for block in _blocks(values):
        if block.dtype.kind == "f":
            finite = np.isfinite(block)
            if not finite.all():
                n_nan = int(np.isnan(block).sum())
                n_bad["NaN"] += n_nan
                n_bad["infinite"] += int(finite.size - finite.sum()) - n_nan
                block = block[finite]
            n_bad["not whole numbers"] += int(np.count_nonzero(block != np.rint(block)))
        n_bad["negative"] += int(np.count_nonzero(block < 0))
    return n_bad


def refuse_bad_counts(
    n_bad: Counter[str], shape: tuple[int, int], where: str, remedy: Callable[[], str] | None = None
) -> None:
    """Refuse a matrix of this shape if any of its entries cannot be counts (ValueError); see :func:`check_counts`."""
    for kind in ("NaN", "infinite", "negative", "not whole numbers"):
        if n := n_bad[kind]:
            instead = "pass raw counts" if remedy is None else remedy()
            means = {
                "NaN": "replace them by 0, and if they are missing values write a bool layer that is False there (mask_layer=...)",
                "infinite": instead,
                "negative": f"scaled or corrected values are not counts: {instead}",
                "not whole numbers": f"the values look normalised or corrected: {instead}",
            }
            raise ValueError(f"{n:,} of {int(np.prod(shape)):,} entries of {where} are {kind}; {means[kind]}")


def check_mask(
    blocks: Iterable[np.ndarray], dtype: np.dtype, shape: tuple[int, int], expected: tuple[int, int], where: str
) -> None:
    """Refuse what cannot be a mask of data of the `expected` shape; numbers are fine if they are 0 and 1.

    `blocks` hold its values, all of them or those that are stored, and `where` names the matrix for the message
    (``"adata.layers['observed']"``).

    Raises ValueError if the shape or the dtype is another one, or entries are neither 0 nor 1; says how many.
    """
    if tuple(shape) != expected:
        raise ValueError(f"{where} has shape {tuple(shape)}; a mask has the shape of adata, {expected}")
    if dtype.kind not in "buif":
        raise ValueError(f"{where} has dtype {dtype}; a mask is bool, True where an entry is observed")
    n_bad = 0
    for values in blocks:
        if dtype.kind != "b":
            n_bad += sum(int(np.count_nonzero((block != 0) & (block != 1))) for block in _blocks(values))
    if n_bad:
        raise ValueError(
            f"{n_bad:,} of {int(np.prod(shape)):,} entries of {where} are neither 0 nor 1; "
            "a mask is bool, True where an entry is observed (see pp.observed_mask)"
        )


def check_unique_names(adata: AnnData) -> None:
    """Refuse duplicated spot or gene names (ValueError); says how many and which call repairs them."""
    for axis, what, names in (("obs", "spot", adata.obs_names), ("var", "gene", adata.var_names)):
        if not names.is_unique:
            duplicated = names[names.duplicated()].unique()
            raise ValueError(
                f"{len(duplicated):,} {what} name{'s' if len(duplicated) > 1 else ''} in adata.{axis}_names occur more "
                f"than once ({list_names(duplicated)}); call adata.{axis}_names_make_unique()"
            )


def check_encoder(trained: Mapping[str, Any], given: Mapping[str, Any], key: str) -> None:
    """Refuse features in ``obsm[key]`` of another encoder than those that a model was trained on (ValueError).

    Both are records of :func:`~lgdist_scvi.pp.image_features`: encoder, weights and treatment of patches must be the
    same.
    """
    for what in ("encoder", "n_features", "size", "augment"):
        ours, theirs = trained.get(what), given.get(what)
        if ours != theirs:
            raise ValueError(
                f"adata.obsm[{key!r}] was made with {what}={theirs!r}, but the model was trained on {what}={ours!r}; "
                f"call pp.image_features(adata, ..., key_added={key!r}) as for the training data"
            )
    ours, theirs = np.asarray(trained["probe"]), np.asarray(given["probe"])
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > _SAME_FEATURES * np.abs(ours).max():
        raise ValueError(
            f"adata.obsm[{key!r}] was made with an encoder {given['encoder']!r} of other weights than the one of the training "
            f"data; call pp.image_features(adata, ..., key_added={key!r}) with the same weights"
        )
