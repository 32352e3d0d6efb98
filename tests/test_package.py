from __future__ import annotations

import ast
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
PACKAGE = Path(lgdist_scvi.__file__).parent
HEAVY = ["torch", "lightning", "scvi", "scanpy", "squidpy", "matplotlib", "diffusers", "sklearn", "anndata"]


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def imports_of(file: Path) -> set[str]:
    """Modules that a source file names in its import statements, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_import_is_cheap():
    loaded = modules_after("import lgdist_scvi")
    assert "lgdist_scvi" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ["pp", "pl", "metrics", "datasets"])
def test_submodule_is_loaded_on_demand_and_without_drawing_or_graph_libraries(name):
    loaded = modules_after(f"import lgdist_scvi; lgdist_scvi.{name}")
    assert f"lgdist_scvi.{name}" in loaded
    assert loaded.isdisjoint(["matplotlib", "squidpy", "scanpy", "scvi", "torch"])


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


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("module", ["anndata", "scanpy", "squidpy", "lgdist_scvi.data", "lgdist_scvi.train", "lgdist_scvi.model"]),
        ("data", ["lgdist_scvi.train", "lgdist_scvi.model"]),
        ("train", ["lgdist_scvi.model"]),
        ("pp", ["lgdist_scvi.module", "lgdist_scvi.data", "lgdist_scvi.train", "lgdist_scvi.model"]),
        ("metrics", ["lgdist_scvi.module", "lgdist_scvi.data", "lgdist_scvi.train", "lgdist_scvi.model"]),
        ("pl", ["lgdist_scvi.module", "lgdist_scvi.data", "lgdist_scvi.train", "lgdist_scvi.model"]),
        ("datasets", ["lgdist_scvi.module", "lgdist_scvi.data", "lgdist_scvi.train", "lgdist_scvi.model"]),
    ],
)
def test_layers_point_down(part, forbidden):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for file in files:
        for name in imports_of(file):
            for layer in forbidden:
                assert name != layer and not name.startswith(f"{layer}."), f"{file.name} imports {name}"


def test_nothing_stands_on_the_command_line():
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent.name != "cli" and file.name != "demo.py":
            assert not [name for name in imports_of(file) if name.startswith("lgdist_scvi.cli")], file.name


def test_no_private_module_of_scvi_tools():
    for file in sorted(PACKAGE.rglob("*.py")):
        private = [name for name in imports_of(file) if re.match(r"scvi\..*\b_", name)]
        assert not private, f"{file.relative_to(PACKAGE)} imports {private}"


def test_every_public_submodule_lists_its_names():
    for name in ("pp", "pl", "metrics", "datasets", "module", "data", "train", "model"):
        module = import_module(f"lgdist_scvi.{name}")
        assert module.__all__, name
        for public in module.__all__:
            assert hasattr(module, public), f"{name}.{public}"
