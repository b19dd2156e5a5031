"""The report in real browsers, headless, for tests to use: fixtures, and what waits for it."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest

from analysis.report import write
from tests import browsers
from tests import report_parts as parts
from tests.browsers import wait_for

BROWSERS = {"chromium": (browsers.CHROMIUM, browsers.Chromium), "firefox": (browsers.FIREFOX, browsers.Firefox)}
READY = "player.ready.length >= 7 && player.ready.length === player.videos.size"  # a prompt: 4 videos, 3 differences
TIMES = "[...player.videos].map((v) => v.currentTime)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    figures = folder / "figures"
    figures.mkdir()
    iio.imwrite(figures / "fig4.png", np.full((80, 160, 3), 255, np.uint8))
    (figures / "fig4.md").write_text("Change.\n\nDoes it? The paper: yes. Here: no. R is <b>0.1.\n\nBrackets.\n")
    return write(parts.make(folder / "results"), folder / "out", figures=figures, say=lambda line: None)


@pytest.fixture(scope="module", params=BROWSERS)
def browser(request, tmp_path_factory):
    program, kind = BROWSERS[request.param]
    if program is None:
        pytest.skip(f"no {request.param} on this machine")
    started = kind(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def page(browser, report):
    """The page at its first prompt, playing, at 1200×900."""
    browser.resize(1200, 900)
    browser.open(report)
    if not browser.run("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"):
        pytest.skip("this browser lacks an H.264 decoder (Debian: libavcodec)")
    browser.run("document.querySelector('article').scrollIntoView()")
    wait_for(browser, READY)
    yield browser
    assert browser.complaints == []


def paused(page) -> None:
    page.run("player.pause()")
    settled(page)


def settled(page) -> None:
    wait_for(page, f"!player.playing && player.ready.every((v) => v.paused && !v.seeking) && {READY}")


def spread(page) -> float:
    """How far the videos are apart, in frames."""
    times = page.run(TIMES)
    return (max(times) - min(times)) * parts.FPS


def painted(page, places: list[list[float]], folder) -> np.ndarray:
    """The red, green and blue of the window at these places: (places, 3)."""
    page.picture(folder / "shown.png")
    shown = iio.imread(folder / "shown.png")[..., :3].astype(int)
    return np.array([shown[int(y), int(x)] for x, y in places])
