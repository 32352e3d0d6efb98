"""Sphinx configuration; `make docs` builds without network."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path

from scvi.model.base import BaseModelClass

from lgdist_scvi import LGDiST

DOCS = Path(__file__).parent

project = "lgdist-scvi"
author = "The lgdist-scvi developers"
copyright = f"2026, {author}"
release = version = installed_version("lgdist-scvi")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "literal"  # single backticks in docstrings are code
templates_path = ["_templates"]

# Notebooks live in ../tutorials, where people look for them; Sphinx reads only below docs/.
shutil.rmtree(DOCS / "tutorials", ignore_errors=True)
shutil.copytree(DOCS.parent / "tutorials", DOCS / "tutorials", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
nb_execution_mode = "off"  # committed with their output; the test suite runs them again
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tables and figures of the stored benchmark results, of the seed that served development less.
sys.path.insert(0, str(DOCS.parent))
benchmarks = import_module("benchmarks.report")
benchmarks.write(benchmarks.read(benchmarks.RESULTS), DOCS / "generated", seeds=[1])
for name in ("section", "image", "generate", "scale"):
    import_module(f"benchmarks.{name}").write(benchmarks.read(benchmarks.RESULTS), DOCS / "generated")

autosummary_generate = True
# of what scvi-tools' models share, a page lists only what users call; what the package defines itself is listed in any case
own = {name for base in LGDiST.__mro__ if base.__module__.startswith("lgdist_scvi") for name in vars(base)}
autosummary_context = {
    "undocumented": set(dir(BaseModelClass)) - own - {"load", "save", "view_anndata_setup"},
    # in the order in which they are called; all others follow
    "first": [
        "setup_anndata",
        "setup_mudata",
        "train",
        "complete",
        "get_completed_expression",
        "get_prediction_interval",
    ],
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_custom_sections = ["Returns"]  # prose and lists in it stay as written

intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
    "matplotlib": ("https://matplotlib.org/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/pandas-docs/stable/", None),
    "python": ("https://docs.python.org/3", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
    "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
if os.environ.get("DOCS_OFFLINE"):
    intersphinx_mapping = {}

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_navbar_depth": 2, "home_page_in_toc": True}
