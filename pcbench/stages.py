"""Carry out a run: reference first, then the method, each stage only as far as it is missing; a record at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from . import fidelity, latency, observe, record
from .config import Run
from .generate import generate, place
from .store import write_whole
from .vbench import stage as vbench

Say = Callable[[str], None]


def execute(run: Run, say: Say = print) -> None:
    """Run all stages. On an error the record is written with what there is and the error, which is raised again."""
    each = [run] if run.recipe.method.NAME == "none" else [run.reference, run]
    for current in each:
        try:
            if "generate" in run.stages:
                generate(current, say)
            if "latency" in run.stages:
                latency.profile(current, say)
            if "score" in run.stages:
                fidelity.score(current, say)
                vbench.score(current, say)
            if "observe" in run.stages:
                observe.observe(current, say)
        except Exception as error:
            say(f"{current.label}  failed, details in {_keep_details(current)}")
            record.write(current, f"{type(error).__name__}: {error}")
            raise
        record.write(current)


def _keep_details(run: Run) -> Path:
    """Write the current traceback beside the run's samples."""
    path, text = place(run).folder / "error.txt", traceback.format_exc()
    write_whole(path, lambda partial: partial.write_text(text))
    return path
