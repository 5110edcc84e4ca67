"""Benchmarks and examples are not run by the tests; what they take from the package must be there all the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])


def taken(script: Path) -> list[tuple[str, str]]:
    """Modules of the package and the names that a script imports from them."""
    found = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "phosphene"
        for alias in node.names
    ]
    return [each for each in found if not each[0].startswith("phosphene.federation.flower")]  # has its own environment


def exists(module: str, name: str) -> bool:
    """Whether a module has the name, or a module of that name in it."""
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_imports_exists(script):
    assert [f"{module}.{name}" for module, name in taken(script) if not exists(module, name)] == []


def test_there_are_scripts_to_look_at():
    assert len(SCRIPTS) > 30
    assert any(taken(script) for script in SCRIPTS)
