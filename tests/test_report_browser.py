"""The report opened from disk in real browsers, headless: it plays, seeks, stays in sync, and obeys the keyboard."""

from __future__ import annotations

import statistics
import time

import imageio.v3 as iio
import pytest

from analysis.report import write
from tests import browsers
from tests import report_parts as parts
from tests.browsers import wait_for

from .report_pages import READY, TIMES, browser, page, painted, paused, report, settled, spread

pytestmark = pytest.mark.browser


def test_videos_play_in_sync_and_start_over(page):
    wait_for(page, "player.playing && player.ready.every((v) => !v.paused && v.currentTime > 0)")
    seen, apart, again, until = [], [], 0, time.monotonic() + 60
    while again < 10:  # so often seen after the end, all of them under way
        assert time.monotonic() < until, (seen, apart)
        if page.run("[...player.videos].every((v) => v.readyState >= 2 && !v.paused && !v.seeking)"):
            seen.append(page.run("player.frame"))
            apart.append(spread(page))
            again += max(seen) > parts.FRAMES // 2 and (again > 0 or seen[-1] < max(seen) - 5)
        time.sleep(0.05)
    assert statistics.median(apart) < 1, apart  # a busy machine may stall one for a moment
    assert len(set(seen)) > 5


def test_paused_all_videos_show_the_frame_that_is_told(page, tmp_path):
    paused(page)
    for frame in (0, 7, 19, 12):
        page.run(f"player.seek({frame})")
        settled(page)
        assert page.run("player.frame") == frame
        assert spread(page) == 0
        assert page.run("document.getElementById('time').textContent").startswith(f"{frame + 1}/{parts.FRAMES} ")
        # an eighth into each picture, where all four videos are of the frame's own grey
        places = page.run(
            "[...document.querySelectorAll('video.video')].map((v) => v.getBoundingClientRect())"
            ".filter((r) => r.top > 0 && r.bottom < 750).map((r) => [r.left + r.width / 8, r.top + r.height / 8])"
        )
        assert len(places) == 4
        until = time.monotonic() + 20
        while (greys := painted(page, places, tmp_path)) != pytest.approx(10 + 11 * frame, abs=5):
            assert time.monotonic() < until, (frame, greys)  # a busy machine paints a sought frame late
        assert page.run(f"[...player.videos].every((v) => player.shows(v, {frame}))")


def test_the_keyboard_plays_pauses_and_steps(page):
    paused(page)
    page.run("player.seek(5)")
    settled(page)
    page.press("ArrowRight")
    settled(page)
    assert page.run("player.frame") == 6
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    settled(page)
    assert page.run("player.frame") == 4
    assert page.run(TIMES) == pytest.approx([4.5 / parts.FPS] * page.run("player.videos.size"))
    page.press(" ")
    wait_for(page, "player.playing && player.frame > 5")
    page.press(" ")
    settled(page)
    assert page.run("document.getElementById('play').getAttribute('aria-label')") == "Play"
    page.press("d")
    settled(page)
    frame = page.run("player.frame")
    page.press("a")
    settled(page)
    assert page.run("player.frame") == frame - 1
    page.press("v")
    assert page.run("document.body.dataset.view") == "video"
    assert page.run("getComputedStyle(document.querySelector('video.difference')).display") == "none"
    page.run("document.getElementById('play').focus()")
    page.press(" ")  # presses the button, once
    wait_for(page, "player.playing")


def test_a_figure_answers_first_and_explains_on_demand(page):
    paused(page)
    page.run("scrollTo(0, 0)")
    page.run("document.getElementById('to-figures').click()")
    assert page.run("document.activeElement.id") == "figures"
    assert not page.run("location.hash")
    wait_for(page, "document.querySelector('#figures img').naturalWidth === 160")
    told = "[...document.querySelectorAll('#figures summary')].map((s) => s.textContent)"
    assert page.run(told) == ["Does it? no", "More"]
    words = "document.querySelector('#figures details p')"
    assert not page.run(f"{words}.checkVisibility()")
    page.run("document.querySelector('#figures summary').focus()")
    page.press(" ")  # opens it, and plays nothing
    wait_for(page, f"{words}.checkVisibility()")
    assert page.run(f"{words}.textContent") == "The paper: yes. Here: no. R is <b>0.1."
    assert not page.run("player.playing")


