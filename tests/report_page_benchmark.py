"""How quick a large report is in a browser: `python -m tests.report_page_benchmark [PROMPTS SETTINGS]`, 100 × 12 else.

A report of as many prompts and settings is written, all of whose videos are links to a few small ones, and opened in
each browser of this machine. Printed are seconds, the medians of three times: until the first prompt's videos can play,
and from a jump to the last prompt until its can; and how many videos the page holds at both ends, since a browser can
decode only so many. A prompt has two a setting, less the reference's difference.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.report import media, write
from tests import browsers
from tests import report_parts as parts
from tests.browsers import wait_for

TIMES = 3
# all videos near the window have their first frame
READY = "document.querySelectorAll('article video').length >= {} && player.ready.length === player.videos.size"

LAST = "[...document.querySelectorAll('article')].at(-1)"


def results(folder: Path, prompts: int, settings: int) -> Path:
    """A results folder of so many settings, the first of which is the reference."""
    names = {f"prompt {number}": 30.0 + number % 17 for number in range(prompts)}
    parts.PROMPTS = names
    reference = parts.record("none")
    one = {**reference, "samples": reference["samples"][:1]}
    made = parts.put(folder / "one", one, videos=True).sample("sample-0").video
    off = parts.put(folder / "off", one, videos=True, off=parts.ERROR).sample("sample-0").video
    for number in range(settings):
        data = parts.record("teacache", 1) if number else reference
        data |= {"id": f"teacache{number}"} if number else {}
        data["recipe"] = {**data["recipe"], "method": {**data["recipe"]["method"], "threshold": number / 10}}
        place = parts.put(folder / "results", data)
        for index, sample in enumerate(data["samples"]):
            files = place.sample(f"sample-{index}")
            files.video.parent.mkdir(parents=True, exist_ok=True)
            files.video.hardlink_to(off if number else made)
            files.trace.write_text(f'{{"prompt": "{sample["prompt"]}", "seed": 0}}')
    return folder / "results"


def linked(folder: Path) -> Callable[..., None]:
    """In place of `media.difference`, which takes a fifth of a second: one difference, made once and linked."""
    made = folder / "difference.mp4"
    original = media.difference

    def difference(video: Path, reference: Path, frames: Any, target: Path, fps: float) -> None:
        if not made.exists():
            original(video, reference, None, made, fps)
        target.hardlink_to(made)

    return difference


def measured(page: Any, report: Path, settings: int) -> list[str]:
    """The cells of a browser's row."""
    videos, seconds = 2 * settings - 1, [[], []]
    for _ in range(TIMES):
        began = time.perf_counter()
        page.open(report)
        page.run("document.querySelector('article').scrollIntoView()")
        wait_for(page, READY.format(videos))
        seconds[0].append(time.perf_counter() - began)
        first = page.run("document.querySelectorAll('article video').length")
        began = time.perf_counter()
        page.run(f"{LAST}.scrollIntoView()")
        wait_for(page, f"{LAST}.querySelector('video') !== null")
        wait_for(page, READY.format(videos))
        seconds[1].append(time.perf_counter() - began)
        last = page.run("document.querySelectorAll('article video').length")
    return [*(f"{statistics.median(each):.2f}" for each in seconds), f"{first}, {last}"]


def main(prompts: int, settings: int) -> None:
    """Write the report, open it, print the table."""
    table = Table("browser", "first videos", "jump to the last", "videos held", title=f"{prompts} × {settings}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        media.difference = linked(folder)
        began = time.perf_counter()
        report = write(results(folder, prompts, settings), folder / "out", prompts=prompts, say=lambda line: None)
        size = sum(path.stat().st_size for path in (folder / "out" / "data").glob("*.js")) / 2**20
        print(f"written in {time.perf_counter() - began:.1f} s; data of {size:.1f} MiB")
        for name, program, kind in (
            ("chromium", browsers.CHROMIUM, browsers.Chromium),
            ("firefox", browsers.FIREFOX, browsers.Firefox),
        ):
            if program is None:
                continue
            page = kind(folder / name)
            page.resize(1400, 900)
            table.add_row(name, *measured(page, report, settings))
            print(page.complaints or f"{name}: no complaints")
            page.close()
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or (100, 12)))
