"""VBench's stage and the protocol of its worker, with a fake interpreter: what VBench would pass over is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from pcbench import devices
from pcbench.config import ConfigError
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.vbench import environment, process, results, stage
from pcbench.vbench.tasks import require

from .vbench_parts import BICYCLE, OTHER, STOP, TOILET, fake_environment, fake_vbench, frames, make_samples, run_of

FLICKER = "temporal_flickering"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where the environment is to be; weights are nowhere."""
    monkeypatch.setenv("PCBENCH_VBENCH", str(tmp_path / "home"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    return tmp_path / "home"


def score(run) -> list[str]:
    said: list[str] = []
    stage.score(job_of(run), said.append)
    return said


def failure(run) -> str:
    """The reason of the one dimension that fails; the record must have it too, and no number."""
    said: list[str] = []
    with pytest.raises(RuntimeError, match="VBench scored 0 of 1 dimensions") as error:
        stage.score(job_of(run), said.append)
    (suite,) = results.summary(job_of(run).place.folder)
    (told,) = suite["dimensions"].values()
    assert told["score"] is None
    assert told["n"] == 0
    assert told["reason"] in str(error.value)
    assert any("not scored: " + told["reason"] in line for line in said)
    assert results.per_sample(job_of(run).place.folder) == {}
    return told["reason"]


def test_a_score_goes_to_the_record_and_is_not_made_twice(home, tmp_path):
    calls = fake_environment(home, 'reply["score"] = 0.75\nreply["videos"][videos[0]] = True')
    run = run_of(tmp_path / "out", [STOP, TOILET], FLICKER, seeds=(3, 7))
    make_samples(run)
    (line,) = score(run)
    assert "temporal_flickering 0.7500  4 videos" in line
    (call,) = map(json.loads, calls.read_text().splitlines())
    assert call["names"] == sorted(f"{prompt}-{index}.mp4" for prompt in (STOP, TOILET) for index in (0, 1))
    assert call["mode"] == "vbench_standard"
    assert call["device"] == ""
    (suite,) = results.summary(job_of(run).place.folder)
    told = suite["dimensions"][FLICKER]
    assert (told["score"], told["n"], told["unscored"], told["official"]) == (0.75, 4, {}, 375)
    assert suite["seeds"] == [3, 7]
    assert len(suite["hash"]) == 64
    assert suite["encoder"].endswith("crf 18.0")
    assert suite["quality"] is suite["semantic"] is suite["total"] is None
    assert f"{FLICKER}: 4 of 375 videos" in suite["missing"]
    assert "scene: not scored" in suite["missing"]
    values = results.per_sample(job_of(run).place.folder)
    assert values[sample_key(STOP, 3)] == {FLICKER: 1.0}
    assert values[sample_key(TOILET, 7)] == {FLICKER: 0.5}

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    assert score(run) == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")} == before


def test_another_video_is_scored_again_and_a_copied_one_is_not(home, tmp_path):
    calls = fake_environment(home)
    run = run_of(tmp_path / "out", [STOP], FLICKER)
    make_samples(run)
    score(run)
    video = job_of(run).place.sample(sample_key(STOP, 0)).video
    content = video.read_bytes()
    video.unlink()
    video.write_bytes(content)
    score(run)
    assert len(calls.read_text().splitlines()) == 1
    video.write_bytes(content + b"\0\0\0\x08free")
    score(run)
    assert len(calls.read_text().splitlines()) == 2


def test_other_prompts_are_custom_input_with_names_of_our_own(home, tmp_path):
    calls = fake_environment(home)
    run = run_of(tmp_path / "out", [STOP, "what / not?"], FLICKER)
    make_samples(run)
    score(run)
    call = json.loads(calls.read_text())
    assert call["mode"] == "custom_input"
    assert sorted(call["prompts"].values()) == sorted(run.prompts)
    assert sorted(call["prompts"]) == call["names"]
    assert f"{FLICKER}: on prompts that are not VBench's" in results.summary(job_of(run).place.folder)[0]["missing"]


def test_suites_do_not_overwrite_each_other(home, tmp_path):
    calls = fake_environment(home)
    small, large = (run_of(tmp_path / "out", prompts, FLICKER) for prompts in ([STOP], [STOP, TOILET]))
    make_samples(large)
    for run in (small, large, small, large):
        score(run)
    assert len(calls.read_text().splitlines()) == 2
    told = results.summary(job_of(small).place.folder)
    assert sorted(suite["prompts"] for suite in told) == [1, 2]


def test_dimensions_share_out_the_gpus(home, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    monkeypatch.setattr(stage, "visible", {"auto": ["4", "6"]}.get)
    calls = fake_environment(home, "time.sleep(1)")
    run = run_of(tmp_path / "out", [OTHER], FLICKER, "dynamic_degree", "imaging_quality")
    make_samples(run)
    score(run)
    used = [json.loads(line)["device"] for line in calls.read_text().splitlines()]
    assert set(used) == {"4", "6"}
    assert set(used[:2]) == {"4", "6"}  # at the same time, not one after the other


@pytest.mark.parametrize(
    ("count", "listed", "device", "expected"),
    [
        (0, None, "auto", []), (2, None, "auto", ["0", "1"]), (2, "5,7", "cuda", ["5", "7"]), (1, "3", "auto", ["3"]),
        (2, "5,7", "cpu", []), (2, None, "cuda:1", ["1"]), (2, "5,7", "cuda:1", ["7"]),
    ],
)  # fmt: skip
def test_one_gpu_a_process(monkeypatch, count, listed, device, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert devices.visible(device) == expected


def test_names_that_differ_in_case_alone_are_told_where_they_are_one(home, tmp_path, monkeypatch):
    """As "a fantasy landscape" and "A fantasy landscape", both VBench's, on macOS."""
    fake_environment(home)
    run = run_of(tmp_path / "out", [STOP], FLICKER)
    make_samples(run)
    monkeypatch.setattr("os.symlink", Mock(side_effect=FileExistsError(17, "File exists", "a", None, "A-0.mp4")))
    assert "has two videos called 'A-0.mp4': set TMPDIR" in failure(run)


# VBench's silent failures, and the others of its worker.


def test_a_folder_with_other_files_in_it_does_not_matter(home, tmp_path):
    calls = fake_environment(home)
    run = run_of(tmp_path / "out", [STOP], FLICKER)
    make_samples(run)
    (job_of(run).place.folder / ".notes.json").write_text("{}")
    score(run)
    assert json.loads(calls.read_text())["names"] == [f"{STOP}-0.mp4"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('reply["score"] = float("nan")', "not a number: the score"),
        ('reply["videos"][videos[1]] = float("inf")', "not a number: a-toilet-frozen-in-time"),
        ('reply["videos"][videos[1]] = None', "not a number: a-toilet-frozen-in-time"),
        ('del reply["videos"][videos[1]]', "VBench scored 1 of 2 videos and said nothing; the first without: a-toilet"),
        ('reply["videos"] = {}', "VBench scored 0 of 2 videos"),
        ('reply["videos"]["x.mp4"] = 1', "scored a video that is not the run's: x.mp4"),
        ('reply = {"ok": False, "error": "CalledProcessError: wget"}', "CalledProcessError: wget"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended by SIGKILL, often for memory"),
        ("print('half a thought', flush=True); os._exit(1)", "its process ended with code 1 and no reply: ['half a"),
    ],
)
def test_what_is_no_whole_result_is_refused_with_its_reason(home, tmp_path, body, reason):
    fake_environment(home, body)
    run = run_of(tmp_path / "out", [STOP, TOILET], FLICKER)
    make_samples(run)
    assert failure(run).startswith(reason)
    fake_environment(home)
    assert "0.5000" in score(run)[0]  # tried again, as nothing was scored
    assert results.summary(job_of(run).place.folder)[0]["dimensions"][FLICKER]["score"] == 0.5


def test_a_worker_that_hangs_is_given_up_and_its_words_are_kept(home, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "EVERY", 0.2)
    fake_environment(home, "print('50%|##  | 3/6 [00:01<00:01]', flush=True)\ntime.sleep(60)")
    run = run_of(tmp_path / "out", [STOP], FLICKER, vbench_timeout=2)
    make_samples(run)
    said: list[str] = []
    with pytest.raises(RuntimeError, match=r"stopped after 2 s \(score.vbench_timeout\)"):
        stage.score(job_of(run), said.append)
    assert any(line.endswith("3/6") for line in said)
    (kept,) = job_of(run).place.folder.rglob("*.error.txt")
    assert "3/6" in kept.read_text()


def test_one_dimension_that_fails_does_not_stop_the_others(home, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    fake_environment(home, 'if request["dimension"] == "imaging_quality": reply["score"] = float("nan")')
    run = run_of(tmp_path / "out", [OTHER], "quality")
    make_samples(run)
    with pytest.raises(RuntimeError, match=r"scored 6 of 7 dimensions; imaging_quality: not a number: the score"):
        score(run)
    told = results.summary(job_of(run).place.folder)[0]["dimensions"]
    assert [name for name, each in told.items() if each["score"] is None] == ["imaging_quality"]


def test_missing_videos_are_named_or_left_out_on_request(home, tmp_path):
    fake_environment(home)
    run = run_of(tmp_path / "out", [STOP, TOILET], FLICKER)
    assert failure(run) == "2 of its 2 videos were not generated: there is nothing to score"
    make_samples(run, without=((TOILET, 0),))
    said = failure(run)
    assert said.startswith("1 of its 2 videos were not generated, the first is a-toilet-frozen-in-time-")
    assert said.endswith("score.vbench_partial=true scores the others")
    run.score.vbench_partial = True
    score(run)
    told = results.summary(job_of(run).place.folder)[0]["dimensions"][FLICKER]
    assert (told["n"], told["unscored"]) == (1, {"not generated": 1})


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_video_cut_short_is_not_scored(home, tmp_path, cut):
    fake_environment(home)
    run = run_of(tmp_path / "out", [STOP, TOILET], FLICKER)
    make_samples(run)
    video = job_of(run).place.sample(sample_key(TOILET, 0)).video
    video.write_bytes(video.read_bytes()[:cut])
    assert failure(run).startswith("1 of its videos are not whole; delete them, and generate again; the first is /")


def test_color_may_leave_out_videos_without_its_object(home, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    fake_environment(home, 'del reply["videos"][videos[0]]')
    run = run_of(tmp_path / "out", [BICYCLE], "color", seeds=(0, 1))
    make_samples(run)
    score(run)
    told = results.summary(job_of(run).place.folder)[0]["dimensions"]["color"]
    assert (told["n"], told["unscored"]) == (1, {f"{results.LEFT_OUT}: its object was not found": 1})


DETECTOR = {
    "torchvision/__init__.py": "from . import extension",
    "torchvision/extension.py": "def _has_ops(): return True",
    "vbench/__init__.py": """
import json
class VBench:
    def __init__(self, device, info, out): self.out = out
    def evaluate(self, videos_path, name, **rest):
        import os
        from vbench.third_party.grit_model import DenseCaptioning
        found = set()
        try:
            found = set(DenseCaptioning().run_caption_tensor(None)[0][0][2])
        except:
            pass
        os.makedirs(self.out)
        videos = [{"video_path": f, "video_results": float(bool(found))} for f in os.listdir(videos_path)]
        json.dump({name: [float(bool(found)), videos]}, open(f"{self.out}/{name}_eval_results.json", "w"))
""",
    "vbench/third_party/__init__.py": "",
    "vbench/third_party/grit_model.py": """
class DenseCaptioning:
    def run_caption_tensor(self, image):
        BODY
""",
}


@pytest.mark.parametrize(
    ("body", "ends"), [("raise RuntimeError('no custom ops')", "RuntimeError: no custom ops"), ("return [[]]", None)]
)
def test_a_detector_that_fails_is_not_a_detector_that_finds_nothing(home, tmp_path, monkeypatch, body, ends):
    """The real worker with a VBench that swallows every exception, as object_class does."""
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    for name, text in DETECTOR.items():
        (tmp_path / "packages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "packages" / name).write_text(text.replace("BODY", body))
    fake_vbench(home, tmp_path / "packages")
    run = run_of(tmp_path / "out", [BICYCLE], "color")
    make_samples(run)
    if ends is None:
        assert "color 0.0000" in score(run)[0]
    else:
        assert failure(run) == f"RuntimeError: the detector failed on 1 frames, first with {ends}"


def test_a_video_is_compared_with_the_image_that_it_started_from(home, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "lacking", lambda dimension: [])
    check = """
from PIL import Image
images = {name: Image.open(path) for name, path in request["images"].items()}
assert sorted(images) == videos and {image.size for image in images.values()} == {(128, 128)}
"""
    calls = fake_environment(home, check)
    Image.fromarray(frames(0)[0]).save(tmp_path / "first.png")
    run = run_of(tmp_path / "out", ["a ramp | first.png 0123456789ab"], "i2v_subject", seeds=(0, 1))
    with pytest.raises(ConfigError, match="compares a video with the image that it started from, and tiny_wan"):
        require(run)
    run = replace(run, images={run.prompts[0]: tmp_path / "first.png"})
    make_samples(run)
    assert "i2v_subject 0.5000  2 videos" in score(run)[0]
    request = json.loads(calls.read_text())
    assert set(request["prompts"].values()) == {"a ramp"}
    (suite,) = results.summary(job_of(run).place.folder)
    assert suite["dimensions"]["i2v_subject"]["n"] == 2
    assert not any("i2v_subject" in line for line in suite["missing"])  # it counts in none of VBench's scores


def test_a_long_prompt_is_named_whole(home, tmp_path):
    long = "a " * 105 + "b"
    calls = fake_environment(home)
    (home / "suite.json").write_text(json.dumps([{"prompt_en": long, "dimension": [FLICKER]}]))
    run = run_of(tmp_path / "out", [long], FLICKER)
    make_samples(run)
    score(run)
    assert json.loads(calls.read_text())["names"] == [f"{long}-0.mp4"]