def test_the_keyboard_goes_from_prompt_to_prompt(page):
    page.run("scrollTo(0, 0)")
    assert page.run("[...document.querySelectorAll('h3')].map((h) => h.firstChild.textContent)") == [
        "the worst", parts.HOSTILE, "the best"
    ]  # fmt: skip
    page.press("j")
    wait_for(page, "document.activeElement.getAttribute('aria-label') === 'the worst'")
    wait_for(page, "Math.abs(document.activeElement.getBoundingClientRect().top) < 20")
    page.press("j")
    wait_for(page, "document.activeElement.getAttribute('aria-label').startsWith('a </script>')")
    wait_for(page, "Math.abs(document.activeElement.getBoundingClientRect().top) < 20")
    page.press("k")
    wait_for(page, "document.activeElement.getAttribute('aria-label') === 'the worst'")
    assert not page.run("document.querySelector('h3 img, article img')")  # a prompt is text, whatever it says


def test_a_strip_reads_its_steps(page):
    page.run("document.querySelector('figure[data-id=precisecache2] .strip').focus()")
    for _ in range(5):
        page.press("ArrowRight")
    reads = "document.querySelector('figure[data-id=precisecache2] .reads').textContent"
    assert page.run(reads) == "step 6/10 · σ 0.500 · computed in part · LFD 0.25 · sum 0.25 ≥ δ 0.2"
    box = "document.querySelector('figure[data-id=precisecache2] .strip').getAttribute"
    assert page.run(f"{box}('aria-valuenow')") == "6"
    page.press("ArrowLeft")
    assert page.run(reads) == "step 5/10 · σ 0.600 · reused · LFD 0.2 · sum 0.2 ≥ δ 0.2"
    page.run("document.activeElement.blur()")
    assert page.run(reads) == "5 of 10 steps computed, 1 in part, 4 reused"
    acts = "document.querySelectorAll('article:first-child figure[data-id=precisecache2] .act')"
    assert page.run(f"[...{acts}].map((a) => a.classList[1].at(-1)).join('')") == parts.ACTIONS["precisecache"]


def test_the_table_sorts(page):
    def sort(title: str) -> list[str]:
        page.run(
            f"[...document.querySelectorAll('th button')].find((b) => b.textContent.startsWith('{title}')).click()"
        )
        return page.run("[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id)")

    assert sort("PSNR") == ["precisecache1", "teacache1", "precisecache2", "none0"]
    assert page.run("document.querySelector('th[aria-sort=descending]').textContent") == "PSNR, dB ↓"
    assert sort("PSNR") == ["precisecache2", "teacache1", "precisecache1", "none0"]
    assert sort("setting") == ["none0", "precisecache1", "precisecache2", "teacache1"]
    assert page.run("document.activeElement.textContent").startswith("setting")


def test_a_point_is_followed_and_a_method_is_hidden(page):
    page.run("document.querySelector('.mark[tabindex=\"0\"]').focus()")
    assert page.run("document.activeElement.dataset.id") == "precisecache1"
    page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.id") == "teacache1"
    assert "teacache" in page.run("document.querySelector('.tip:not([hidden])').textContent")
    page.press("Enter")
    followed = "[...document.querySelectorAll('.followed')].map((e) => e.tagName.toLowerCase())"
    assert sorted(set(page.run(followed))) == ["figure", "g", "path", "tr"]
    assert page.run("document.querySelector('tr.picked').dataset.id") == "teacache1"
    page.run("[...document.querySelectorAll('.chip')].find((c) => c.textContent === 'teacache').click()")
    left = "[...document.querySelectorAll('[data-method]')].filter((e) => e.dataset.method === 'teacache').length"
    assert page.run(left) == 0
    wait_for(page, "document.querySelectorAll('article:first-child figure').length === 3")


