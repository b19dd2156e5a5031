"""Notebooks, run in a kernel as a reader runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

LIMIT = 1200  # seconds a cell
needs_kernel = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")),
    reason="needs nbclient and ipykernel: pip install 'pcbench[notebooks]'",
)


def execute(path: Path, *changes: tuple[str, str], more: str = "") -> list[dict[str, Any]]:
    """What the cells of a notebook show, run in its own folder. An error in a cell is raised.

    changes: texts that are replaced before, with what. more: the code of a cell that is added at the end.
    """
    import nbformat
    from nbclient import NotebookClient

    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(more)] if more else []
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=LIMIT, iopub_timeout=LIMIT, kernel_name="python3", resources=where).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[dict[str, Any]], kind: str) -> list[str]:
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]
