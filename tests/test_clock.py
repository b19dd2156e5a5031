"""Which noise level a step is at and how many steps there are, whatever the scheduler, the strength and the loop."""

from __future__ import annotations

import math
import warnings
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CogVideoXVideoToVideoPipeline

from methods import NoCacheConfig, PreciseCacheConfig, ReplayConfig, SeaCacheConfig, UniformConfig, apply
from methods.engine.clock import noise_levels, times

from .conftest import call, pipeline_of, random_transformer
from .families import FAMILIES

# Schedulers for a pipeline that predicts a flow, and for CogVideoX's v prediction at zero terminal SNR.
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
OF_WAN: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {"shift": 3.0},
    "FlowMatchLCMScheduler": {"shift": 3.0},
    "UniPCMultistepScheduler": FLOW,
    "DPMSolverMultistepScheduler": FLOW,
    "DPMSolverSinglestepScheduler": FLOW,
    "DEISMultistepScheduler": FLOW,
}
OF_COGVIDEOX = [
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


def generate(pipe: Any, method: Any, strength: float = 1.0, steps: int = 12) -> tuple[torch.Tensor, Any, list[float]]:
    """Final latents, trace, and the timesteps of the transformer calls, one a step."""
    seen: list[float] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(float(kwargs["timestep"].max()))

    hooks = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    torch.manual_seed(0)
    with warnings.catch_warnings(), apply(pipe, method) as handle:
        warnings.simplefilter("ignore")
        if isinstance(pipe, CogVideoXVideoToVideoPipeline):
            latents = video_to_video(pipe, strength, steps)
        else:
            latents = call(pipe, steps=steps, guidance_scale=1.0)
    hooks.remove()
    return latents, handle.trace, seen


def video_to_video(pipe: Any, strength: float, steps: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=torch.randn(1, 8, 16, generator=noise),
        negative_prompt_embeds=torch.zeros(1, 8, 16),
        latents=torch.randn(1, 5, 4, 16, 16, generator=noise),
        height=128,
        width=128,
        num_inference_steps=steps,
        strength=strength,
        guidance_scale=4.0,
        output_type="latent",
        generator=noise,
    ).frames


def pipe_of(scheduler: str) -> Any:
    kind = getattr(diffusers, scheduler)
    if scheduler in OF_WAN and scheduler not in OF_COGVIDEOX:
        pipe = pipeline_of(random_transformer())
        pipe.scheduler = kind(**OF_WAN[scheduler])
        return pipe
    pipe = CogVideoXVideoToVideoPipeline(**FAMILIES["cogvideox_2b"].pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe


CASES = [(name, 1.0) for name in OF_WAN if name not in OF_COGVIDEOX]
CASES += [(name, strength) for name in OF_COGVIDEOX for strength in (1.0, 0.5)]


@pytest.mark.parametrize(("scheduler", "strength"), CASES)
def test_a_step_has_the_noise_level_of_its_own_call(scheduler, strength):
    pipe = pipe_of(scheduler)
    _, trace, timesteps = generate(pipe, NoCacheConfig(), strength)
    assert len(trace.steps) == len(timesteps)
    assert [row.index for row in trace.steps] == list(range(len(timesteps)))
    if scheduler in OF_COGVIDEOX:
        kept = pipe.scheduler.alphas_cumprod[[round(each) for each in timesteps]].sqrt()
        expected, off = 1 / (1 + kept / (1 - kept**2).sqrt()), 2e-3  # a timestep may lie between two
    else:
        expected, off = torch.tensor(timesteps) / 1000, 1.1e-3
    assert [row.sigma for row in trace.steps] == pytest.approx(expected.tolist(), abs=off)
    assert all(0 <= row.sigma <= 1 for row in trace.steps)


@pytest.mark.parametrize("scheduler", list(OF_WAN))
def test_flow_matching_has_its_own_sigma(scheduler):
    """Exactly, where timesteps are rounded."""
    pipe = pipeline_of(random_transformer())
    pipe.scheduler = getattr(diffusers, scheduler)(**OF_WAN[scheduler])
    _, trace, timesteps = generate(pipe, NoCacheConfig())
    assert [row.sigma for row in trace.steps] == pipe.scheduler.sigmas[: len(timesteps)].tolist()


@pytest.mark.parametrize(("scheduler", "strength"), CASES)
def test_schedules_follow_the_calls_really_made(scheduler, strength):
    """Protection at the end, even spacing and replay go by the number of calls; a line in the level divides by none."""
    pipe = pipe_of(scheduler)
    uncached, trace, _ = generate(pipe, NoCacheConfig(), strength)
    made = len(trace.steps)
    method = PreciseCacheConfig(alpha=1e9, downsample_factor=(1, 2, 2), protect_last=2, warmup_steps=2)
    _, trace, _ = generate(pipe, method, strength)
    assert [row.action for row in trace.steps[-3:]] == ["reuse", "full", "full"]
    _, trace, _ = generate(pipe, UniformConfig(steps=2), strength)
    assert [row.index for row in trace.steps if row.action == "full"] == [0, -(-made // 2)]
    actions = ("FFFr" * 10)[:made]
    for damping in (0.5, 1.0):
        latents, trace, _ = generate(
            pipe, ReplayConfig(actions=actions, reuse="extrapolate", damping=damping), strength
        )
        assert "".join("r" if row.action == "reuse" else "F" for row in trace.steps) == actions
        assert latents.isfinite().all()
        assert latents.abs().max() < 10 * uncached.abs().max()


def test_levels_no_scheduler_tells_are_refused_where_they_are_needed(pipe):
    """A loop of the user's own: None in the trace, and a refusal before anything runs."""
    latents, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    with apply(pipe, NoCacheConfig()) as handle:
        for timestep in (900, 600):
            pipe.transformer(latents, torch.tensor([timestep]), text)
    assert [row.sigma for row in handle.trace.steps] == [None, None]
    for method in (ReplayConfig(actions="FF", reuse="extrapolate"), SeaCacheConfig(protect_last=0)):
        with apply(pipe, method) as handle, pytest.raises(ValueError, match=r"needs the noise level.*cache_context"):
            pipe.transformer(latents, torch.tensor([900]), text)
        assert not handle.traces


def loop(pipe: Any, places: list[int], says: int | None, index: bool, fails: int | None = None) -> None:
    """A loop of the user's own over entries of the scheduler's timesteps, announcing so many steps, with an index."""
    latents, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    pipe.scheduler.set_timesteps(12)
    for count, place in enumerate(places):
        context = {"num_inference_steps": says, **({"step_index": count} if index else {})}
        timestep = pipe.scheduler.timesteps[place].expand(1)
        with pipe.transformer.cache_context("cond", **context):
            if count == fails:
                with pytest.raises(RuntimeError):
                    pipe.transformer(latents[:, :3], timestep, text)
            pipe.transformer(latents, timestep, text)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("says", [None, 12, 8, 40])
def test_a_loop_that_begins_part_way_down_is_counted_from_there(pipe, says, index):
    """Whether it announces how many steps it was asked for, how many it takes, what it took once, or nothing."""
    for method, computed in (
        (UniformConfig(steps=2), [0, 4]),
        (UniformConfig(steps=1, protect_last=2), [0, 6, 7]),
        (ReplayConfig(actions="FrrFrrrF"), [0, 3, 7]),
    ):
        with warnings.catch_warnings(), apply(pipe, method) as handle, torch.no_grad():
            warnings.simplefilter("ignore")
            loop(pipe, list(range(4, 12)), says, index)
        assert [row.index for row in handle.trace.steps] == list(range(8))
        assert [row.index for row in handle.trace.steps if row.action == "full"] == computed
        assert [row.sigma for row in handle.trace.steps] == pipe.scheduler.sigmas[4:12].tolist()


def test_a_step_tried_again_keeps_its_place(pipe):
    """A loop that catches a failure of the transformer and calls it again: it knows where it is."""
    with warnings.catch_warnings(), apply(pipe, ReplayConfig(actions="FrFrFrFrFrFr")) as handle, torch.no_grad():
        warnings.simplefilter("ignore")
        loop(pipe, list(range(12)), None, index=False, fails=2)
    assert [[row.index for row in trace.steps] for trace in handle.traces] == [[0, 1, 2], list(range(2, 12))]
    assert [row.action for row in handle.trace.steps[:3]] == ["full", "reuse", "full"]


def test_a_third_branch_without_a_name_is_refused(pipe):
    latents, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    with apply(pipe, NoCacheConfig()):
        for _ in range(2):
            pipe.transformer(latents, torch.tensor([900]), text)
        with pytest.raises(ValueError, match="name each guidance branch"):
            pipe.transformer(latents, torch.tensor([900]), text)


def test_one_unit_for_all_schedulers():
    """The share of noise. Sigmas of thousands are another unit: noise over signal."""
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = diffusers.EulerDiscreteScheduler(**config)
    scheduler.set_timesteps(12)
    assert scheduler.sigmas.max() > 1000
    ratios = scheduler.sigmas[:-1]
    assert noise_levels(scheduler) == pytest.approx((ratios / (1 + ratios)).tolist(), abs=1e-3)
    assert times(scheduler) == pytest.approx((scheduler.timesteps / 1000).tolist())


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_step_is_as_long_as_what_an_error_moves_the_latent_by(name):
    """But for a factor between 1 and √2, where the latent is divided by the sum of its parts' sizes."""
    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(**velocity if name.startswith("Cog") else {})
    scheduler.set_timesteps(12)
    levels = [*noise_levels(scheduler), 0.0]
    latent, prediction = torch.randn(2, 1, 4, 2, 8, 8)
    for index, timestep in enumerate(scheduler.timesteps):
        there = []
        for wrong in (0.0, 1.0):
            scheduler._step_index = index
            there.append(scheduler.step(prediction + wrong, timestep, latent, return_dict=False)[0])
        angle = math.atan2(levels[index + 1], 1 - levels[index + 1])
        size = math.cos(angle) + math.sin(angle) if name.startswith("Cog") else 1.0
        moved = float((there[1] - there[0]).abs().mean()) / size
        assert 0.999 < moved / (levels[index] - levels[index + 1]) < math.sqrt(2) + 1e-3
