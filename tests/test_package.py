from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from inspect import ismodule
from pathlib import Path
from types import ModuleType

import pytest

import lgdist_scvi

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "lightning", "scvi", "scanpy", "squidpy", "matplotlib", "diffusers", "sklearn", "anndata"]


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_is_cheap():
    loaded = modules_after("import lgdist_scvi")
    assert "lgdist_scvi" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ["pp", "pl", "metrics", "datasets"])
def test_submodule_is_loaded_on_demand_and_without_drawing_or_graph_libraries(name):
    loaded = modules_after(f"import lgdist_scvi; lgdist_scvi.{name}")
    assert f"lgdist_scvi.{name}" in loaded
    assert loaded.isdisjoint(["matplotlib", "squidpy", "scanpy", "scvi", "torch"])


def test_squidpy_is_imported_without_warnings_of_its_own():
    code = "from lgdist_scvi._squidpy import squidpy; print(squidpy().__name__)"
    result = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "squidpy" and "SyntaxWarning" not in result.stderr


@pytest.mark.parametrize("name", lgdist_scvi.__all__)
def test_public_name_resolves(name):
    assert getattr(lgdist_scvi, name) is not None
    assert name in dir(lgdist_scvi)


def public_members(module: ModuleType, prefix: str) -> dict[str, object]:
    """Dotted name and object of all that a module lists in `__all__`, submodules included."""
    members = {}
    for public in module.__all__:
        member = getattr(module, public)
        members |= public_members(member, f"{prefix}.{public}") if ismodule(member) else {f"{prefix}.{public}": member}
    return members


@pytest.mark.parametrize("name", ["pp", "pl", "metrics", "datasets"])
def test_public_names_are_documented(name):
    listed = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8").split()
    for public, member in public_members(getattr(lgdist_scvi, name), name).items():
        assert member.__doc__, f"{public} has no docstring"
        assert public in listed, f"{public} is missing from docs/api.md"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lgdist_scvi.nothing  # noqa: B018


def test_version_is_that_of_the_distribution():
    declared = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    try:
        installed = version("lgdist-scvi")
    except ModuleNotFoundError:
        pytest.skip("lgdist-scvi is on the path but not installed")
    assert lgdist_scvi.__version__ == installed == declared
    assert f"version: {declared}" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")


def test_every_public_submodule_lists_its_names():
    for name in ("pp", "pl", "metrics", "datasets", "module", "data", "train", "inference", "model", "model.base"):
        module = import_module(f"lgdist_scvi.{name}")
        assert module.__all__, name
        for public in module.__all__:
            assert hasattr(module, public), f"{name}.{public}"
