"""Imports run one way: methods <- pcbench <- analysis (its store alone); Hydra lives in one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for room in ("analysis", "methods", "pcbench") for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules(path: Path) -> set[str]:
    """Modules of pcbench that a file imports."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 0]
    return {node.module for node in nodes if node.module and node.module.split(".")[0] == "pcbench"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    names, room = imported(path), path.relative_to(ROOT).parts[0]
    if room == "methods":
        assert names.isdisjoint({"pcbench", "analysis", "hydra", "omegaconf", "transformers"})
    if path != ROOT / "pcbench" / "cli.py":
        assert names.isdisjoint({"hydra", "omegaconf"})
    if room == "analysis":
        assert names.isdisjoint({"torch", "diffusers", "methods"})
        assert modules(path) <= {"pcbench.store"}
    else:
        assert "analysis" not in names
    if path.name == "store.py":
        assert names.isdisjoint({"torch", "diffusers", "numpy", "methods"})


def test_analysis_never_loads_torch():
    code = "import sys, analysis.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_there_is_something_to_walk():
    assert len(FILES) > 20
