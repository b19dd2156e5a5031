"""Runs to be planned, and their plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcbench import cli
from pcbench.config import Run

ROOT = Path(__file__).parents[1]


def run_of(model: str, method: Any = "none", *words: str) -> Run:
    run = cli.run_from([f"model={model}", *words, f"method={method if isinstance(method, str) else 'none'}"])
    return run if isinstance(method, str) else replace(run, recipe=replace(run.recipe, method=method))


def planned(capsys, *words: str) -> dict[str, Any]:
    """The one JSON document that the command prints."""
    assert cli.main([*words, "plan=json"]) == 0
    return json.loads(capsys.readouterr().out)
