"""Imports run one way: methods <- pcbench <- analysis (its store alone), and inside them from room to room.

A room is a folder or a file at the top of a package. Hydra lives in one of them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import forks

ROOT = Path(__file__).parents[1]
FILES = sorted(p for package in ("analysis", "methods", "pcbench") for p in (ROOT / package).rglob("*.py"))
NAMES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
# Each room may import from those on the lines above its own, and from none beside it.
LAYERS = {
    "pcbench": """
        messages paper store
        command options
        completion
        config tracking
        target
        devices first_frame identity
        failures provenance
        backbones
        job
        sampling
        fidelity cost vbench
        observe
        feasible record integrity
        stages runs summary
        compose launch
        plan tune library
        cli calibrate benchmark compare fidelity_benchmark storage_benchmark
        oracle
        tiny __main__
    """,
    "methods": """
        frequency
        engine
        calibration
        *
    """,
    "analysis": """
        approaches metrics stats render
        load command
        pareto conventions searches
        tables
        paper
        figures
        report
        __main__
    """,
}


def imported(name: str) -> Iterator[str]:
    """The modules that a file imports, in full."""
    path = NAMES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                yield inside if inside in NAMES else source


def layers(package: str) -> dict[str, int]:
    return {room: level for level, line in enumerate(LAYERS[package].split("\n")) for room in line.split()}


def room_of(module: str, known: dict[str, int]) -> str:
    inside = module.split(".")[1:]
    return next((room for room in (".".join(inside[:2]), *inside[:1]) if room in known), "*")


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_one_way(name):
    found = set(imported(name))
    tops, package = {each.split(".")[0] for each in found}, name.split(".")[0]
    if package == "methods":
        assert tops.isdisjoint({"pcbench", "analysis", "hydra", "omegaconf", "transformers"})
    if not name.startswith("pcbench.compose"):
        assert tops.isdisjoint({"hydra", "omegaconf"})
    if package == "analysis":
        assert tops.isdisjoint({"torch", "diffusers", "methods"})
        assert {each for each in found if each.startswith("pcbench")} <= {"pcbench.store"}
    else:
        assert "analysis" not in tops
    if name.startswith("pcbench.store"):
        assert tops.isdisjoint({"torch", "diffusers", "numpy", "methods"})


@pytest.mark.parametrize("name", [name for name in NAMES if "." in name])
def test_rooms_import_from_those_below_them(name):
    package = name.split(".")[0]
    level = layers(package)
    own = room_of(name, level)
    assert own in level, f"{own} is a new room: give it its line in LAYERS"
    for module in imported(name):
        if module.split(".")[0] != package or "." not in module:
            continue  # of another package, or the face of this one
        other = room_of(module, level)
        if other != own:
            assert level[other] < level[own], f"{name} imports {module}"


def test_every_room_is_there():
    for package in LAYERS:
        level = layers(package)
        assert set(level) - {"*"} <= {room_of(name, level) for name in NAMES if name.startswith(f"{package}.")}


def test_the_picture_shows_rooms_that_exist_and_imports_that_are_made():
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```mermaid")[1].split("```")[0]
    rooms = {
        room: f"{part.split()[0]}.{room}"
        for part in picture.split("subgraph ")[1:]
        for room in re.findall(r"(\w+)\[\"", part)
    }
    assert len(rooms) > 20
    assert set(rooms.values()) <= set(NAMES)
    arrows = re.findall(r"(\w+)(?:\[.*?\])? --> (\w+)", picture)
    assert len(arrows) > 20
    for one, other in arrows:
        inside = [name for name in NAMES if f"{name}.".startswith(f"{rooms[one]}.")]
        found = {f"{each}." for name in inside for each in imported(name)}
        target = rooms.get(other, other)  # a package as a whole
        assert any(each.startswith(f"{target}.") for each in found), f"{one} does not import {other}"


def test_no_file_is_too_long_and_no_function():
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        lines = path.read_text().splitlines()
        assert len(lines) <= 350, path
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef) and (path.name, node.name) != ("pipeline.py", "__call__"):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


def test_make_test_fast_leaves_out_what_is_slow():
    files = ["tests/test_fuzz.py", "tests/test_layering.py"]
    done = forks.module(["pytest", "--collect-only", "-m", "not slow", "-n", "0", *files], ROOT, ROOT)
    assert "test_layering.py" in done.stdout, done.stderr
    assert "test_fuzz.py" not in done.stdout


def test_analysis_never_loads_torch():
    code = "import sys, analysis.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_there_is_something_to_walk():
    assert len(FILES) > 20
