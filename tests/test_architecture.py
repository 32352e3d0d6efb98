"""What may know what: imports point down, nothing goes in circles, and what is decided in one place is decided there alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scvi.model.base import BaseModelClass

import lgdist_scvi

PACKAGE = Path(lgdist_scvi.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = "ground"  # files at the top of the package whose names begin with _
IN_MODULE = (
    "module/_spots", "module/nn", "module/likelihood", "module/experts", "module/diffusion", "module/lgdist", "module/stem",
    "module/c2lst",
)  # fmt: skip
MAY_IMPORT = {
    GROUND: (),
    # for any AnnData: neither model nor module
    "datasets": (GROUND,),
    "pp": (GROUND,),
    "metrics": (GROUND, "pp"),
    "pl": (GROUND, "metrics", "pp"),
    # torch alone
    "module/_spots": (GROUND,),
    "module/nn": (),
    "module/likelihood": (GROUND, "module/_spots"),
    "module/experts": (GROUND, "module/_spots", "module/likelihood"),
    "module/diffusion": ("module/nn",),  # of any vector under any condition
    "module/lgdist": (GROUND, "module/_spots", "module/nn", "module/likelihood", "module/experts", "module/diffusion"),
    "module/stem": (GROUND, "module/_spots", "module/nn", "module/likelihood", "module/experts", "module/diffusion"),
    "module/c2lst": (GROUND,),
    "module": IN_MODULE,
    "data": (GROUND,),
    "train": (),  # of any module
    "inference": (GROUND, *IN_MODULE, "module", "data", "metrics"),
    "model/base": (GROUND, *IN_MODULE, "module", "data", "train", "inference", "metrics"),
    "model": (GROUND, *IN_MODULE, "module", "data", "train", "inference", "pp", "model/base"),
    "lgdist_scvi": (GROUND, "datasets", "pp", "metrics", "pl", "model"),
    "cli": (GROUND, "datasets", "pp", "metrics", "pl", "lgdist_scvi"),
    "demo": ("cli",),
}
WITHOUT = {
    "module": ("anndata", "mudata", "scanpy", "squidpy", "pandas"),
    "inference": ("anndata", "mudata", "scanpy", "squidpy", "pandas"),
    "train": ("anndata", "mudata", "scanpy", "squidpy"),
}


class Import(NamedTuple):
    """An import statement: what it names, and whether type checkers alone see it."""

    name: str
    for_types: bool


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[Import]:
    """Everything that a file imports, wherever the statement stands."""

    def visit(node: ast.AST, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, for_types)
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(whole if file_of(whole) or not own(node.module) else node.module, for_types)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, for_types)

    yield from visit(tree(file), False)


def own(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def file_of(name: str) -> Path | None:
    """File of a module of this package; ``None`` of what is none."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def own_imports(file: Path, for_types: bool | None = None) -> set[Path]:
    """Files of this package that a file imports."""
    found = imports(file)
    return {file_of(one.name) for one in found if own(one.name) and for_types in (None, one.for_types)}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(file: Path) -> str:
    name = dotted(file).removeprefix(f"{PACKAGE.name}.").replace(".", "/")
    if name.startswith("_"):
        return GROUND
    while name not in MAY_IMPORT:
        assert "/" in name, f"{dotted(file)} is in no room: say in MAY_IMPORT what it may import"
        name = name.rpartition("/")[0]
    return name


