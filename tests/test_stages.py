"""The order in which jobs are carried out: as many prompts at a time as have their frames in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import imageio.v3 as imageio
import pytest

from pcbench import cli, provenance, stages
from pcbench.job import jobs_of
from pcbench.sampling import generate, video
from pcbench.store import write_sealed

SIZE = ["model.sampling.height=32", "model.sampling.width=32", "model.sampling.frames=5", "model.sampling.steps=3"]
FRAMES = 3 * 5 * 32 * 32  # bytes of a video
WORDS = ["-m", "method=fora,pab", *SIZE, "prompts=held_out", "prompts.limit=5", "stages=[generate,score]"]


@pytest.fixture
def small(monkeypatch):
    """Memory for two references and two videos of a method."""
    monkeypatch.setattr(video.kept, "limit", 4 * FRAMES)


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """One element for each latent that is decoded."""
    counted: list[int] = []
    inner = generate.decode
    monkeypatch.setattr(generate, "decode", lambda *arguments: counted.append(1) or inner(*arguments))
    return counted


def jobs(words: list[str], results) -> list:
    return jobs_of(cli.compose.compose([*words[1:], f"results={results}"], multirun=True).runs)


def plain(results) -> dict[str, dict]:
    """Records without what differs whenever it is measured."""
    found = {path.name: json.loads(path.read_text()) for path in results.rglob("records/*/*/*.json")}
    for record in found.values():
        record["samples"] = [{**sample, "seconds": None} for sample in record["samples"]]
    return found


def test_a_reference_is_decoded_once_however_many_methods_and_however_little_memory(tmp_path, monkeypatch, decodes):
    assert cli.main([*WORDS, f"results={tmp_path / 'all'}"]) == 0
    assert len(decodes) == 3 * 5
    monkeypatch.setattr(video.kept, "limit", 4 * FRAMES)
    assert cli.main([*WORDS, f"results={tmp_path / 'shared'}"]) == 0
    assert len(decodes) == 2 * 3 * 5
    assert plain(tmp_path / "shared") == plain(tmp_path / "all")


def test_a_share_is_all_methods_of_some_prompts_and_ends_with_the_whole_job(tmp_path, small):
    found = list(stages.shares(jobs(WORDS, tmp_path)))
    assert [(share.part.recipe.method.NAME, len(share.part.run.prompts)) for share in found] == [
        (name, prompts) for prompts in (2, 2, 1) for name in ("none", "fora", "pab")
    ]
    assert [share.first for share in found] == [True] * 3 + [False] * 6
    assert [share.last for share in found] == [False] * 6 + [True] * 3
    assert [share.number for share in found] == [1, 1, 2] * 3


def test_where_all_frames_stay_in_memory_a_job_is_done_before_the_next_begins(tmp_path):
    words = ["-m", "model=tiny_wan,tiny_opensora", "method=none,fora", "prompts.limit=3"]
    found = list(stages.shares(jobs(words, tmp_path)))
    assert [(share.job.place.model, share.job.recipe.method.NAME, share.number) for share in found] == [
        ("tiny_wan", "none", 1), ("tiny_wan", "fora", 2), ("tiny_opensora", "none", 3), ("tiny_opensora", "fora", 4)
    ]  # fmt: skip
    assert all(share.part is share.job and share.first and share.last for share in found)


def test_what_failed_in_an_early_share_is_in_the_record_at_the_end_and_is_not_tried_twice(
    tmp_path, monkeypatch, capsys, small
):
    tried, inner = [], generate._generate_one

    def generate_one(pipe, job, prompt, seed, files):
        tried.append((job.recipe.method.NAME, prompt))
        if len(tried) == 3:  # the first of the first method, after two references
            raise MemoryError("no room for it")
        return inner(pipe, job, prompt, seed, files)

    monkeypatch.setattr(generate, "_generate_one", generate_one)
    words = [*WORDS, f"results={tmp_path}"]
    assert cli.main(words) == 1
    assert capsys.readouterr().err.count("no room for it") == 1
    assert len(tried) == len(set(tried)) == 15
    record = next(data for name, data in plain(tmp_path).items() if name.startswith("fora"))
    assert record["status"] == "failed"
    assert len(record["samples"]) == 4
    assert cli.main(words) == 0
    assert len(tried) == 16
    record = next(data for name, data in plain(tmp_path).items() if name.startswith("fora"))
    assert (record["status"], len(record["samples"])) == ("ok", 5)


def test_a_worker_begins_at_its_place_and_leaves_what_others_made_to_them_at_first(tmp_path, decodes):
    """They have its frames, and those of its reference, in memory."""
    assert cli.main([*WORDS, f"results={tmp_path}", "stages=[generate]", "prompts.limit=2"]) == 0
    video.kept._videos.clear()  # they are another process's
    decodes.clear()
    reference, method, _ = stages.shares(jobs(WORDS, tmp_path))
    said: list[str] = []
    sweep, mine = stages.Sweep(), [replace(share, begin=0.6) for share in (reference, method)]
    rounds = sweep.rounds(mine, said.append)
    for share in (next(rounds), next(rounds)):
        assert not sweep.carry_out(share, said.append)
    made = [line.rpartition("  ")[2] for line in said if "  sample " in line]
    prompts = method.job.run.prompts
    assert made == 2 * [f"{prompt!r} seed 0" for prompt in (*prompts[3:], prompts[2])]
    scored = {prompt: method.job.files(prompt, 0).fidelity.exists() for prompt in prompts}
    assert scored == dict.fromkeys(prompts[:2], False) | dict.fromkeys(prompts[2:], True)
    assert len(decodes) == 2 * 3
    for share in rounds:  # nobody has come for them
        assert not sweep.carry_out(share, said.append)
    assert all(method.job.files(prompt, 0).fidelity.exists() for prompt in prompts)
    assert len(decodes) == 2 * 5


def test_finished_samples_at_another_frame_rate_are_told_and_left(tmp_path, capsys):
    words = [*WORDS[2:], "method=fora", "prompts.limit=2", f"results={tmp_path}"]
    assert cli.main([*words, "model.fps=12"]) == 0
    assert "model.fps" not in capsys.readouterr().out
    first, *_ = sorted(tmp_path.rglob("*.mp4"))
    before = first.read_bytes()
    line = "2 of 2 mp4 files are there with 12 frames per second, and stay so; those that are deleted are made again"
    assert cli.main([*words, "model.fps=24"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"model.fps=24: {line}") == 2  # of the method and of its reference
    assert first.read_bytes() == before
    first.unlink()
    assert cli.main([*words, "model.fps=24"]) == 0
    assert first.read_bytes() != before
    assert imageio.immeta(first, plugin="FFMPEG")["fps"] == 24


def test_a_record_that_stays_failed_by_another_run_is_told(tmp_path, capsys):
    words = [*WORDS[2:], "method=none", "prompts.limit=1", "stages=[generate]", f"results={tmp_path}"]
    (job,) = jobs(["", *words], tmp_path)
    failure = {"prompt": job.run.prompts[0], "seed": 1, "error": "out of memory"}
    write_sealed(job.files(failure["prompt"], 1).failure, failure)
    line = "none: its record stays failed, by samples of other runs (1), the first "
    assert cli.main(words) == 0
    assert line in (printed := capsys.readouterr().out)
    assert "seed 1: out of memory" in printed
    assert cli.main([*words, "prompts.seeds=[0,1]"]) == 0
    assert line not in capsys.readouterr().out


def test_scores_against_a_reference_of_other_package_versions_say_so_once(tmp_path, capsys, monkeypatch):
    words = [*WORDS[2:], "prompts.limit=2", f"results={tmp_path}"]
    present = provenance.revision()
    older = {**present, "packages": {**present["packages"], "diffusers": "0.30.0", "numpy": "1.0"}}
    with monkeypatch.context() as patched:
        patched.setattr(provenance, "revision", lambda: older)
        assert cli.main([*words, "method=none"]) == 0
    assert cli.main([*words, "method=fora"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("but the reference with 0.30.0: scores count that difference too") == 1
    assert "numpy" not in printed


def test_to_score_what_was_never_made_is_a_failure(tmp_path, capsys):
    words = [*WORDS[2:], "prompts.limit=2", "method=fora", f"results={tmp_path}"]
    assert cli.main([*words, "stages=[score]"]) == 1
    assert "fora: samples: FileNotFoundError: none of the 2 samples has been made: add generate to stages" in (
        capsys.readouterr().err
    )
    assert cli.main([*words, "prompts.limit=1"]) == 0
    assert cli.main([*words, "stages=[score]"]) == 0  # of those that are there
