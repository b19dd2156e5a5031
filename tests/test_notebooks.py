"""The notebooks are thin and stripped, run from committed records, and lead a newcomer from an idea to a row."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.figures import drawings
from analysis.load import experiments

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILE = "%%writefile"
CELLS, LINES = 12, 8
LIMIT = 1200  # seconds a cell
# Of your_method.ipynb, whose videos are smaller here; compiling has tests of its own.
LIMITED = "prompts=held_out prompts.limit=2"
VIDEOS = ("fig2-videos", "fig7")
WAN, WAN_ALONE = "drift and wan", "drift and wan and not compiled"
needs_kernel = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")),
    reason="needs nbclient and ipykernel: pip install 'pcbench[notebooks]'",
)


def code(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(path: Path, *changes: tuple[str, str]) -> list[dict[str, Any]]:
    """What the cells of a notebook show, run in its own folder. An error in a cell is raised.

    changes: texts that are replaced before, with what.
    """
    import nbformat
    from nbclient import NotebookClient

    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=LIMIT, iopub_timeout=LIMIT, kernel_name="python3", resources=where).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[dict[str, Any]], kind: str) -> list[str]:
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


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


@pytest.fixture
def committed(tmp_path, monkeypatch) -> Path:
    """A folder with the notebooks, and the records in git without the samples that are not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    published = Path("results") / "published"
    shutil.copytree(ROOT / published, tmp_path / published, ignore=shutil.ignore_patterns("samples"))
    return tmp_path


@needs_kernel
def test_tables_run_from_committed_records(committed):
    tables = shown(execute(committed / "notebooks" / "tables.ipynb"), "text/markdown")
    titles = [table.splitlines()[0] for table in tables]
    for name in experiments(committed / "results" / "published"):
        assert any(name.replace("/", "-") in title or name.removeprefix("table") in title for title in titles)
    assert any("against itself" in title for title in titles)
    assert all("| ---" in table for table in tables)


@needs_kernel
def test_figures_run_from_committed_records(committed):
    """They are those of docs/figures (tests/test_committed_results.py), but for videos, which are not in git."""
    outputs = execute(committed / "notebooks" / "figures.ipynb")
    said = {path.stem: path.read_text() for path in (ROOT / "docs" / "figures").glob("*.md")}
    claims, *captions = shown(outputs, "text/markdown")
    assert claims == said.pop("claims")
    expected = [said[name] for name in said if not name.startswith(VIDEOS)]
    assert sorted(captions) == sorted(expected)
    assert len(shown(outputs, "image/png")) == len(expected)


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
