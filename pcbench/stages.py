"""Carry out a run: reference first, then the method, each stage only as far as it is missing; a record at the end."""

from __future__ import annotations

from collections.abc import Callable

from . import fidelity, latency, record
from .config import Run
from .generate import generate

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
        except Exception as error:
            record.write(current, f"{type(error).__name__}: {error}")
            raise
        record.write(current)
