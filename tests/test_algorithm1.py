"""The presets named after the paper against Algorithm 1 written down from its text, on the four bundled backbones.

Nothing here is of methods/: what a pipeline passes to its transformer is recorded from an uncached call; the loop, the
guidance, Downsample and FFT are written out anew. Latents are (B, C, T, H, W), of CogVideoX (B, T, C, H, W).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from methods import apply
from pcbench import backbones
from pcbench.compose import run_from
from pcbench.sampling.generate import denoise

MODELS = ("tiny_wan", "tiny_hunyuan", "tiny_cogvideox", "tiny_opensora")
SIZE = ("model.sampling.height=64", "model.sampling.width=80")
FRAMES = {"tiny_opensora": 17}  # the fewest that its schedule knows; the others' nine are three latent frames
CASES = [  # method, alpha (section 4.1, and one that reuses much), steps
    ("precisecache_base", 0.5, 24),
    ("precisecache_base", 0.5, 16),
    ("precisecache_turbo", 0.7, 16),
    ("precisecache method.alpha=2", 2.0, 16),
]
PROMPT = "a small yellow triangle moving quickly down on a striped white background"


def algorithm_1(network: Network, alpha: float) -> tuple[torch.Tensor, str]:
    """Algorithm 1 with section 4.1's threshold: Z_0, and a letter a step (f: computed, r: reused). F counts up here."""
    z, timesteps = network.z, network.scheduler.timesteps
    e = 0.0  # line 2
    f = network(z, timesteps[0])  # line 3
    z, steps, largest = network.update(z, f, timesteps[0]), "f", 0.0  # line 5; line 4's value is set anew by line 10
    for number, t in enumerate(timesteps[1:], 2):  # line 6
        small = downsample(z, network)  # line 7
        trial = network(small, t)  # line 8
        difference = low(trial, network) - low(downsample(f, network), network)  # lines 9-10
        lfd = torch.linalg.vector_norm(difference).item()  # line 11
        e = e + lfd  # line 12
        warming_up = number <= 3  # section 4.1: "caching is disabled for the first three timesteps"
        largest = max(largest, lfd) if warming_up else largest
        if not warming_up and e < alpha * largest:  # line 13
            steps += "r"  # line 14
        else:
            f, e = network(z, t), 0.0  # lines 16-17
            steps += "f"
        z = network.update(z, f, t)  # line 19
    return z, steps  # line 21


class Network:
    """epsilon of the paper, guidance included, and UpdateLatent: as one uncached pipeline call has them."""

    def __init__(self, pipe: Any, recipe: Any) -> None:
        self.pipe, self.scale = pipe, recipe.sampling.guidance_scale
        self.family, self.calls = recipe.backbone.family, first_calls(pipe, recipe)
        self.scheduler = self.calls[0].pop("scheduler")
        self.batched = self.family in ("cogvideox", "opensora")
        hidden = self.calls[0]["hidden_states"]
        self.z = hidden.chunk(2)[0] if self.batched else hidden

    def __call__(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        inputs = {"hidden_states": torch.cat([z, z]) if self.batched else z}
        inputs |= self.of_size(z) if z.shape != self.z.shape else {}
        seen = []
        for call in self.calls:
            step = {"timestep": torch.full_like(call["timestep"], t), "return_dict": False}
            seen.append(self.pipe.transformer(**{**call, **inputs, **step})[0])
        if self.family == "hunyuan":  # guidance is an input of it
            return seen[0]
        first, second = seen if self.family == "wan" else seen[0].chunk(2)
        if self.family == "opensora":  # its second half is a variance
            first, second = first[:, : z.shape[1]], second[:, : z.shape[1]]
        uncond, cond = (first, second) if self.family == "cogvideox" else (second, first)
        return uncond + self.scale * (cond - uncond)

    def of_size(self, z: torch.Tensor) -> dict[str, Any]:
        """What depends on the size: Open-Sora is told height and width in pixels, CogVideoX where its tokens are."""
        height, width = (8 * n for n in z.shape[-2:])
        if self.family == "opensora":
            return {"height": torch.tensor([float(height)] * 2), "width": torch.tensor([float(width)] * 2)}
        if self.family == "cogvideox":
            rotary = self.pipe._prepare_rotary_positional_embeddings(height, width, z.shape[1], z.device)
            return {"image_rotary_emb": rotary}
        return {}

    def update(self, z: torch.Tensor, f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sign = -1 if self.family == "opensora" else 1  # its velocity points to the video
        return self.scheduler.step(sign * f, t, z, return_dict=False)[0]

    def video(self, z: torch.Tensor) -> torch.Tensor:
        return z.transpose(1, 2) if self.family == "cogvideox" else z


class SeenError(Exception):
    """The first step's calls are over."""


def first_calls(pipe: Any, recipe: Any) -> list[dict[str, Any]]:
    """The arguments of the transformer's calls in the first step of an uncached pipeline call; the scheduler before."""
    calls: list[dict[str, Any]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if calls and not torch.equal(kwargs["timestep"], calls[0]["timestep"]):
            raise SeenError
        calls.append({"scheduler": copy.deepcopy(pipe.scheduler), **kwargs} if not calls else dict(kwargs))

    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        denoise(pipe, recipe, 0, prompt=PROMPT)
    except SeenError:
        pass
    finally:
        hook.remove()
    return calls


def downsample(z: torch.Tensor, network: Network) -> torch.Tensor:
    """By [2, 4, 4] (section 4.1) to whole patches of two, keeping the middle cell of those that each stands for."""
    video = network.video(z)
    frames, height, width = video.shape[-3:]
    for dim, n, m in ((-3, frames, -(-frames // 2)), (-2, height, height // 8 * 2), (-1, width, width // 8 * 2)):
        video = video.index_select(dim % 5, torch.tensor([int((i + 0.5) * n / m) for i in range(m)]))
    return network.video(video)


def low(f: torch.Tensor, network: Network) -> torch.Tensor:
    """FFT(F)_low: of every frame, frequencies within a fifth of min(H, W) of zero (section 4.1)."""
    video = network.video(f)
    height, width = video.shape[-2:]
    y, x = torch.meshgrid(torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width, indexing="ij")
    return torch.fft.fft2(video) * ((y**2 + x**2).sqrt() <= min(height, width) / 5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*the cache never hit")
@pytest.mark.parametrize(("method", "alpha", "steps"), CASES)
@pytest.mark.parametrize("model", MODELS)
def test_a_preset_named_after_the_paper_is_algorithm_1(model, method, alpha, steps):
    words = [f"model={model}", f"model.sampling.steps={steps}", *f"method={method}".split(), *SIZE]
    words.append(f"model.sampling.frames={FRAMES.get(model, 9)}")
    recipe = run_from(words).recipe
    pipe = backbones.load(recipe, "cpu", "none")
    expected, schedule = algorithm_1(Network(pipe, recipe), alpha)
    with apply(pipe, recipe.method) as handle:
        latents = denoise(pipe, recipe, 0, prompt=PROMPT)
    assert "".join(row.action[0] for row in handle.trace.steps) == schedule
    assert schedule.startswith("fff")
    assert len(schedule) == steps
    assert method.startswith("precisecache_") or schedule.count("r") > 5
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
