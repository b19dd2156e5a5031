"""How large the house is, and how often a sweep asks the same question: `python -m tests.house_benchmark`.

In a clone of an older commit run this file by its path: it names no module that moved.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

# Functions, by the end of the file that they are in.
QUESTIONS = {"place": "", "recipe_id": "", "family": "", "transformer_config": "", "decode": "generate.py"}
SWEEP = [
    "-m", "model=tiny_wan,tiny_cogvideox", "method=pab,fora", "prompts.limit=1", "stages=[generate,score]",
    "model.sampling.steps=4", "model.sampling.frames=9", "model.sampling.height=64", "model.sampling.width=64",
]  # fmt: skip


def sizes() -> dict[str, Any]:
    """Of files and functions of the three packages in the working directory."""
    files = [path for package in ("analysis", "methods", "pcbench") for path in Path(package).rglob("*.py")]
    functions = [
        (node.end_lineno - node.lineno + 1, f"{path}:{node.name}")
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    lines = sorted(length for length, _ in functions)
    longest = max((len(path.read_text().splitlines()), str(path)) for path in files)
    return {
        "files at the top of pcbench": len(list(Path("pcbench").glob("*.py"))),
        "longest file": f"{longest[0]} {longest[1]}",
        "longest function": " ".join(map(str, max(functions))),
        "lines of a function: median": statistics.median(lines),
        "lines of a function: 90th percentile": lines[int(0.9 * len(lines))],
    }


def questions() -> dict[str, int]:
    """Calls of functions that look something up, in a sweep of two backbones by two methods, one sample each."""
    from pcbench import cli

    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and name in QUESTIONS and "/pcbench/" in file and file.endswith(QUESTIONS[name]):
            counted[name] += 1

    with tempfile.TemporaryDirectory() as results:
        sys.setprofile(count)
        code = cli.main([*SWEEP, f"results={results}"])
        sys.setprofile(None)
    assert code == 0
    return {f"calls of {name}()": counted[name] for name in QUESTIONS}


if __name__ == "__main__":
    for what, value in (questions() | sizes()).items():
        print(f"{what:40} {value}")
