"""What it costs that processes share a sweep: `python -m tests.launch_benchmark [WORDS]`, by default Table 1's methods
on tiny_wan, 160 samples, about three quarters of an hour.

The same command line by one process with a thread for each core, by one with a single thread, and by twice as many
workers as cores with a thread each; one after another, each into a new folder. Printed are seconds of wall time and of
all processors. Run it on an idle machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

WORDS = ["+experiment=table1_tiny", "model=tiny_wan"]


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a run failed, which is left out."""
    cores, words, code = os.cpu_count() or 1, arguments or WORDS, 0
    shared = ["launcher=local", f"workers={2 * cores}"]
    print(f"{'':32}{'wall s':>10}{'CPU s':>10}")
    ways = {f"one process, {cores} threads": (cores, []), "one process, one thread": (1, [])}
    for name, (threads, more) in {**ways, f"{2 * cores} workers, a thread each": (1, shared)}.items():
        with tempfile.TemporaryDirectory() as folder:
            began, before = time.monotonic(), _spent()
            line = [sys.executable, "-m", "pcbench", *words, "stages=[generate,score]", f"results={folder}", *more]
            done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True)
        if done.returncode:
            print(f"{name:32}failed: {done.stderr.decode().strip().splitlines()[-1]}")
            code = 1
            continue
        print(f"{name:32}{time.monotonic() - began:10.0f}{_spent() - before:10.0f}", flush=True)
    return code


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that were waited for, theirs included
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
