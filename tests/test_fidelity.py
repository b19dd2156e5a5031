"""PSNR and SSIM against independent implementations; every convention against its official code; the scoring stage."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pcbench import cli, record, stages, summary
from pcbench.config import ConfigError
from pcbench.failures import FailedError
from pcbench.fidelity import psnr_ssim
from pcbench.fidelity import stage as fidelity
from pcbench.fidelity.metrics import CONVENTIONS, IDENTICAL, METRICS
from pcbench.fidelity.sources import Latents
from pcbench.fidelity.stage import measure
from pcbench.identity import sample_key
from pcbench.job import job_of
from pcbench.sampling import generate
from pcbench.sampling.video import Kept, read_mp4, through_mp4
from pcbench.store import read_json, write_json

GOLDEN = Path(__file__).parent / "golden" / "fidelity"
OFFICIAL = json.loads(GOLDEN.with_suffix(".json").read_text())
FRAMEWISE = [name for name in METRICS if "lpips" not in name and METRICS[name].source != Latents()]


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(5), np.add.outer(np.arange(40), np.arange(48)))[..., None].repeat(3, -1)
    reference = (smooth * 2 + random.integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    noise = random.normal(0, np.arange(2, 12, 2)[:, None, None, None], smooth.shape)  # grows along the clip
    return (reference + noise).clip(0, 255).astype(np.uint8), reference


def test_psnr_is_the_mean_over_frames(pair):
    video, reference = pair
    expected = [peak_signal_noise_ratio(r, v, data_range=255) for v, r in zip(video, reference, strict=True)]
    assert measure("psnr@2", video, reference)["frames"] == pytest.approx(expected, abs=1e-9)
    assert measure("psnr@2", video, reference)["value"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_ssim_is_the_gaussian_windowed_one_where_the_window_fits(pair):
    expected = []
    for v, r in zip(*pair, strict=True):
        _, full = structural_similarity(
            r / 255, v / 255, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        expected.append(full[5:-5, 5:-5].mean())
    assert measure("ssim@2", *pair)["frames"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("colours", [(0, 250, 77), (128, 127, 129), (1, 17, 240), (255, 255, 0)])
def test_ssim_of_flat_videos_keeps_its_precision(colours):
    """Where single precision would lose most: variances are differences of large numbers."""
    reference = np.full((3, 64, 64, 3), colours[0], np.uint8)
    reference[:, :, 40:], reference[:, 20:40] = colours[1:]
    noise = np.random.default_rng(0).normal(0, [[[[1]]], [[[3]]], [[[9]]]], reference.shape)
    video = (reference + noise).clip(0, 255).astype(np.uint8)
    video[0] = reference[0]
    video[0, 30:50, 10:40] ^= 1
    expected = []
    for v, r in zip(video / 255.0, reference / 255.0, strict=True):
        _, full = structural_similarity(
            r, v, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        expected.append(full[5:-5, 5:-5].mean())
    assert psnr_ssim.ssim(video, reference) == pytest.approx(expected, abs=1e-6)


def test_work_in_pieces_gives_the_same(pair, monkeypatch):
    whole = psnr_ssim.ssim(*pair)
    monkeypatch.setattr(psnr_ssim, "CHUNK", 1)
    assert psnr_ssim.ssim(*pair) == pytest.approx(whole, abs=1e-12)


@pytest.mark.gpu
def test_ssim_on_a_gpu_is_the_same(pair):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert psnr_ssim.ssim(*pair, device="cuda") == pytest.approx(psnr_ssim.ssim(*pair), abs=1e-6)
    assert psnr_ssim.ssim_torchmetrics(*pair, device="cuda") == pytest.approx(
        psnr_ssim.ssim_torchmetrics(*pair), abs=1e-4
    )


OFFICIAL_PAIRS = [pytest.param(entry, id=entry["video"]) for entry in OFFICIAL["pairs"]]
golden = functools.cache(lambda name: read_mp4(GOLDEN / name))  # frames of a committed video: read them only
# EasyCache's script takes the logarithm in single precision: at 40 dB its result comes in steps of 4e-6.
TOLERANCE = {"psnr": 1e-6, "ssim": 1e-6, "easycache.psnr": 4e-6}


@pytest.mark.parametrize("entry", OFFICIAL_PAIRS)
@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_videosys_is_its_official_code(entry, metric):
    ours = measure(f"videosys.{metric}@1", golden(entry["video"]), golden(entry["reference"]))
    assert ours["frames"] == pytest.approx(entry["videosys"][metric], abs=TOLERANCE[metric])
    assert ours["value"] == pytest.approx(np.mean(entry["videosys"][metric]), abs=TOLERANCE[metric])


@pytest.mark.parametrize("entry", OFFICIAL_PAIRS)
@pytest.mark.parametrize("metric", ["easycache.psnr", "easycache.ssim", "chitu.psnr", "chitu.ssim"])
def test_the_others_are_their_official_code(entry, metric):
    convention, name = metric.split(".")
    ours = measure(f"{metric}@1", golden(entry["video"]), golden(entry["reference"]))["value"]
    official = entry[convention][name]
    if official == "inf":
        assert ours is None
    else:
        assert ours == pytest.approx(official, abs=TOLERANCE.get(metric, 1e-6))


def test_videosys_averages_a_batch_as_its_official_code():
    for metric in ("psnr", "ssim"):
        values = [float(np.mean(entry["videosys"][metric])) for entry in OFFICIAL["pairs"]]
        ours = METRICS[f"videosys.{metric}@1"].over_videos(values)
        assert ours == pytest.approx(OFFICIAL["videosys_batch_of_all"][metric], abs=1e-9)


def test_a_last_short_batch_counts_as_much_as_a_full_one():
    values = [30.0] * 16 + [40.0]
    assert METRICS["videosys.psnr@1"].over_videos(values) == 35.0
    assert METRICS["psnr@2"].over_videos(values) == pytest.approx(30 + 10 / 17)


def test_videos_go_through_mp4_as_the_official_writers_send_them(pair, tmp_path):
    frames = golden("1-reference.mp4")
    one_thread = ["-threads", "1"]
    imageio.mimwrite(tmp_path / "videosys.mp4", frames, fps=16, output_params=list(one_thread))
    wan = {"codec": "libx264", "quality": 8}  # how Wan's own code writes, hence EasyCache's and ChituBench's
    imageio.mimwrite(tmp_path / "wan.mp4", frames, fps=16, output_params=list(one_thread), **wan)
    by_videosys, by_wan = through_mp4(frames, 16, 23), through_mp4(frames, 16, 10)
    assert np.array_equal(by_videosys, read_mp4(tmp_path / "videosys.mp4"))
    assert np.array_equal(by_wan, read_mp4(tmp_path / "wan.mp4"))
    assert not np.array_equal(by_videosys, by_wan)
    assert through_mp4(pair[0], 16, 23).shape == (5, 48, 48, 3)  # 40 rows are no multiple of 16


def test_identical_frames_are_reported_and_not_given_a_number(pair):
    video, reference = pair
    mixed = video.copy()
    mixed[:2] = reference[:2]
    raw = measure("psnr@2", mixed, reference)
    assert raw["frames"][:2] == [None, None]
    assert raw["identical"] == 2
    assert raw["value"] == pytest.approx(np.mean(raw["frames"][2:]))
    assert raw["note"] == "2 of 5 frames are identical to the reference"
    capped = measure("videosys.psnr@1", mixed, reference)
    assert capped["frames"][:2] == [100.0, 100.0]
    assert capped["value"] > raw["value"] + 20
    infinite = measure("chitu.psnr@1", mixed, reference)
    assert infinite["value"] is None
    assert infinite["note"] == "2 of 5 frames are identical to the reference: infinite"
    whole = measure("easycache.psnr@1", mixed, reference)
    assert whole["value"] == pytest.approx(-10 * math.log10(np.square((mixed - reference.astype(float)) / 255).mean()))


def test_a_video_identical_to_its_reference(pair):
    video, _ = pair
    for name in FRAMEWISE:
        entry = measure(name, video, video)
        assert entry["note"] == IDENTICAL
        assert entry["identical"] == 5
        if "ssim" in name or "sharpness" in name:
            assert entry["value"] == pytest.approx(1.0, abs=1e-5)
        else:
            assert entry["value"] == (100.0 if name.startswith("videosys") else None)


def test_a_frame_one_step_off_is_not_identical_but_videosys_caps_it():
    reference = np.full((1, 480, 640, 3), 100, np.uint8)
    video = reference.copy()
    video[0, 0, 0, 0] += 1
    assert measure("psnr@2", video, reference)["value"] == pytest.approx(10 * math.log10(255**2 * 480 * 640 * 3))
    assert measure("psnr@2", video, reference)["identical"] == 0
    assert measure("videosys.psnr@1", video, reference)["value"] == 100.0


@pytest.mark.parametrize("name", METRICS)
def test_unequal_videos_are_an_error(name, pair):
    video, reference = pair
    for shorter in (reference[:-1], reference[:, :-1], reference[:, :, :-1]):
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(name, video, shorter)


def test_frames_smaller_than_the_window():
    small = np.zeros((2, 8, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="8x64 are smaller than SSIM's window of 11"):
        psnr_ssim.ssim(small, small)


def test_latent_psnr_by_hand():
    reference = np.linspace(-2, 2, 96, dtype=np.float32).reshape(1, 4, 2, 3, 4)
    assert measure("latent_psnr@1", reference + 0.5, reference)["value"] == pytest.approx(10 * math.log10(16 / 0.25))
    assert measure("latent_psnr@1", reference, reference)["note"] == IDENTICAL


@pytest.mark.parametrize("name", FRAMEWISE)
def test_the_value_can_be_had_again_from_the_frames(name, pair):
    entry = measure(name, *pair)
    assert len(entry["frames"]) == (4 if name.startswith("temporal") else 5)
    assert METRICS[name].pool(json.loads(json.dumps(entry["frames"]))) == entry["value"]


def test_memory_is_bounded_and_the_newest_stays():
    kept = Kept(limit=100)
    for key in range(5):
        kept.put(key, np.zeros(40, np.uint8))
        assert kept.bytes <= 100
    made = []
    kept.get(4, lambda: made.append(4) or np.zeros(40, np.uint8))
    kept.get(0, lambda: made.append(0) or np.zeros(40, np.uint8))
    assert made == [0]
    kept.put("large", np.zeros(500, np.uint8))
    assert kept.get("large", lambda: pytest.fail("it was dropped")).nbytes == 500
    assert kept.bytes == 500


def test_conventions_are_chosen_by_name():
    assert fidelity.chosen("raw") == ("raw",)
    assert fidelity.chosen(["videosys", "raw", "videosys"]) == ("videosys", "raw")
    for wrong in ("psnr", ["raw", "psnr"]):
        with pytest.raises(ConfigError, match="unknown fidelity 'psnr'; conventions are raw, videosys, easycache"):
            fidelity.chosen(wrong)
    with pytest.raises(ConfigError, match="fidelity is empty"):
        fidelity.chosen([])


SMALL = ["model.sampling.height=64", "model.sampling.width=64", "model.sampling.frames=13", "model.sampling.steps=4"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run on the tiny backbone, scored by the default convention."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "prompts.txt").write_text("a red circle moving left on a black background\na blue square moving up\n")
    words = ["method=uniform", "method.steps=2", *SMALL, "stages=[generate,score]"]
    run = cli.run_from([*words, f"prompts.file={folder / 'prompts.txt'}", f"results={folder / 'results'}"])
    stages.execute(job_of(run), say=lambda line: None)
    return run


def files_of(run, number: int = 0):
    return job_of(run).place.sample(sample_key(*run.samples[number]))


def times(run) -> dict[Path, int]:
    found = (p for p in run.results.rglob("*.*") if p.is_file() and not p.name.startswith("."))  # without the ledger
    return {p: p.stat().st_mtime_ns for p in found}


def test_records_hold_every_sample_and_say_what_is_missing(scored):
    data = record.build(job_of(scored))
    assert set(data["fidelity"]) == set(CONVENTIONS["raw"])
    entries = [read_json(files_of(scored, number).fidelity)["metrics"] for number in (0, 1)]
    assert all(len(entry["psnr@2"]["frames"]) == 13 for entry in entries)
    by_prompt = {sample["prompt"]: sample["fidelity"] for sample in data["samples"]}
    for (prompt, _), entry in zip(scored.samples, entries, strict=True):
        assert by_prompt[prompt] == {name: entry[name]["value"] for name in by_prompt[prompt]}
    values = [entry["psnr@2"]["value"] for entry in entries]
    summary = data["fidelity"]["psnr@2"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["worst"] == min(values)
    assert (summary["n"], summary["identical"], summary["unscored"]) == (2, 0, 0)
    assert summary["half_width_95"] == pytest.approx(1.96 * np.std(values, ddof=1) / 2**0.5)


def test_the_pixels_scored_are_the_decoder_s(scored):
    files, reference = files_of(scored), files_of(scored.reference)
    pair = generate.frames_of(scored, files), generate.frames_of(scored.reference, reference)
    assert read_json(files.fidelity)["metrics"]["psnr@2"] == measure("psnr@2", *pair)


def test_another_convention_is_added_without_generating(scored, monkeypatch):
    monkeypatch.setattr(generate, "denoise", lambda *_, **__: pytest.fail("generated again"))
    before, old = times(scored), read_json(files_of(scored).fidelity)["metrics"]
    computed: list[str] = []
    measured = fidelity.measure
    monkeypatch.setattr(fidelity, "measure", lambda name, *rest: computed.append(name) or measured(name, *rest))
    more = replace(scored, fidelity=("raw", "chitu"), stages=("score",))
    stages.execute(job_of(more), say=lambda line: None)
    assert sorted(set(computed)) == sorted(CONVENTIONS["chitu"])
    new = read_json(files_of(scored).fidelity)["metrics"]
    assert new.keys() == {*CONVENTIONS["raw"], *CONVENTIONS["chitu"]}
    assert {name: new[name] for name in old} == old
    assert {p for p, t in times(scored).items() if before.get(p) != t} == {
        *(files_of(scored, number).fidelity for number in (0, 1)),
        job_of(scored).place.record,
    }
    computed.clear()
    after = times(scored)
    stages.execute(job_of(more), say=lambda line: None)
    assert not computed
    assert times(scored) == after
    cells = summary.row(job_of(more), ["chitu.psnr@1"])
    assert cells[-2] == f"{record.build(job_of(more))['fidelity']['chitu.psnr@1']['mean']:.2f}"


def test_scores_of_another_frame_rate_or_an_older_form_do_not_count(scored):
    faster = replace(scored, fps=24)
    held = fidelity.stored(job_of(faster), files_of(scored))
    assert set(CONVENTIONS["raw"]) <= set(held)
    assert not set(held) & set(CONVENTIONS["chitu"])
    files = files_of(scored)
    text = files.fidelity.read_text()
    write_json(files.fidelity, {"reference": read_json(files.fidelity)["reference"], "scores": {"psnr@1": 30.0}})
    assert fidelity.stored(job_of(scored), files) == {}
    files.fidelity.write_text(text)


def test_a_reference_that_is_missing_leaves_the_sample_unscored(scored, tmp_path):
    import shutil

    shutil.copytree(scored.results, tmp_path / "results")
    run = replace(scored, results=tmp_path / "results", stages=("score",))
    files_of(run.reference).latent.unlink()
    files_of(run).fidelity.unlink()
    said: list[str] = []
    with pytest.raises(FailedError, match=r"1 of the record's 2 samples are no longer in .*/none-"):
        stages.execute(job_of(run), said.append)  # the reference's record stays as it is
    assert any("not scored, its reference was not generated" in line for line in said)
    summary = record.build(job_of(run))["fidelity"]["psnr@2"]
    assert (summary["n"], summary["unscored"]) == (1, 1)


def test_the_speed_benchmark_runs_and_refuses_nonsense(tmp_path, capsys):
    from pcbench import fidelity_benchmark

    assert fidelity_benchmark.main(["videos=2", "size=3x32x48"]) == 0
    assert "PSNR + SSIM of 2 videos of 3x32x48" in capsys.readouterr().out
    for words, line in {
        "video=2": "unknown option 'video=2'",
        "size=65x480": "size is FRAMESxHEIGHTxWIDTH",
        "videos=0": "there must be a video",
        f"official={tmp_path}": "no calculate_psnr.py in ",
    }.items():
        assert fidelity_benchmark.main([words]) == 2
        assert line in capsys.readouterr().err
