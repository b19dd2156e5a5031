"""Random clips of the world for training; scene, start and prompt are drawn from one generator."""

from __future__ import annotations

import functools

import torch

from .world import Scene, all_scenes, empty_stage, paint, render

OPTIONAL = ("size", "speed", "pattern")


@functools.cache
def training_scenes() -> list[Scene]:
    """All scenes except the held-out tenth."""
    return [scene for scene in all_scenes() if not scene.held_out]


def random_scene(generator: torch.Generator) -> tuple[Scene, tuple[float, float]]:
    """A training scene, and the place (x, y) in [0, 1]² where its shape starts."""
    scenes = training_scenes()
    scene = scenes[int(torch.randint(len(scenes), (1,), generator=generator))]
    x, y = torch.rand(2, generator=generator).tolist()
    return scene, (x, y)


def random_light(lit: bool, generator: torch.Generator) -> float | None:
    """How the light falls, in [0, 1), or None in the plain look (which draws no random number)."""
    return float(torch.rand(1, generator=generator)) if lit else None


def random_prompt(scene: Scene, generator: torch.Generator, omit: float = 0.15) -> str:
    """The scene's prompt; each optional attribute is left out with probability `omit`."""
    left_out = torch.rand(len(OPTIONAL), generator=generator) < omit
    return scene.prompt(frozenset(name for name, out in zip(OPTIONAL, left_out.tolist(), strict=True) if out))


def random_clip(frames: int, size: int, crop: int, generator: torch.Generator, lit: bool = False) -> torch.Tensor:
    """A clip (3, frames, crop, crop) of a scene drawn at `size` pixels, cropped at random; values in [-1, 1]."""
    scene, start = random_scene(generator)
    return _crop(render(scene, start, frames, size, size, random_light(lit, generator)), crop, generator)


def random_collage(
    frames: int, size: int, crop: int, generator: torch.Generator, lit: bool = False, shapes: int = 6
) -> torch.Tensor:
    """Like `random_clip`, but full of shapes of any colour on a tinted background, so that every pixel teaches."""
    scene, _ = random_scene(generator)
    light = random_light(lit, generator)
    tint = torch.rand(3, 1, 1, 1, generator=generator).add(0.5).clamp(max=1)
    video = empty_stage(scene, frames, size, size, light) * tint
    for _ in range(shapes):
        scene, start = random_scene(generator)
        red, green, blue = torch.rand(3, generator=generator).tolist()
        paint(video, scene, start, (red, green, blue), light)
    return _crop(video * 2 - 1, crop, generator)


def _crop(video: torch.Tensor, crop: int, generator: torch.Generator) -> torch.Tensor:
    top, left = torch.randint(video.shape[-1] - crop + 1, (2,), generator=generator).tolist()
    return video[:, :, top : top + crop, left : left + crop]
