"""Steps that the commands share: read and choose, train, write; and ``lgdist complete``, which is no more than they."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi._checks import mapping
from lgdist_scvi._units import library_size

_FEWEST_COUNTS = 200  # of a spot; a tenth of the median where that is less


class UserError(Exception):
    """Input that cannot be used, said in one sentence."""


@contextmanager
def refused() -> Iterator[None]:
    """Turn what is refused into :class:`UserError`."""
    try:
        yield
    except (ImportError, KeyError, OSError, ValueError) as error:
        # str() of a KeyError quotes its message
        raise UserError(error.args[0] if isinstance(error, KeyError) and error.args else error) from error


def say(sentence: str) -> None:
    """Announce a step."""
    print(f"\n{sentence}", flush=True)


def complete(arguments: argparse.Namespace) -> str:
    """Train on a slide and write it with completed layers; give a sentence about the file."""
    with refused():
        check_output(arguments.output.parent, arguments.output, arguments.input)
        if arguments.output.suffix != ".h5ad":
            raise ValueError(f"{str(arguments.output)!r} is no name for the result; it must end in .h5ad")
        adata = read(arguments)
        adata, setup = choose(adata, arguments)
        setup["mask_layer"] = arguments.mask_layer
        model = set_up(adata, setup)
    check_writable(adata, arguments.output)
    complete_slide(model, arguments, observed=arguments.observed, fill=arguments.fill, genes=arguments.genes)
    write(arguments.output, lambda file: adata.write_h5ad(file, compression="gzip"))
    return f"{arguments.output} holds the completed slide."


def complete_slide(model: LGDiST, arguments: argparse.Namespace, **question: Any) -> None:
    """Train a model and complete its slide."""
    say("Training on all molecules.")
    model.train(max_epochs=arguments.max_epochs)
    say("Completing the slide, with standard deviations and prediction intervals.")
    with refused():
        model.complete(**question)
    provenance = model.adata.layers["completed_provenance"]
    print(f"{np.isin(provenance, (1, 2)).sum():,} of {provenance.size:,} entries were filled.")


# ---- input


def read(arguments: argparse.Namespace) -> AnnData:
    """Read the slide, with counts in `X`, and settle which column names its slides."""
    say(f"Reading {arguments.input}.")
    names = ("layer", "sample_key", "spatial_key", "table", "modality", "bin_size")
    adata = datasets.read(arguments.input, **{name: getattr(arguments, name) for name in names})
    if arguments.sample_key is None and "sample" in adata.obs:
        arguments.sample_key = "sample"
    if arguments.layer is not None:
        adata.X = adata.layers[arguments.layer]
    if arguments.sample_key is not None and adata.obs[arguments.sample_key].nunique() < 2:
        arguments.sample_key = None
    if "completed" in adata.layers and "provenance" not in mapping(adata.uns.get("completed")):
        raise ValueError("adata.layers['completed'] would be written over; rename it first")
    return adata


def choose(adata: AnnData, arguments: argparse.Namespace) -> tuple[AnnData, dict[str, str | None]]:
    """Leave poor spots out and keep the most spatially associated genes; give arguments of `setup_anndata`."""
    n_spots, n_genes = adata.shape
    sample_key, spatial_key = arguments.sample_key, arguments.spatial_key
    totals = library_size(adata.X)
    fewest = min(_FEWEST_COUNTS, int(np.median(totals) / 10)) if n_spots else 0
    adata = adata[totals >= fewest].copy()
    n_kept = min(arguments.n_genes, n_genes)
    pp.select_genes(adata, n_targets=min(128, n_kept), n_genes=n_kept, sample_key=sample_key, spatial_key=spatial_key)
    if n_genes > n_kept:
        adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    slides = 1 if sample_key is None else adata.obs[sample_key].nunique()
    zeros = 1 - np.count_nonzero(adata.X.data if sparse.issparse(adata.X) else adata.X) / (adata.n_obs * adata.n_vars)
    print(
        f"{n_spots:,} spots and {n_genes:,} genes on {slides} slide{'s' * (slides > 1)}. Kept: {adata.n_obs:,} spots with "
        f"at least {fewest} counts, and {'all' if adata.n_vars == n_genes else 'the most spatially associated'} "
        f"{adata.n_vars:,} genes, of whose entries {zeros:.0%} are zero."
    )
    size_factor_key = None if adata.n_vars == n_genes else "total_counts"
    return adata, {"sample_key": sample_key, "size_factor_key": size_factor_key, "spatial_key": spatial_key}


def set_up(adata: AnnData, setup: dict[str, str | None]) -> LGDiST:
    """Make an untrained model of a slide."""
    LGDiST.setup_anndata(adata, **setup)
    return LGDiST(adata)


# ---- output


def check_output(folder: Path, file: Path, source: Path | None) -> None:
    """Refuse, before any work, a folder that cannot be made and a result that would replace the input."""
    if file.is_dir():
        raise ValueError(f"{str(file)!r} is a folder; name a file for the result")
    if source is not None and source.resolve() == file.resolve():
        raise ValueError(f"{str(source)!r} would be written over; choose another output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; name a folder for the results")
    folder.mkdir(parents=True, exist_ok=True)


def check_writable(adata: AnnData, file: Path) -> None:
    """Refuse, before any training, what .h5ad files cannot hold and folders that cannot be written to."""
    trial = file.with_name(f".{file.stem}.trial{file.suffix}")
    try:
        adata[:1].copy().write_h5ad(trial)
    except Exception as error:
        reasons = " ".join([str(error), *getattr(error, "__notes__", [])]).split("\n")[0]
        raise UserError(f"the slide cannot be written to {str(file)!r}: {reasons}") from error
    finally:
        trial.unlink(missing_ok=True)


def write(file: Path, save: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name and rename it when it is whole; what stood there before stays until then."""
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        save(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file