def test_prompts_are_ordered_as_asked(page):
    choose = "((s) => {{ s.value = '{}'; s.dispatchEvent(new Event('change')); }})(document.getElementById('order'))"
    titles = "[...document.querySelectorAll('article')].map((a) => a.getAttribute('aria-label'))"
    page.run(choose.format("name"))
    assert page.run(titles) == [parts.HOSTILE, "the best", "the worst"]
    page.run(choose.format("teacache"))
    assert page.run(titles) == ["the worst", parts.HOSTILE, "the best"]
    wait_for(page, READY)


def test_far_prompts_give_their_decoders_back(page):
    page.run("document.querySelectorAll('article').forEach((a) => { a.style.marginBottom = '3000px'; })")
    wait_for(page, "player.videos.size === 7")
    page.run("document.querySelector('article:last-child').scrollIntoView()")
    wait_for(page, "player.videos.size === 7 && document.querySelectorAll('article:first-child video').length === 0")
    wait_for(page, "document.querySelectorAll('article:last-child video').length === 7")


@pytest.mark.parametrize("width", [380, 700])
def test_nothing_is_wider_than_a_narrow_window(page, width):
    page.resize(width, 800)
    wait_for(page, f"innerWidth <= {max(width, 500)}")  # Firefox's windows are at least 450 wide
    time.sleep(0.3)
    assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.run("document.getElementById('table').scrollWidth <= document.getElementById('table').clientWidth")
    assert page.run("document.getElementById('transport').getBoundingClientRect().right <= innerWidth")


def test_records_alone_make_a_page_too(browser, tmp_path):
    page = write(parts.make(tmp_path / "results", videos=False), tmp_path / "out", say=lambda line: None)
    browser.resize(1200, 900)
    browser.open(page)
    browser.run("document.querySelector('article').scrollIntoView()")
    wait_for(browser, "document.querySelectorAll('article:first-child .strip').length === 4")
    assert browser.run("document.getElementById('transport').hidden")
    assert "videos are not here" in browser.run("document.getElementById('videos-note').textContent")
    assert browser.run("document.querySelectorAll('video').length") == 0
    assert browser.complaints == []


def test_who_wants_less_motion_and_dark_gets_it(browser, report):
    if not isinstance(browser, browsers.Chromium):
        pytest.skip("only Chromium's protocol sets a reader's preferences")
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.prefer(color_scheme="light", reduced_motion="reduce")
    browser.open(report)
    browser.run("document.querySelector('article').scrollIntoView()")
    wait_for(browser, READY)
    assert not browser.run("player.playing")
    light = browser.run(paper)
    browser.prefer(color_scheme="dark")
    assert browser.run(paper) != light


def test_a_comparison_of_folders_has_videos_and_scores_but_no_speeds(browser, tmp_path):
    from pcbench.compare.__main__ import main

    for folder, off in (("ref", 0), ("near", 4), ("far", 24)):
        for name in ("a.mp4", "b.mp4"):
            (tmp_path / folder).mkdir(exist_ok=True)
            iio.imwrite(tmp_path / folder / name, parts.frames(off), fps=parts.FPS)
    words = [*(str(tmp_path / folder) for folder in ("ref", "near", "far")), "fidelity=raw", "page=false"]
    assert main([*words, f"out={tmp_path / 'compared'}"]) == 0
    browser.resize(1200, 900)
    browser.open(write(tmp_path / "compared", tmp_path / "out", say=lambda line: None))
    browser.run("document.querySelector('article').scrollIntoView()")
    wait_for(browser, "document.querySelectorAll('article:first-child video.video').length === 3")
    assert browser.run("document.getElementById('plot').closest('section').hidden")
    assert browser.run("document.querySelectorAll('.strip').length") == 0
    assert "2 folders, 2 videos each" in browser.run("document.getElementById('about').textContent")
    headings = browser.run("[...document.querySelectorAll('#table th button')].map((b) => b.textContent)")
    assert "MACs ÷" not in headings
    assert "temporal PSNR, dB" in headings
    assert browser.complaints == []
