"""`python -m tests.screenshots SITE REPORT OUT`: how the pages look, wide and narrow, in every browser there is.

README and three pages of the site that `make docs` builds, and a report, as a whole and on its stage. To be looked at:
nothing is compared.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests import browsers

WIDTHS = {1400: 1000, 420: 900}  # and the height in pixels
PAGES = ("index", "start", "methods", "sweeps")
VIDEOS = "player.ready.length > 1 && player.ready.length === player.videos.size"


def take(browser: browsers.Chromium | browsers.Firefox, name: str, site: Path, report: Path, out: Path) -> None:
    """All pictures that a browser takes: NAME-page-width.png."""
    for width, height in WIDTHS.items():
        browser.resize(width, height)
        for page in PAGES:
            browser.open(site / f"{page}.html")
            browser.picture(out / f"{name}-{page}-{width}.png")
        browser.open(report / "index.html")
        browser.picture(out / f"{name}-report-{width}.png")
        browser.run("document.querySelector('article').scrollIntoView()")
        browsers.wait_for(browser, VIDEOS)
        browser.run("player.pause()")
        browser.run("player.seek(Math.floor(player.frames / 2))")
        browser.picture(out / f"{name}-report-prompt-{width}.png")
        browser.press("c")
        browsers.wait_for(browser, f"stage.open && {VIDEOS}")
        browser.picture(out / f"{name}-report-stage-{width}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Take the pictures; says which browser is missing."""
    site, report, out = map(Path, sys.argv[1:] if argv is None else argv)
    out.mkdir(parents=True, exist_ok=True)
    for program, kind in ((browsers.CHROMIUM, browsers.Chromium), (browsers.FIREFOX, browsers.Firefox)):
        name = kind.__name__.lower()
        if program is None:
            print(f"no {name} on this machine: no screenshots of it")
            continue
        with tempfile.TemporaryDirectory(prefix="pcbench-screens-") as profile:
            browser = kind(Path(profile) / "profile")
            try:
                take(browser, name, site, report, out)
            finally:
                browser.close()
    print(f"screenshots: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