def circle(graph: dict[Any, Iterable[Any]]) -> list[str]:
    """Files, or rooms, that form a circle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [dotted(one) if isinstance(one, Path) else one for one in error.args[1]]
    return []


def names(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


# ---- imports


@pytest.mark.parametrize("file", FILES, ids=names)
def test_imports_point_down(file):
    """Those for type checkers too."""
    here = room(file)
    for target in own_imports(file):
        assert room(target) in (here, *MAY_IMPORT[here]), f"{dotted(file)} imports {dotted(target)}"


def test_a_room_imports_no_room_that_imports_it():
    assert not circle({room: [other for other in below if other != room] for room, below in MAY_IMPORT.items()})


def test_imports_do_not_go_in_circles():
    assert not circle({file: own_imports(file, for_types=False) for file in FILES})


@pytest.mark.parametrize("part", WITHOUT)
def test_libraries_that_a_room_does_without(part):
    for file in sorted((PACKAGE / part).rglob("*.py")):
        for name, _ in imports(file):
            assert name.split(".")[0] not in WITHOUT[part], f"{dotted(file)} imports {name}"


def test_no_private_module_of_scvi_tools():
    for file in FILES:
        private = [name for name, _ in imports(file) if re.match(r"scvi\..*\b_", name)]
        assert not private, f"{dotted(file)} imports {private}"


# ---- what hangs together through self


def attributes(file: Path) -> tuple[set[str], list[str]]:
    """Attributes that a file defines in its classes or sets on `self` or `model`, and those that it reads there, each time."""
    defined, read = set(), []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    defined.add(member.name)
                elif isinstance(member, ast.Assign | ast.AnnAssign):
                    targets = member.targets if isinstance(member, ast.Assign) else [member.target]
                    defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "model")
        ):
            (defined.add if isinstance(node.ctx, ast.Store) else read.append)(node.attr)
    return defined, read


def test_the_files_of_a_model_do_not_go_in_circles_through_self():
    """A mixin that calls what another defines depends on it as if it imported it."""
    files = sorted((PACKAGE / "model").rglob("*.py"))
    of_scvi = {"history_", "init_params_", "module", "registry_", "trainer", *dir(BaseModelClass)} - {"train"}
    found = {file: attributes(file) for file in files}
    graph, n_references = {}, 0
    for file, (defined, read) in found.items():
        graph[file] = own_imports(file, for_types=False) & set(files)
        for name in read:
            others = {other for other in files if name in found[other][0]}
            if others and name not in defined | of_scvi:
                n_references += 1
                # a class that fills in what a class below declares is not known there
                graph[file] |= (others & graph[file]) or others
    assert not circle(graph)
    assert n_references < 15


def test_circles_are_found():
    """So that the tests above can fail."""
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]}) and not circle({"a": ["b", "c"], "b": ["c"], "c": []})
    defined, read = attributes(PACKAGE / "model" / "base" / "_repeat.py")
    assert {"retrain", "repeat_completion"} <= defined and {"complete", "train"} <= set(read)


# ---- one place each


def decisions(file: Path) -> Iterator[str]:
    """Places where a file asks which likelihood it has."""
    likelihoods = {"nb", "poisson", "normal"}

    def values(node: ast.AST) -> Iterator[object]:
        return (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))

    def is_class(node: ast.AST) -> bool:
        return any(
            ast.unparse(part).endswith("Likelihood")
            for part in ast.walk(node)
            if isinstance(part, ast.Name | ast.Attribute)
        )

    for node in ast.walk(tree(file)):
        asks = False
        if isinstance(node, ast.Compare):
            # "poisson" in controls is another question
            sides = node.comparators if isinstance(node.ops[0], ast.In | ast.NotIn) else [node.left, *node.comparators]
            asks = any(likelihoods & set(values(side)) or is_class(side) for side in sides)
        elif isinstance(node, ast.MatchValue):
            asks = bool(likelihoods & set(values(node)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asks = is_class(node.args[1])
        if asks or (isinstance(node, ast.Attribute) and node.attr == "counts_are_modelled"):
            yield f"{dotted(file)}:{node.lineno}"


def test_likelihoods_are_told_apart_in_their_own_room_alone():
    elsewhere = [file for file in FILES if room(file) != "module/likelihood"]
    assert not [place for file in elsewhere for place in decisions(file)]


def test_the_scale_is_told_in_one_file():
    for file in FILES:
        if file.name == "_units.py":
            continue
        for node in ast.walk(tree(file)):
            number = isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value == 1e4
            named = isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("COUNTS_PER")
            assert not number and not named, f"{dotted(file)}:{node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=names)
def test_a_file_is_read_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
