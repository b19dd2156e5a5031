"""The procedural world the tiny backbones are trained on: one textured shape that moves over a background.

A `Scene` is what a prompt says, and nothing else; where the shape starts is left to the seed. Rendering is exact
(signed distance functions), so a generated video can be measured against its prompt (see `obedience.py`).
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import astuple, dataclass

import torch

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.15, 0.80),
    "orange": (1.00, 0.50, 0.05),
}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
SPEEDS = {"slowly": 0.25, "quickly": 0.50}  # frame widths travelled in one clip of FRAMES frames
SIZES = {"small": 0.13, "large": 0.20}  # radius, in frame widths
BACKGROUNDS = {"black": (0.05, 0.05, 0.06), "grey": (0.45, 0.45, 0.47), "white": (0.92, 0.92, 0.90)}
PATTERNS = ("plain", "striped", "dotted")

FRAMES, HEIGHT, WIDTH, FPS = 29, 128, 128, 12
TEXTURE_PERIOD = 1 / 16  # of the shape's hatching, in frame widths: 8 pixels at full size
PATTERN_PERIOD = 1 / 8  # of the background's
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Scene:
    """What one prompt describes."""

    shape: str
    colour: str
    size: str
    speed: str
    direction: str
    pattern: str
    background: str

    def prompt(self, drop: frozenset[str] = frozenset()) -> str:
        """The sentence for this scene; `drop` leaves out any of {"size", "speed", "pattern"}."""
        words = ["a", self.size, self.colour, self.shape, "moving", self.speed, self.direction]
        words += ["on", "a", self.pattern, self.background, "background"]
        skipped = {getattr(self, name) for name in drop}
        return " ".join(word for word in words if word not in skipped)

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination (a fixed tenth of all scenes)."""
        return random.Random("/".join(astuple(self))).random() < HELD_OUT_SHARE


def all_scenes() -> list[Scene]:
    """Every scene of the world, in a fixed order."""
    axes = (SHAPES, COLOURS, SIZES, SPEEDS, DIRECTIONS, PATTERNS, BACKGROUNDS)
    return [Scene(*values) for values in itertools.product(*axes)]


def vocabulary() -> list[str]:
    """Every word a prompt can hold, sorted."""
    return sorted({word for scene in all_scenes() for word in scene.prompt().split()})


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance to the edge of a shape of radius 1 centred at 0 (negative inside); y points down."""
    if shape == "circle":
        return torch.hypot(x, y) - 0.95
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.82
    if shape == "triangle":  # equilateral, pointing up
        sides = torch.maximum(x.abs() * math.cos(math.pi / 6) - y * 0.5 - 0.5, y - 0.5)
        return torch.maximum(sides, -y - 1.0)
    if shape == "cross":
        horizontal = torch.maximum(x.abs() - 1.0, y.abs() - 0.34)
        return torch.minimum(horizontal, torch.maximum(x.abs() - 0.34, y.abs() - 1.0))
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _grid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    ys = (torch.arange(height) + 0.5) / width
    xs = (torch.arange(width) + 0.5) / width
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return y, x


def _background(scene: Scene, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wave = 2 * math.pi / PATTERN_PERIOD
    if scene.pattern == "striped":
        marks = torch.sin(x * wave).clamp(min=0)
    elif scene.pattern == "dotted":
        marks = (torch.sin(x * wave) * torch.sin(y * wave)).clamp(min=0) * 1.2
    else:
        marks = torch.zeros_like(x)
    contrast = 0.18 if scene.background != "white" else -0.22
    colour = torch.tensor(BACKGROUNDS[scene.background])
    return (colour[:, None, None] + contrast * marks).clamp(0, 1)


def trajectory(scene: Scene, start: tuple[float, float], frames: int) -> list[tuple[float, float]]:
    """Centres (x, y) in frame widths. `start` in [0, 1]² picks a place from which the full clip stays inside."""
    radius, travel = SIZES[scene.size], SPEEDS[scene.speed]
    centres = []
    for frame in range(frames):
        moved = travel * frame / (FRAMES - 1)
        centre = []
        for fraction, step in zip(start, DIRECTIONS[scene.direction], strict=True):
            room = 1 - 2 * radius - (travel if step else 0.0)
            origin = radius + fraction * room + (travel if step < 0 else 0.0)
            centre.append(origin + step * moved)
        centres.append((centre[0], centre[1]))
    return centres


def paint(
    video: torch.Tensor, scene: Scene, start: tuple[float, float], colour: tuple[float, float, float] | None = None
) -> None:
    """Paint the scene's moving shape over `video` (3, frames, height, width; values in [0, 1]), in place."""
    _, frames, height, width = video.shape
    y, x = _grid(height, width)
    radius, rgb = SIZES[scene.size], torch.tensor(colour or COLOURS[scene.colour])[:, None, None]
    for index, (cx, cy) in enumerate(trajectory(scene, start, frames)):
        dx, dy = x - cx, y - cy
        cover = (0.5 - signed_distance(scene.shape, dx / radius, dy / radius) * radius * width).clamp(0, 1)
        texture = 1 + 0.22 * torch.sin((dx + dy) * (math.sqrt(2) * math.pi / TEXTURE_PERIOD))
        video[:, index] = video[:, index] * (1 - cover) + (rgb * texture).clamp(0, 1) * cover


def empty_stage(scene: Scene, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """The scene's background alone, (3, frames, height, width) with values in [0, 1]."""
    y, x = _grid(height, width)
    return _background(scene, x, y)[:, None].repeat(1, frames, 1, 1)


def render(
    scene: Scene, start: tuple[float, float], frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH
) -> torch.Tensor:
    """The scene as a video of shape (3, frames, height, width) with values in [-1, 1]."""
    video = empty_stage(scene, frames, height, width)
    paint(video, scene, start)
    return video * 2 - 1
