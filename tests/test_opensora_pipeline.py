"""Open-Sora's sampling and pipeline: parity with Open-Sora's own code, saving, bad input."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import is_bs4_available

from pcbench.backbones.opensora.pipeline import OpenSoraPipeline
from pcbench.backbones.opensora.scheduler import rectified_flow_scheduler, set_timesteps

from .opensora_parts import TRANSFORMER_CONFIG, close, pipeline, text_parts, vae

GOLDEN = Path(__file__).parent / "golden" / "opensora_sampler.json"
TIMESTEPS: dict[str, tuple[int, int, int, int]] = {  # height, width, frames, steps
    "480p, 192 frames": (480, 854, 192, 30),
    "240p, 51 frames": (240, 426, 51, 30),
    "tiny": (128, 128, 29, 50),
    "image": (720, 1280, 1, 7),
}
# Even latents, odd ones, two blocks of time with a batch of two.
CASES: dict[str, dict[str, Any]] = {
    "5x8x6": {"frames": 17, "height": 64, "width": 48, "tokens": (10,)},
    "8x9x5": {"frames": 29, "height": 72, "width": 43, "tokens": (4,)},
    "10x7x11": {"frames": 34, "height": 57, "width": 88, "tokens": (3, 7)},
}
STEPS = 4
PROMPTS = [
    "A cat, 4k! Visit http://a.com/x <b>now</b>",
    "Two   people—walking… in the “rain” @nick #tag (slowly). aesthetic score: 5.0.",
    "a snow-covered/icy road &amp; a 1920x1080 video.mp4 of 12345678 birds",
    "Sunset over the sea.",
]


def noise(case: dict[str, Any], *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(repr(sorted(case.items())).encode()) + len(shape))
    return torch.randn(shape, generator=generator)


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments: embeddings with a mask, latents to start from, four steps, guidance 7."""
    batch, length = len(case["tokens"]), TRANSFORMER_CONFIG["max_sequence_length"]
    size = vae().latent_size(case["frames"], case["height"], case["width"])
    return {
        "prompt_embeds": noise(case, batch, length, TRANSFORMER_CONFIG["caption_channels"]),
        "prompt_attention_mask": torch.stack([torch.arange(length) < count for count in case["tokens"]]).long(),
        "latents": noise(case, batch, 4, *size),
        "height": case["height"],
        "width": case["width"],
        "num_frames": case["frames"],
        "num_inference_steps": STEPS,
        "guidance_scale": 7.0,
    }


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def fake_velocity(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A velocity that depends on everything a model is given."""
    return torch.sin(3 * latents) - latents * timestep.view(-1, 1, 1, 1, 1) / 500


@pytest.mark.parametrize("name", TIMESTEPS)
def test_the_official_timesteps(name):
    height, width, frames, steps = TIMESTEPS[name]
    scheduler = rectified_flow_scheduler()
    set_timesteps(scheduler, steps, height, width, frames)
    assert torch.equal(scheduler.timesteps, torch.tensor(golden()["timesteps"][name]))
    assert float(scheduler.sigmas[-1]) == 0


def test_the_official_euler_steps():
    scheduler, latents = rectified_flow_scheduler(), noise({}, 2, 4, 3, 5, 7)
    set_timesteps(scheduler, 10, 144, 256, 51)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(-fake_velocity(latents, timestep.expand(2)), timestep, latents).prev_sample
    close(latents, golden()["euler"])


@pytest.mark.parametrize("name", CASES)
def test_the_official_pipeline(name):
    pipe, expected = pipeline(vae=vae()), golden()["pipeline"][name]
    latents = pipe(**arguments(CASES[name]), output_type="latent").frames
    close(latents, expected["latents"], atol=5e-5)  # of values up to 13
    video = pipe(**arguments(CASES[name]), output_type="pt").frames.transpose(1, 2)
    close(video, expected["video"])


@pytest.mark.skipif(not is_bs4_available(), reason="beautifulsoup4 is not installed")
def test_the_official_prompt_cleaning():
    for raw, cleaned in golden()["prompts"].items():
        pipe, seen = pipeline(**text_parts()), []
        tokenizer = pipe.tokenizer

        class Spy:
            def __call__(self, texts, *, tokenizer=tokenizer, seen=seen, **options):
                seen.extend(texts)
                return tokenizer(texts, **options)

        pipe.tokenizer = Spy()
        pipe.encode_prompt(raw, max_sequence_length=10)
        assert seen == [cleaned]


def test_scores_are_appended_unless_named():
    pipe = pipeline(**text_parts())
    words = pipe.tokenizer("a cat aesthetic score: 6.5. motion score: 3.0.", padding="max_length", max_length=30)
    embeds, mask = pipe.encode_prompt("A cat", motion_score=3, clean_caption=False, max_sequence_length=30)
    assert mask.tolist() == [words.attention_mask]
    named = pipe.encode_prompt(
        "A cat aesthetic score: 6.5.", motion_score=3, clean_caption=False, max_sequence_length=30
    )
    torch.testing.assert_close(named[0], embeds)
    plain = pipe.encode_prompt("A cat", aesthetic_score=None, clean_caption=False, max_sequence_length=30)
    assert int(plain[1].sum()) == 3  # two words and the end mark


def test_without_guidance_only_the_conditional_branch_runs():
    pipe, rows = pipeline(), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    for scale in (1.0, 7.0):
        pipe(**{**arguments(CASES["5x8x6"]), "guidance_scale": scale}, output_type="latent")
        assert pipe.guidance_scale == scale
    assert rows == [1] * STEPS + [2] * STEPS


def test_a_prompt_and_a_generator_give_a_video():
    pipe = pipeline(vae=vae(), **text_parts())
    case = {"height": 32, "width": 32, "num_frames": 18, "num_inference_steps": 2, "max_sequence_length": 10}
    seeds = (0, 0, 1)
    videos = [
        pipe(
            ["a cat", "sunset"], clean_caption=False, generator=torch.Generator().manual_seed(seed), output_type="pt",
            **case
        ).frames
        for seed in seeds
    ]  # fmt: skip
    assert videos[0].shape == (2, 18, 3, 32, 32)
    assert torch.equal(videos[0], videos[1])
    assert not torch.equal(videos[0], videos[2])


def test_a_callback_sees_and_changes_the_latents():
    seen = []

    def halt(pipe, index, timestep, tensors):
        seen.append(index)
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipeline()(**arguments(CASES["5x8x6"]), output_type="latent", callback_on_step_end=halt).frames
    assert seen == list(range(STEPS))
    assert not latents.any()


def test_save_and_load(tmp_path):
    pipe = pipeline(vae=vae(), **text_parts())
    pipe.save_pretrained(tmp_path)
    again = OpenSoraPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    case = {"num_frames": 17, "height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 10}
    videos = [
        each("a cat", **case, clean_caption=False, generator=torch.Generator().manual_seed(0), output_type="pt").frames
        for each in (pipe, again)
    ]
    assert torch.equal(*videos)


def test_save_and_load_without_the_optional_parts(tmp_path):
    pipeline().save_pretrained(tmp_path)
    again = OpenSoraPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (again.vae, again.text_encoder, again.tokenizer) == (None, None, None)
    assert again.transformer.dtype == torch.bfloat16
    assert again(**arguments(CASES["5x8x6"]), output_type="latent").frames.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_prompt": "blurry"}, "no negative prompt"),
        ({"prompt_embeds": None, "prompt_attention_mask": None}, "either prompt or prompt_embeds"),
        ({"prompt_embeds": None, "prompt": "a cat"}, "no text encoder"),
        ({"output_type": "np"}, "no VAE"),
        ({"num_frames": 9}, r"1 or at least 17, not 9"),
        ({"latents": torch.zeros(1, 4, 1, 1, 1)}, r"latents must be \(1, 4, 5, 8, 6\)"),
        ({"prompt_attention_mask": torch.ones(1, 3)}, r"prompt_attention_mask must be \(1, 10\)"),
        ({"prompt_embeds": torch.zeros(1, 11, 16), "prompt_attention_mask": None}, "null caption has 10 tokens"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "knows no x"),
    ],
)
def test_bad_calls_are_one_line(change, message):
    case = {**arguments(CASES["5x8x6"]), "output_type": "latent", **change}
    if case["num_frames"] == 9:
        del case["latents"]
    with pytest.raises(ValueError, match=message) as caught:
        pipeline()(**case)
    assert "\n" not in str(caught.value)


def test_cleaning_without_its_packages_is_one_line(monkeypatch):
    monkeypatch.setattr("pcbench.backbones.opensora.pipeline.is_bs4_available", lambda: False)
    with pytest.raises(ImportError, match="beautifulsoup4 and ftfy"):
        pipeline(**text_parts()).encode_prompt("a cat")
