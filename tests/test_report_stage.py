"""One prompt on the report's stage, in real browsers: settings in one place, a shared crop, a link, a PNG."""

from __future__ import annotations

import functools
import http.server
import threading
import time

import numpy as np
import pytest

from tests import report_parts as parts
from tests.browsers import wait_for

from .report_pages import READY, browser, page, painted, paused, report

pytestmark = pytest.mark.browser
STAGED = "stage.open && player.ready.length === player.videos.size && player.videos.size === 7"


def staged(page) -> None:
    """One prompt alone, large, its videos paused at frame 7."""
    paused(page)
    page.press("c")
    wait_for(page, STAGED)
    page.run("player.seek(7)")
    wait_for(page, "player.ready.length === 7 && player.ready.every((v) => !v.seeking && v.paused)")


def greys_of(page, places, folder) -> np.ndarray:
    """The grey of the stage at places in shares of its view."""
    box = page.run("(({left, top, width, height}) => [left, top, width, height])(stage.view.getBoundingClientRect())")
    left, top, width, height = box
    return painted(page, [[left + u * width, top + v * height] for u, v in places], folder).mean(axis=1)


def shows(page, places, greys, folder) -> None:
    """A busy machine paints late."""
    until = time.monotonic() + 20
    while (found := greys_of(page, places, folder)) != pytest.approx(greys, abs=6):
        assert time.monotonic() < until, (found, greys)
        time.sleep(0.1)


def test_settings_take_turns_in_one_place_beside_the_reference(page, tmp_path):
    """A cached video is brighter in its lower right quarter, the reference nowhere."""
    staged(page)
    grey, corner = 10 + 11 * 7, (0.8, 0.8)
    names = page.run("stage.methods.map((m) => m.id)")
    assert len(names) == 4
    assert page.run("stage.at") == names[1]
    shows(page, [(0.3, 0.8), corner], [grey, grey + parts.ERROR], tmp_path)
    page.run("stage.change(() => { stage.split = 0.9; })")
    shows(page, [corner, (0.96, 0.8)], [grey, grey + parts.ERROR], tmp_path)  # left of the split: the reference
    page.press("s")
    shows(page, [corner], [grey + parts.ERROR], tmp_path)
    for name in (*names[2:], names[0]):
        page.press("Tab")
        assert page.run("stage.at") == name
    shows(page, [corner], [grey], tmp_path)
    page.press("d")
    wait_for(page, "player.frame === 8 && player.ready.length === 7")
    shows(page, [corner, (0.2, 0.2)], [grey + 11, grey + 11], tmp_path)
    page.press("j")
    wait_for(page, f"{STAGED} && stage.prompt === sections.box.children[1].prompt")
    page.press("Escape")
    wait_for(page, "!stage.open && document.querySelector('article video') !== null")


SLOW = """(window.waiting = [], window.real = samplesOf, samplesOf = (prompt) => new Promise((resolve) => {
    waiting.push({ prompt, go: () => resolve(real(prompt)) });
}), 0)"""
ARRIVE = (
    "[...sections.box.children].reverse().forEach((each) => waiting.forEach((w) => w.prompt === each.prompt && w.go()))"
)


def test_the_prompt_asked_for_last_is_shown_however_slowly_they_load(page):
    """Two quick J move by two; what is closed while it loads stays closed."""
    staged(page)
    page.run("(stage.follow(1), stage.follow(1), 0)")
    wait_for(page, f"{STAGED} && stage.prompt === sections.box.children[2].prompt")
    page.run(SLOW)
    page.run("[0, 1].forEach((i) => { stage.show(sections.box.children[i].prompt); })")
    page.run(ARRIVE)  # the last one first
    wait_for(page, f"{STAGED} && stage.prompt !== sections.box.children[2].prompt")
    time.sleep(0.2)
    assert page.run("stage.prompt === sections.box.children[1].prompt")
    for _ in range(2):  # with a prompt on the stage, and without
        page.run("(stage.show(sections.box.children[0].prompt), 0)")
        page.press("Escape")
        page.run(ARRIVE)
        time.sleep(0.2)
        assert not page.run("stage.open")
    page.run("(samplesOf = real, 0)")


def test_a_damaged_address_shows_the_page(page, report):
    page.open(f"{report.as_uri()}#100%")
    wait_for(page, "document.querySelectorAll('article').length === 3")


def test_a_crop_is_shared_by_all_videos_and_a_link_restores_the_view(page, tmp_path):
    staged(page)
    page.run("stage.change(() => crop.about(0.75, 0.75, 4))")
    assert page.run("[crop.zoom, crop.x, crop.y]") == pytest.approx([4, 0.5625, 0.5625])
    page.press("s")
    shows(page, [(0.1, 0.1), (0.9, 0.9)], [10 + 11 * 7 + parts.ERROR] * 2, tmp_path)  # all of it the brighter quarter
    page.press("Tab")
    wait_for(page, "location.hash.includes('crop=4.0000') && location.hash.includes(`setting=${stage.at}`)")
    kept = "[stage.at, stage.prompt.title, player.frame, stage.split, crop.zoom, crop.x]"
    address, before = page.run("location.href"), page.run(kept)
    page.open(address)
    wait_for(page, STAGED)
    wait_for(page, "!location.hash.includes('frame=1&')")
    assert page.run(kept) == before
    page.press("Escape")
    wait_for(page, "!stage.open && document.querySelector('article video') !== null")
    moved = page.run("getComputedStyle(document.querySelector('article video')).transform")
    assert moved.startswith("matrix(4, 0, 0, 4,")
    page.run("crop.set({ zoom: 1 })")


def test_a_crop_is_saved_as_a_picture_where_a_server_gives_the_page(page, report):
    staged(page)
    for _ in range(100):  # a busy machine may have no frame yet
        page.press("p")  # opened from disk: Firefox saves it, Chromium may not
        time.sleep(0.2)
        if said := page.run("/^saved |python -m http.server/.test(stage.said.textContent)"):
            break
    assert said
    handler = functools.partial(QuietHandler, directory=str(report.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.open(f"http://127.0.0.1:{server.server_port}/{report.name}")
        page.run("document.querySelector('article').scrollIntoView()")
        wait_for(page, READY)
        staged(page)
        page.run("(window.saved = null, URL.createObjectURL = (blob) => { saved = blob; return '#'; }, 0)")
        page.run("stage.change(() => crop.about(0.5, 0.5, 2))")
        page.press("p")
        wait_for(page, "saved !== null")
        size = "createImageBitmap(saved).then(({width, height}) => [width, height])"
        assert page.run(size) == [parts.WIDTH // 2, parts.HEIGHT // 2]
        assert page.run("saved.type") == "image/png"
        page.open("about:blank")
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass
