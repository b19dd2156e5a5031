"""`python -m pcbench.compare`: official numbers on given files, pairs by name, refusals, kept scores, the page."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from analysis import report
from analysis.report import comparison
from pcbench.compare import __main__ as compare
from pcbench.compare import scores
from pcbench.compare.pairs import labels, shape_of
from pcbench.fidelity.stage import measure, settled
from pcbench.sampling.video import read_mp4

from .test_report import file_at, handed

GOLDEN = Path(__file__).parent / "golden" / "fidelity"
OFFICIAL = json.loads(GOLDEN.with_suffix(".json").read_text())


def video(path: Path, seed: int = 0, frames: int = 5, height: int = 32, width: int = 48, fps: int = 8) -> None:
    """A small mp4 of a moving texture; seeds differ in noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, frames, height, width, fps))


@functools.cache
def encoded(seed: int, frames: int, height: int, width: int, fps: int) -> bytes:
    """The file of `video`: most tests begin with the same ones."""
    texture = np.random.default_rng(9).integers(40, 200, (height, width, 3))
    noise = np.random.default_rng(seed).normal(0, 3 * seed, (frames, height, width, 3))
    moving = np.stack([np.roll(texture, t, axis=1) for t in range(frames)]) + noise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        imageio.mimwrite(path, list(moving.clip(0, 255).astype(np.uint8)), fps=fps, macro_block_size=2)
        return path.read_bytes()


