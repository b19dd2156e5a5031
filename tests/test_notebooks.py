"""The notebooks are thin and stripped, and lead a newcomer from an idea to a row.

Those that show committed records run in tests/test_committed_results.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.figures import KINDS, drawings

from .notebook_parts import execute, needs_kernel, shown

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILE = "%%writefile"
CELLS, LINES = 12, 8
# Of your_method.ipynb, whose videos are smaller here; compiling has tests of its own.
LIMITED = "prompts=held_out prompts.limit=2"
WAN, WAN_ALONE = "drift and wan", "drift and wan and not compiled"


def code(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["figures", "tables", "your_method"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_thin_and_stripped(path):
    notebook = json.loads(path.read_text())
    assert len(notebook["cells"]) <= CELLS
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    for source in code(notebook):
        if source.startswith(FILE):
            assert path.stem == "your_method"
            continue
        assert len([line for line in source.splitlines() if line.strip()]) <= LINES
        assert not any(line.lstrip().startswith(("def ", "class ")) for line in source.splitlines())


def test_every_kind_of_figure_is_shown():
    notebook = json.loads((ROOT / "notebooks" / "figures.ipynb").read_text())
    named = tuple(re.findall(r'"([a-z][\w-]*)"', "\n".join(code(notebook))))
    assert [kind.name for kind in KINDS if not kind.name.startswith(named)] == []


@needs_kernel
def test_your_method_leads_to_a_row_a_curve_and_videos(tmp_path, monkeypatch):
    """Nothing is done but to run the notebook, which works in a copy of the repository of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    size = "model.sampling.frames=5 model.sampling.height=64 model.sampling.width=64"
    small = f"{LIMITED} {size} model.sampling.steps=10"
    changes = ((LIMITED, small), (WAN, WAN_ALONE), ("method.steps=16,27", "method.steps=4,7"))
    outputs = execute(ROOT / "notebooks" / "your_method.ipynb", *changes)
    (copy,) = tmp_path.glob("*/pcbench")
    (table,) = shown(outputs, "text/markdown")
    for setting in ("drift threshold=0.05", "drift threshold=0.1"):
        assert any(line.startswith(f"| {setting} | ") for line in table.splitlines())
    assert len(shown(outputs, "image/png")) == 1
    (plot,) = [drawing for drawing in drawings(copy / "results")[0] if drawing.kind == "pareto"]
    curves = [text.get_text() for axes in plot.figure.axes for text in axes.texts]
    assert "drift" in curves
    assert '"drift threshold=0.05"' in (copy / "report" / "data" / "index.js").read_text()
    assert len(list((copy / "report" / "media").rglob("drift-*/*-s0.mp4"))) == 4  # two settings, two prompts
    assert not (ROOT / "methods" / "drift.py").exists()
    said = "".join(output.get("text", "") for output in outputs)
    assert " failed" not in said
    assert "drift                                  works" in said  # the contract
