"""How the modules of codi_models may depend on each other, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from codi.codi_models.modalities import MODALITIES
from host.setting import PACK

ROOT = PACK / "codi_models"
PACKAGE = "codi_models"
APART = ("bounce_world", "parity")
"""Parts that use the core and that the core does not know."""
TABLES = ("__main__", "training.dataset")
"""Modules that name what is apart from the core in a table, for users to choose from: commands, and data sets."""


@lru_cache
def modules() -> dict[str, Path]:
    """Name from codi_models on -> file."""
    names = {path: ".".join(path.relative_to(PACK).with_suffix("").parts) for path in sorted(ROOT.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def core() -> list[str]:
    """Names of the core's modules."""
    return [name for name in modules() if name.split(".")[1:2] not in [[part] for part in APART]]


def imports(name: str, *, only_at_start: bool = False) -> Iterator[str]:
    """Modules of codi_models that a module imports, lazily or not, or names in strings; `only_at_start` those that its own import runs."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_start(tree) if only_at_start else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            if source.split(".")[0] == PACKAGE:
                for alias in node.names:  # a name in a package may be a module, too
                    yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules() else source
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(".") and not only_at_start:
            target = node.value.partition(":")[0]  # as in "..module:Class"
            up = len(target) - len(target.lstrip("."))
            for base in (package, PACKAGE):
                parts = base.split(".")
                if (named := ".".join([*parts[: len(parts) - up + 1], target.lstrip(".")])) in modules():
                    yield named


def _at_start(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: neither in functions nor for type checkers alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def test_the_walk_sees_imports_of_every_kind() -> None:
    assert f"{PACKAGE}.components" in set(imports(f"{PACKAGE}.model"))
    assert f"{PACKAGE}.encoders.tokenizer" in set(imports(f"{PACKAGE}.model")), "inside a function"
    assert f"{PACKAGE}.encoders.tokenizer" not in set(imports(f"{PACKAGE}.model", only_at_start=True))
    assert f"{PACKAGE}.encoders.clip" in set(imports(f"{PACKAGE}.components")), "named in a string"
    assert f"{PACKAGE}.media" in set(imports(f"{PACKAGE}.conditioning")), "a module of a package"
    assert {f"{PACKAGE}.parity.cli", f"{PACKAGE}.bounce_world.export"} <= set(imports(f"{PACKAGE}.__main__"))


@pytest.mark.parametrize("part", APART)
def test_the_core_does_not_know_what_is_apart_from_it(part: str) -> None:
    """The tables of commands and of data sets are the one exception."""
    found = {
        (name, other)
        for name in core()
        if name.removeprefix(f"{PACKAGE}.") not in TABLES
        for other in imports(name)
        if other.startswith(f"{PACKAGE}.{part}")
    }
    assert found == set()


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {other for other in imports(name, only_at_start=True) if other in modules()} - {name} for name in modules()}
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)
    assert done == set(modules())


def listings(path: Path) -> list[int]:
    """Lines where a literal tuple, list, set or dict names every modality."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            parts = [*node.elts]
        elif isinstance(node, ast.Dict):
            parts = [*node.keys]
        if set(MODALITIES) <= {part.value for part in parts if isinstance(part, ast.Constant)}:
            lines.append(node.lineno)
    return lines


def test_modalities_are_listed_in_one_table() -> None:
    table = ROOT / "modalities.py"
    assert listings(table), "the table is one that is found"
    found = {
        f"{path.relative_to(ROOT)}:{line}" for name in core() for path in [modules()[name]] if path != table for line in listings(path)
    }
    assert found == set()