@pytest.fixture
def pair(tmp_path, monkeypatch) -> tuple[str, str]:
    """Names of two folders of two videos each, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        video(Path("ref") / name)
        video(Path("fast") / name, seed=1)
    return "ref", "fast"


def content(out: str = "comparison") -> dict:
    return json.loads((Path(out) / "comparison.json").read_text())


def test_official_codes_numbers(tmp_path, capsys):
    pairs = {f"{number}.mp4": entry for number, entry in enumerate(OFFICIAL["pairs"])}
    for name, entry in pairs.items():
        for folder, source in (("ref", entry["reference"]), ("out", entry["video"])):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copyfile(GOLDEN / source, tmp_path / folder / name)
    words = [str(tmp_path / "ref"), str(tmp_path / "out"), f"out={tmp_path / 'c'}", "page=false"]
    assert compare.main(words) == 0
    (folder,) = content(tmp_path / "c")["folders"]
    assert [found["name"] for found in folder["videos"]] == list(pairs)
    for found in folder["videos"]:
        entry, own = pairs[found["name"]], found["fidelity"]
        for metric in ("psnr", "ssim"):
            expected = {"videosys": float(np.mean(entry["videosys"][metric]))}
            expected |= {name: entry[name][metric] for name in ("easycache", "chitu")}
            for convention, value in expected.items():
                name, close = (
                    f"{convention}.{metric}@1",
                    4e-6 if (convention, metric) == ("easycache", "psnr") else 1e-6,
                )
                assert own[name] == (None if value == "inf" else pytest.approx(value, abs=close)), (found["name"], name)
    for metric in ("psnr", "ssim"):
        official = OFFICIAL["videosys_batch_of_all"][metric]
        assert folder["fidelity"][f"videosys.{metric}@1"]["mean"] == pytest.approx(official, abs=1e-6)
    printed = capsys.readouterr().out
    assert "| videosys | PSNR dB | SSIM | n |" in printed
    assert "temporal PSNR dB | sharpness" in printed
    assert "easycache_hunyuan" not in printed  # on given files it is easycache


@pytest.mark.parametrize("size", [(40, 56), (30, 46)])
def test_sizes_that_are_no_multiple_of_16_are_compared_as_they_are(size, tmp_path):
    for folder, seed in (("ref", 0), ("out", 1)):
        video(tmp_path / folder / "x.mp4", seed, height=size[0], width=size[1])
    words = [str(tmp_path / "ref"), str(tmp_path / "out"), f"out={tmp_path / 'c'}", "page=false"]
    assert compare.main(words) == 0
    frames = [read_mp4(tmp_path / folder / "x.mp4") for folder in ("out", "ref")]
    assert frames[0].shape[1:3] == size
    (found,) = content(tmp_path / "c")["folders"][0]["videos"]
    for name in ("psnr@2", "videosys.psnr@1", "chitu.ssim@1", "easycache.ssim@1"):
        assert found["fidelity"][name] == measure(name, *frames)["value"]


def refused(words: list[str], capsys) -> str:
    assert compare.main(words) == 2
    captured = capsys.readouterr()
    assert not Path("comparison").exists()
    assert all(len(line) <= 300 and line.startswith("pcbench.compare: ") for line in captured.err.splitlines())
    return captured.err


def test_folders_that_do_not_match_are_refused_by_name(pair, capsys):
    Path("fast/b.mp4").rename("fast/c.mp4")
    text = refused([*pair], capsys)
    assert "fast: 1 of 2 missing: b.mp4" in text
    assert "fast: 1 without a reference of that name: c.mp4" in text
    Path("fast/c.mp4").unlink()
    for changed, words in (
        ({"frames": 4}, "b.mp4 has 4 frames of 32x48 at 8 fps, its reference 5 frames of 32x48 at 8 fps"),
        ({"height": 48}, "b.mp4 has 5 frames of 48x48 at 8 fps"),
        ({"fps": 10}, "b.mp4 has 5 frames of 32x48 at 10 fps"),
    ):
        video(Path("fast/b.mp4"), **changed)
        assert words in refused([*pair], capsys)
    video(Path("fast/a.mp4"), frames=4)
    assert "(2 of 2 differ: a.mp4, b.mp4)" in refused([*pair], capsys)
    Path("fast/b.mp4").write_bytes(Path("ref/b.mp4").read_bytes()[:-100])
    assert "fast: b.mp4: is no whole mp4 file" in refused([*pair], capsys)


def test_ten_missing_videos_are_counted_and_some_named_in_order(pair, capsys):
    for number in range(12):
        shutil.copyfile("ref/a.mp4", f"ref/{number}.mp4")
    assert "fast: 12 of 14 missing: 0.mp4, 1.mp4, 2.mp4, 3.mp4 and 8 more" in refused([*pair], capsys)


def test_wrong_words_are_one_line(pair, capsys):
    Path("empty").mkdir()
    video(Path("outer/inner/a.mp4"))
    for words, line in {
        ("ref",): "at least one folder to compare",
        ("ref", "fats"): "no folder fats: did you mean 'fast'?",
        ("ref", "empty"): "empty holds no mp4 file",
        ("ref", "outer"): "outer holds no mp4 file; its folder 'inner' has some",
        ("ref", "fast", "./ref"): "is given twice",
        ("ref", "fast", "--fidelity=raw"): "unknown option '--fidelity=raw'",
        ("ref", "fast", "fidelity=psnr"): "unknown fidelity 'psnr'",
        ("ref", "fast", "device=tpu"): "device must be auto",
        ("ref", "fast", "page=maybe"): "page is true or false",
    }.items():
        assert line in refused(list(words), capsys)
    assert compare.main(["--help"]) == 0
    assert "out=FOLDER" in capsys.readouterr().out


def test_only_what_is_missing_is_computed(pair, monkeypatch, capsys):
    computed: list[str] = []
    monkeypatch.setattr(scores, "measure", lambda name, *rest: computed.append(name) or measure(name, *rest))
    words = [*pair, "page=false"]
    assert compare.main([*words, "fidelity=raw"]) == 0
    first, raw = content(), scores.metrics_of(["raw"])
    assert sorted(computed) == sorted(2 * raw)
    computed.clear()
    assert compare.main([*words, "fidelity=raw"]) == 0
    assert not computed
    assert content() == first
    assert compare.main([*words, "fidelity=[raw,chitu]"]) == 0
    assert set(computed) == set(scores.metrics_of(["chitu"]))
    computed.clear()
    video(Path("fast/b.mp4"), seed=3)
    video(Path("slow/a.mp4"), seed=2), video(Path("slow/b.mp4"), seed=2)
    assert compare.main(["ref", "fast", "slow", "page=false", "fidelity=raw"]) == 0
    assert len(computed) == 3 * len(raw)
    psnr = {folder["label"]: folder["fidelity"]["psnr@2"] for folder in content()["folders"]}
    assert psnr["fast"]["worst"] < psnr["slow"]["mean"]
    assert "worst of fast by PSNR: b.mp4" in capsys.readouterr().out


def test_one_video_has_no_interval(pair):
    Path("ref/b.mp4").unlink(), Path("fast/b.mp4").unlink()
    assert compare.main([*pair, "page=false"]) == 0
    assert {found["half_width_95"] for found in content()["folders"][0]["fidelity"].values()} == {None}


def test_identical_videos_have_no_psnr(pair, capsys):
    shutil.copytree("ref", "same")
    assert compare.main(["ref", "same", "page=false"]) == 0
    (folder,) = content()["folders"]
    assert (folder["fidelity"]["psnr@2"]["identical"], folder["fidelity"]["psnr@2"]["mean"]) == (2, None)
    assert "identical" in capsys.readouterr().out


def test_the_page_shows_the_folders_beside_their_reference(pair):
    video(Path("slow/a.mp4"), seed=2), video(Path("slow/b.mp4"), seed=5)
    assert compare.main(["ref", "fast", "slow", "page=false"]) == 0
    (bench,) = comparison.benches(Path("comparison"))
    assert [method["label"] for method in bench["methods"]] == ["ref", "fast", "slow"]
    assert [prompt["title"] for prompt in bench["prompts"]] == ["b.mp4", "a.mp4"]  # the worst first
    assert bench["methods"][1]["scores"]["psnr@2"]["n"] == 2
    assert {"name": "sharpness@1", "title": "sharpness", "lower": False, "ideal": 1.0} in bench["metrics"]
    page = report.write(Path("comparison"), Path("page"), say=lambda line: None)
    assert page.is_file()
    for folder in bench["videos"]:
        assert {path.name for path in Path("page/media", folder).glob("?.mp4")} == {"a.mp4", "b.mp4"}
    assert len(list(Path("page/media").rglob("*.difference.mp4"))) == 4
    start = Path("page/data/index.js").read_text()
    assert '"comparison":true' in start
    assert str(Path.cwd()) not in start  # the page can be given away
    Path("comparison/comparison.json").write_text('{"reference": 1}')
    with pytest.raises(ValueError, match="is damaged"):
        report.write(Path("comparison"), Path("page"))


def test_the_page_addresses_videos_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["cat #1.mp4", "is it a cat?-0.mp4", "50%25.mp4", 'quo\'te "x" <b>.mp4', "ünï.mp4"]
    for name in names:
        video(Path("ref") / name)
        video(Path("fast") / name, seed=1)
    assert compare.main(["ref", "fast", "page=false", "fidelity=raw"]) == 0
    report.write(Path("comparison"), Path("page"), say=lambda line: None)
    shown = []
    for script in Path("page/data").glob("?-*.js"):
        _, samples = handed(script)
        shown += [file_at(tmp_path / "page", sample["video"]).name for sample in samples.values()]
        (made,) = (sample["difference"] for sample in samples.values() if "difference" in sample)
        assert file_at(tmp_path / "page", made).name.endswith(".difference.mp4")
    assert sorted(shown) == sorted(2 * names)


def test_labels_tell_folders_apart():
    assert labels([Path("a"), Path("b")]) == ["a", "b"]
    assert labels([Path("a/out"), Path("b/out")]) == ["a/out", "b/out"]
    assert len({scores.slug("a/out"), scores.slug("a-out"), scores.slug("a out")}) == 3


def test_shapes_are_read_from_headers(tmp_path):
    video(tmp_path / "x.mp4", frames=7, height=40, width=56, fps=12)
    assert str(shape_of(tmp_path / "x.mp4")) == "7 frames of 40x56 at 12 fps"
    (tmp_path / "y.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match="no whole mp4 file"):
        shape_of(tmp_path / "y.mp4")


def varying(path: Path, source: Path) -> None:
    """The same frames, of which some come late: a rate that varies, with the same mean."""
    path.parent.mkdir(exist_ok=True)
    late = "setpts='if(between(N,1,3),(N+0.9)/8/TB,N/8/TB)'"
    words = ["-i", source, "-vf", late, "-fps_mode", "vfr", "-enc_time_base", "1/1000", "-qp", "0", "-bf", "0"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *words, "-video_track_timescale", "1000", path]
    subprocess.run(command, check=True)


def test_each_frame_is_read_once_at_a_rate_that_varies(pair):
    """Without the page, whose differences are of the same frames."""
    for name in ("a.mp4", "b.mp4"):
        varying(Path("late") / name, Path("ref") / name)
    assert np.array_equal(read_mp4(Path("late/a.mp4")), read_mp4(Path("ref/a.mp4")))
    assert compare.main(["ref", "late"]) == 0
    assert content()["folders"][0]["fidelity"]["psnr@2"]["identical"] == 2


def test_names_may_be_as_long_as_the_file_system_allows(pair):
    names = {"提" * 77 + "-0.mp4", "x" * 251 + ".mp4"}
    for folder in pair:
        Path(folder, "b.mp4").unlink()
        for name in names:
            shutil.copyfile(f"{folder}/a.mp4", f"{folder}/{name}")
    for _ in range(2):
        assert compare.main([*pair, "fidelity=raw"]) == 0
    assert {video["name"] for video in content()["folders"][0]["videos"]} == names | {"a.mp4"}
    assert len(list(Path("comparison/report/media").rglob("*.difference.mp4"))) == 3


def test_accents_are_the_same_however_they_are_written(pair, capsys):
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    Path("ref/a.mp4").rename(f"ref/{composed}"), Path("fast/a.mp4").rename(f"fast/{decomposed}")
    assert compare.main([*pair, "fidelity=raw"]) == 0
    (bench,) = comparison.benches(Path("comparison"))
    assert all(path.is_file() for videos in bench["videos"].values() for path, _ in videos.values())
    shutil.rmtree("comparison")
    shutil.copyfile(f"fast/{decomposed}", f"fast/{composed}")
    assert "two files whose names look alike" in refused([*pair], capsys)


def test_hidden_files_are_passed_over_and_other_containers_named(pair, capsys):
    Path("fast/._a.mp4").write_bytes(b"\0\5\x16\7" * 16)
    Path("fast/.partial-1-x-a.mp4").touch()
    for folder in pair:
        Path(folder, "c.webm").touch()
    Path("fast/d.GIF").touch()
    assert compare.main([*pair, "page=false", "fidelity=raw"]) == 0
    printed = capsys.readouterr().out
    assert "ref: left out, as only mp4 files are read: c.webm\n" in printed
    assert "fast: left out, as only mp4 files are read: c.webm, d.GIF\n" in printed
    shutil.rmtree("comparison")
    Path("other").mkdir()
    Path("other/e.mkv").touch()
    assert "other holds no mp4 file; convert its other videos first: e.mkv" in refused(["ref", "other"], capsys)


def test_frames_too_small_for_a_metric_have_its_reason_and_the_others_their_values(pair, monkeypatch, capsys):
    video(Path("ref/a.mp4"), height=6, width=6), video(Path("fast/a.mp4"), 1, height=6, width=6)
    assert compare.main([*pair, "page=false"]) == 0
    small, large = content()["folders"][0]["videos"]
    assert small["fidelity"]["psnr@2"] is not None
    assert small["fidelity"]["ssim@2"] is None
    assert small["fidelity_notes"]["ssim@2"] == "SSIM needs frames of at least 11x11 pixels"
    assert "\nSSIM needs frames of at least 11x11 pixels\n" in capsys.readouterr().out
    assert large["fidelity"]["ssim@2"] is not None
    monkeypatch.setattr(scores, "measure", None)  # nothing is left to do
    assert compare.main([*pair, "page=false"]) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 10, 11])
def test_no_metric_fails_for_small_frames(size):
    frames = np.random.default_rng(size).integers(0, 255, (2, 3, size, size + 1, 3)).astype(np.uint8)
    for name in scores.metrics_of(scores.COMPARABLE):
        found = measure(name, *frames)
        assert np.isfinite(found["frames"]).all(), name
        assert bool(found["frames"]) != bool(found["note"]), name
        assert settled(name, found), name


def test_a_pair_that_fails_is_named_and_the_others_are_scored(pair, monkeypatch, capsys):
    def failing(path: Path) -> np.ndarray:
        if path == Path("fast/a.mp4"):
            raise OSError("could not be decoded")
        return read_mp4(path)

    with monkeypatch.context() as patch:
        patch.setattr(scores, "read_mp4", failing)
        assert compare.main([*pair, "page=false"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "pcbench.compare: failed: fast: a.mp4: could not be decoded\n"
    assert "worst of fast by PSNR: b.mp4" in captured.out
    assert compare.main([*pair, "page=false"]) == 0  # it is tried again
