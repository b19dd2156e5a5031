"""`python -m pcbench.compare REFERENCE_FOLDER FOLDER…`: fidelity of anybody's mp4 files, under every convention.

Videos are paired by file name. Each folder's PSNR, SSIM and LPIPS against the reference folder's videos are computed as
this project, VideoSys (PAB, TeaCache, MagCache), EasyCache and ChituBench do (docs/fidelity.md), and temporal PSNR and
sharpness; printed with 95 % intervals over videos and the worst pairs, and written to a page with all videos side by
side. Files are compared as they are: nothing is resized, cut or encoded again, and folders that do not match are
refused; videos that are no mp4 files are named and left out. Scores are kept, so the same command continues where it
was stopped, and more folders cost only their own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import devices, feasible
from ..command import Command, FaultsError, Progress, options_of, process_of
from ..config import ConfigError
from ..fidelity.stage import chosen
from . import scores, table
from .pairs import Folder, folders, problems

DEFAULTS = {"fidelity": f"[{','.join(scores.COMPARABLE)}]", "out": "comparison", "device": "auto", "page": "true"}
COMMAND = Command(
    "pcbench.compare",
    __doc__ or "",
    {
        "fidelity=NAME|[…]": f"conventions, of {', '.join(scores.COMPARABLE)}; all by default",
        "out=FOLDER": "where scores, comparison.json and report/ are written; default: comparison",
        "device=NAME": "auto, cpu, cuda or cuda:N; default: auto",
        "page=true|false": "whether to write the page (needs pip install 'pcbench[analysis]'); default: true",
    },
)


@dataclass(frozen=True)
class Work:
    """What to compare, checked: every folder's files match the reference's."""

    reference: Folder
    others: list[Folder]
    conventions: tuple[str, ...]
    out: Path
    device: str
    page: bool


def parse(arguments: Sequence[str]) -> Work:
    """The folders and options of a command line. Raises ConfigError for what cannot be compared, FaultsError
    for folders that do not match."""
    words = [word for word in arguments if word.partition("=")[0] in DEFAULTS or word.startswith("-")]
    try:
        options = options_of(words, DEFAULTS)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    paths = [Path(word) for word in arguments if word not in words]
    if len(paths) < 2:
        raise ConfigError("give a folder of reference videos and at least one folder to compare; --help says more")
    if options["page"] not in ("true", "false"):
        raise ConfigError(f"page is true or false, not {options['page']!r}")
    conventions = chosen(options["fidelity"].strip("[]").replace(" ", "").split(","))
    device, out = devices.resolve(options["device"]), Path(options["out"])
    reference, *others = folders(paths)
    if lines := problems(reference, others, Progress(lambda line: say(f"reading headers {line}"))):
        raise FaultsError(lines)
    feasible.check_writable(out)
    for folder in (reference, *others):
        if folder.note:
            say(folder.note)
    return Work(reference, others, conventions, out, device, options["page"] == "true")


def carry_out(work: Work) -> int:
    """Score what is missing, print the table, write the page; returns the exit code."""
    began, metrics = time.monotonic(), scores.metrics_of(work.conventions)
    kept = scores.Kept(work.out)
    found, failed = scores.score(work.reference, work.others, metrics, work.device, kept, Progress(say))
    data = scores.write(work.out, work.reference, work.others, found, work.device)
    for line in table.lines(data, metrics):
        print(line)
    print(f"scores: {work.out / 'comparison.json'} ({time.monotonic() - began:.1f} s)", flush=True)
    for line in failed:
        print(f"{COMMAND.name}: failed: {line}", file=sys.stderr)
    if work.page:
        # The page is the other package's, which imports none of this one: it reads comparison.json.
        page = process_of("analysis", "report", str(work.out), "--out", str(work.out / "report"))
        return subprocess.run(page).returncode or bool(failed)
    return int(bool(failed))


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2, with a line for each fault, if the folders cannot be compared."""
    return COMMAND.run(argv, parse, carry_out)


if __name__ == "__main__":
    sys.exit(main())
