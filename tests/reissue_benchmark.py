"""How long a finished sweep takes to be issued again: `python -m tests.reissue_benchmark [25 100 400 1000]`.

A store is filled with copies of one finished recipe of ten samples (the bookkeeping is measured, not the videos), and
the sweep issued three times: the first time the program has never seen these files, and reads them all; the second and
third times nothing has changed. Then once through each launcher that is installed, and as a shard. Each time in a
process of its own, timed after its imports. `bookkeeping`: the stages and the table; `composing`: all before, from
words to checked runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pcbench import cli
from pcbench.job import job_of
from pcbench.launch import REMOTE
from pcbench.store import load_json, write_sealed

SAMPLES = 10
SMALL = [
    "model.sampling.steps=10", "model.sampling.frames=17", "model.sampling.height=96", "model.sampling.width=96",
    "prompts=held_out", f"prompts.limit={SAMPLES}", "stages=[generate,score]",
]  # fmt: skip
THROUGH = {
    "local": ["launcher=local", "workers=2"],
    **{name: [f"launcher={name}", "workers=2"] for name, needs in REMOTE.items() if importlib.util.find_spec(needs)},
    "shard": ["shard=1/2"],
}
TIMED = """
import sys, time
from pcbench import cli, stages, summary
import pcbench.vbench.stage
spent = 0.0
def timed(module, name):
    inner = getattr(module, name)
    def outer(*arguments, **named):
        global spent
        began = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            spent += time.perf_counter() - began
    setattr(module, name, outer)
timed(stages.Sweep, "carry_out")
timed(summary, "show")
began = time.perf_counter()
code = cli.main(sys.argv[1:])
print("\\n", __import__("json").dumps([code, time.perf_counter() - began, spent]), sep="")
"""


def alphas(count: int) -> list[float]:
    """Settings of one method, as many as asked for."""
    return [round(0.1 + number * 0.0005, 4) for number in range(count)]


def issue(words: list[str], results: Path) -> tuple[int, float, float]:
    """Exit code, seconds after imports, and those of them in stages and table."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED, *words, f"results={results}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    code, seconds, spent = json.loads(done.stdout.splitlines()[-1])
    return code, seconds, spent


def fill(results: Path, count: int) -> None:
    """Copies of the first recipe's samples for the others of the sweep, with scores that say whose they are."""
    run = cli.run_from(["method=precisecache", *SMALL, f"results={results}"])
    recipes = [replace(run.recipe, method=replace(run.recipe.method, alpha=alpha)) for alpha in alphas(count)]
    first, *others = [job_of(replace(run, recipe=recipe)) for recipe in recipes]
    for job in others:
        if job.place.folder.exists():
            continue
        shutil.copytree(first.place.folder, job.place.folder)
        for sample in job.run.samples:
            files = job.files(*sample)
            write_sealed(files.fidelity, load_json(files.fidelity) | files.identity)


def main(counts: list[int]) -> None:
    """Print a row for each size and turn."""
    with tempfile.TemporaryDirectory(prefix="pcbench-reissue-") as name:
        results, before = Path(name), 0.0
        issue(["method=precisecache", f"method.alpha={alphas(1)[0]}", *SMALL], results)
        print(f"{'recipes':>8} {'turn':>7} {'seconds':>9} {'composing':>10} {'bookkeeping':>12} {'ms a recipe':>12}")
        for count in counts:
            fill(results, count)
            words = ["-m", "method=precisecache", f"method.alpha={','.join(map(str, alphas(count)))}", *SMALL]
            for turn in ("first", "second", "third", *THROUGH):
                code, seconds, spent = issue([*words, *THROUGH.get(turn, [])], results)
                parts = f"{seconds:9.2f} {seconds - spent:10.2f} {spent:12.2f} {1000 * seconds / count:12.2f}"
                print(f"{count:8} {turn:>7} {parts}{'' if code == 0 else f'  exit code {code}'}", flush=True)
                if turn == "third":
                    growth = f", {seconds / before:.1f} times the size before" if before else ""
                    print(f"{'':16} a finished sweep of {count * SAMPLES} samples in {seconds:.2f} s{growth}")
                    before = seconds


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [25, 100, 400, 1000])
