"""Benchmarks and examples are not run by the tests; what they take from the package must be there all the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from phosphene.files import read_json

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


def test_tables_of_merging_can_be_printed_from_the_kept_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summary = importlib.import_module("merging_accuracy_summary")
    text = summary.markdown(read_json(ROOT / "benchmarks" / "results" / "merging_accuracy.json"))
    assert "| guide (strength) | 25% | 50% | 60% | 70% | 80% | 90% |" in text
    assert "| guide | 0.03 | 0.1 | 0.3 | 1 |" in text
    docs = (ROOT / "docs" / "mlip_benchmarks.md").read_text(encoding="utf-8")
    row = next(line for line in docs.splitlines() if line.startswith("| attention, off the shelf | both (0.1) |"))
    assert row.removeprefix("| attention, off the shelf ") in text
