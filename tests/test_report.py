"""The report's folder: it holds what the records say, links only what is in it, and is made again at no cost."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from analysis.load import load_records
from analysis.report import PAGE, data, main, media, write
from tests import report_parts as parts

ROOT = Path(__file__).parents[1]


def handed(path: Path) -> list | dict:
    """What a data script hands over."""
    return json.loads(re.fullmatch(r"REPORT\.\w+\((.*)\);\n", path.read_text(), re.S)[1])


def file_at(folder: Path, address: str) -> Path:
    """The file that a browser reads at an address in a page of this folder."""
    parsed = urllib.parse.urlsplit(urllib.parse.urljoin(f"{folder.as_uri()}/", address))
    path = Path(urllib.parse.unquote(parsed.path))
    assert path.is_file(), address
    assert not parsed.query + parsed.fragment, address
    return path


def index(page: Path) -> dict:
    return handed(page.parent / "data" / "index.js")


def samples(page: Path, prompt: dict) -> dict:
    file, found = handed(page.parent / prompt["file"])
    assert file == prompt["file"]
    return found


def quiet(*arguments, **options) -> Path:
    return write(*arguments, **options, say=lambda line: None)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return quiet(parts.make(folder / "results"), folder / "out")


def test_everything_the_page_names_is_in_its_folder(page):
    html = page.read_text()
    named = re.findall(r'(?:src|href)="([^#"]+)"', html)
    assert {"util.js", "style.css", "data/index.js"} <= set(named)
    (bench,) = index(page)["benches"]
    assert [prompt["prompt"] for prompt in bench["prompts"]] == ["the worst", parts.HOSTILE, "the best"]
    for prompt in bench["prompts"]:
        named.append(prompt["file"])
        for identity, sample in samples(page, prompt).items():
            named.append(sample["video"])
            assert ("difference" in sample) == (identity != "none0")
            named += [sample["difference"]] if identity != "none0" else []
    for name in named:
        assert name.startswith("data:") or ((page.parent / name).is_file() and not os.path.isabs(name)), name


def test_nothing_comes_from_elsewhere_and_no_path_of_this_machine_is_told(page):
    for file in page.parent.rglob("*"):
        if file.suffix in {".html", ".js", ".css"}:
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text, file
            assert "https:" not in text, file
            assert str(page.parents[1]) not in text, file


def test_the_numbers_are_the_records(page):
    (bench,) = index(page)["benches"]
    methods = {method["id"]: method for method in bench["methods"]}
    assert next(iter(methods)) == bench["reference"] == "none0"
    fast = methods["precisecache2"]
    assert fast["label"] == "precisecache threshold=0.2"
    assert fast["macs"] == 2.5
    assert fast["speedup"] == 2.25  # times the timed call's efficiency, 0.9: of all videos, not of the timed one
    assert fast["speedup_range"] == [2.2, 2.3]
    assert fast["computed"] == 6
    assert fast["steps"] == parts.STEPS
    psnr = fast["scores"]["psnr@2"]
    assert psnr["mean"] == pytest.approx((40 + 20 + 60) / 3 - 6, rel=1e-4)
    assert 14 <= psnr["low"] < psnr["mean"] < psnr["high"] <= 54
    assert psnr["n"] == 3
    assert [metric["name"] for metric in bench["metrics"]] == ["psnr@2", "ssim@2"]  # nobody has LPIPS
    assert bench["video"] == {
        "fps": parts.FPS, "frames": parts.FRAMES, "width": parts.WIDTH, "height": parts.HEIGHT, "full": media.FULL
    }  # fmt: skip
    strip = samples(page, bench["prompts"][0])["precisecache2"]
    assert strip["actions"] == parts.ACTIONS["precisecache"]
    assert strip["indicator"] == strip["accumulated"] == [None] * 3 + [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    assert samples(page, bench["prompts"][0])["none0"]["indicator"] is None


def test_settings_of_one_kind_are_a_curve(page):
    curves = {method["id"]: method["curve"] for method in index(page)["benches"][0]["methods"]}
    assert curves["precisecache1"] == curves["precisecache2"] != curves["teacache1"]


def test_a_difference_is_dark_where_equal_and_bright_where_not(page):
    sample = samples(page, index(page)["benches"][0]["prompts"][0])["teacache1"]
    drawn = iio.imread(page.parent / sample["difference"]).astype(float)
    assert drawn.shape == (parts.FRAMES, parts.HEIGHT, parts.WIDTH, 3)
    inner = 6  # pixels from an edge, where compression is at home
    equal = drawn[:, inner:-inner, inner : parts.WIDTH // 2 - inner]
    apart = drawn[:, parts.HEIGHT // 2 + inner : -inner, parts.WIDTH // 2 + inner : -inner]
    assert equal.mean() < 12
    assert apart.mean((0, 1, 2)) == pytest.approx(media.COLOURS[2], abs=16)  # 24 of 48: half way


def test_heat_runs_from_black_to_bright():
    reference = np.zeros((1, 1, 3, 3), np.uint8)
    video = np.array([[[[0, 0, 0], [24, 24, 24], [255, 255, 255]]]], np.uint8)
    none, half, full = media.heat(video, reference)[0, 0].astype(int)
    assert none.sum() < 10
    assert np.abs(half - media.COLOURS[2]).max() <= 3
    assert np.abs(full - media.COLOURS[4]).max() <= 3


def test_videos_are_the_samples_themselves(page):
    (bench,) = index(page)["benches"]
    sample = samples(page, bench["prompts"][0])["teacache1"]
    source = (
        page.parents[1] / "results" / "samples" / parts.MACHINE / parts.MODEL / "teacache-teacache1" / "sample-1.mp4"
    )
    assert (page.parent / sample["video"]).read_bytes() == source.read_bytes()


def test_written_again_only_what_changed_is_made(tmp_path):
    results, out = parts.make(tmp_path / "results"), tmp_path / "out"
    quiet(results, out)
    differences = sorted(out.rglob("*.difference.mp4"))
    assert len(differences) == 9
    before = {path: path.stat().st_mtime_ns for path in differences}
    (folder,) = results.glob("samples/*/*/teacache-teacache1")
    shutil.copytree(folder, tmp_path / "before")
    place = parts.put(results, parts.record("teacache", 1), videos=True, off=0)
    os.utime(place.sample("sample-0").video, ns=(0, 0))  # from elsewhere, and older than what was made of the last one
    for number in (1, 2):
        shutil.copy2(tmp_path / "before" / f"sample-{number}.mp4", folder)
    quiet(results, out)
    changed = [path for path in differences if path.stat().st_mtime_ns != before[path]]
    assert [(path.parent.name, path.name) for path in changed] == [("teacache-teacache1", "sample-0.difference.mp4")]
    assert iio.imread(changed[0]).max() < 60  # the new video equals its reference


def test_a_video_of_another_size_is_refused(tmp_path):
    results = parts.make(tmp_path / "results")
    place = parts.put(results, parts.record("teacache", 1), videos=True)
    iio.imwrite(place.sample("sample-0").video, parts.frames()[:-4], fps=parts.FPS, codec="libx264", macro_block_size=2)
    with pytest.raises(ValueError, match=r"sample-0.mp4 is of shape \(16, .* its reference \(20, "):
        quiet(results, tmp_path / "out")


def test_without_samples_the_rest_is_there(tmp_path):
    page = quiet(parts.make(tmp_path / "results", videos=False), tmp_path / "out")
    (bench,) = index(page)["benches"]
    assert bench["video"] is None
    assert samples(page, bench["prompts"][0])["teacache1"]["actions"] == parts.ACTIONS["teacache"]
    assert not (tmp_path / "out" / "media").exists()


def test_the_worst_prompts_are_kept(tmp_path):
    page = quiet(parts.make(tmp_path / "results", videos=False), tmp_path / "out", prompts=1)
    (bench,) = index(page)["benches"]
    assert [prompt["prompt"] for prompt in bench["prompts"]] == ["the worst"]
    assert bench["prompts_in_all"] == 3


def test_a_prompt_without_any_score_is_not_the_worst():
    metrics = [{"name": "psnr@1", "lower": False}]
    scored = {"a": {"psnr@1": 20.0}, "b": {}}
    assert data._worst(scored, metrics) > -math.inf
    assert data._worst({"a": {}}, metrics) > data._worst(scored, metrics)
    assert data._worst({"a": {}}, metrics) > data._worst({"a": {"psnr@1": 99.0}}, metrics)


def test_machines_and_references_are_not_mixed(tmp_path):
    parts.make(tmp_path / "results", videos=False)
    parts.put(tmp_path / "results", parts.record("teacache", 2, machine="other"))
    parts.put(tmp_path / "results", parts.record("teacache", 2, reference="none9"))
    parts.make(tmp_path / "results" / "more", videos=False)
    found = index(quiet(tmp_path / "results", tmp_path / "out"))["benches"]
    told = [(b["experiment"], b["machine"], b["reference"], len(b["methods"])) for b in found]
    assert told == [("", "m", "none0", 4), ("", "m", "none9", 1), ("", "other", "none0", 1), ("more", "m", "none0", 4)]


def test_a_failure_and_an_identical_video_are_told(tmp_path):
    failed = parts.record("teacache", 1, status="failed", error="no memory", samples=[], macs=None, latency=None)
    same = parts.record("precisecache", 1)
    same["samples"][0]["fidelity"]["psnr@2"] = None
    same["samples"][0]["fidelity_notes"]["psnr@2"] = "identical to the reference"
    for each in (parts.record("none"), failed, same):
        parts.put(tmp_path / "results", each)
    page = quiet(tmp_path / "results", tmp_path / "out")
    (bench,) = index(page)["benches"]
    methods = {method["id"]: method for method in bench["methods"]}
    assert methods["teacache1"]["error"] == "no memory"
    assert methods["teacache1"]["macs"] is None
    assert methods["precisecache1"]["scores"]["psnr@2"]["n"] == 2
    (told,) = (prompt for prompt in bench["prompts"] if prompt["prompt"] == parts.HOSTILE)
    assert samples(page, told)["precisecache1"]["notes"] == ["PSNR, dB: identical to the reference"]
    assert "psnr@2" not in told["scores"]["precisecache1"]


@pytest.mark.parametrize("name", ["fig4", "PSNR #1, 50%25 <or> more?"])
def test_figures_come_with_their_words(name, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    iio.imwrite(figures / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    (figures / f"{name}.md").write_text("Low frequencies\nmove first.\n\nNo, they do not.\n")
    out = quiet(parts.make(tmp_path / "results", videos=False), tmp_path / "out", figures=figures).parent
    (figure,) = handed(out / "data" / "index.js")["figures"]
    assert figure["words"] == ["Low frequencies move first.", "No, they do not."]
    assert file_at(out, figure["file"]).name == f"{name}.png"


def test_the_committed_records_make_a_report(tmp_path):
    page = quiet(ROOT / "results" / "published" / "methods", tmp_path / "out")
    shown = [method["id"] for bench in index(page)["benches"] for method in bench["methods"]]
    assert sorted(shown) == sorted(load_records(ROOT / "results" / "published" / "methods")["id"])


def test_from_the_command_line(tmp_path, capsys):
    parts.make(tmp_path / "results", videos=False)
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no records" in capsys.readouterr().err
    assert main([str(tmp_path / "results"), "--prompts", "0"]) == 2
    assert "one or more" in capsys.readouterr().err


def test_the_report_never_loads_torch():
    code = "import sys, analysis.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_page_is_packaged():
    names = {path.name for path in PAGE.iterdir()}
    assert set(re.findall(r'src="(\w+\.js)"', (PAGE / "index.html").read_text())) == {
        n for n in names if n.endswith("js")
    }
    assert 'analysis = ["report/page/*"]' in (ROOT / "pyproject.toml").read_text()
