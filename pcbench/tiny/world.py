"""The procedural world on which the tiny backbones are trained: one textured shape that moves over a background.

A `Scene` contains what a prompt says, and nothing else; where the shape starts is left to the seed. Rendering is exact
(signed distance functions), so a generated video can be measured against its prompt (see `obedience.py`).

The world has two looks. The tiny backbones use the plain one. The lit one, for larger frames, adds something that a
low-pass filter keeps (a wave of light that drifts over everything) and something that it removes (a fine weave on the
background). No prompt says where the light is, so that is left to the seed, like the shape's place.
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
TEXTURE_PERIOD = 1 / 16  # period of the shape's hatching, in frame widths: 8 pixels at full size
PATTERN_PERIOD = 1 / 8  # period of the background's pattern, in frame widths
HELD_OUT_SHARE = 0.1

# The lit look: the largest change of brightness by light and by weave. A black background can only get brighter, a
# white one only darker, a grey one both: PIVOTS is the value of light (or weave) above which it adds brightness.
LIGHT, WEAVE = 0.20, 0.20
SHADING = 0.15  # how much light and shade change the shape's colour
LIGHT_PERIOD, LIGHT_DRIFT = 1.6, 0.75  # in frame widths; periods drifted in FRAMES frames
WEAVE_PERIOD = 1 / 16  # in frame widths: 16 pixels, two latent cells, at 256
PIVOTS = {"black": 0.0, "grey": 0.5, "white": 1.0}


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
        """The sentence that describes this scene; `drop` leaves out any of {"size", "speed", "pattern"}."""
        words = ["a", self.size, self.colour, self.shape, "moving", self.speed, self.direction]
        words += ["on", "a", self.pattern, self.background, "background"]
        skipped = {getattr(self, name) for name in drop}
        return " ".join(word for word in words if word not in skipped)

    @property
    def held_out(self) -> bool:
        """Whether training never uses this combination (a fixed tenth of all scenes)."""
        return random.Random("/".join(astuple(self))).random() < HELD_OUT_SHARE


def all_scenes() -> list[Scene]:
    """Every scene of the world, in a fixed order."""
    axes = (SHAPES, COLOURS, SIZES, SPEEDS, DIRECTIONS, PATTERNS, BACKGROUNDS)
    return [Scene(*values) for values in itertools.product(*axes)]


def vocabulary() -> list[str]:
    """Every word that can occur in a prompt, sorted."""
    return sorted({word for scene in all_scenes() for word in scene.prompt().split()})


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance to the edge of a shape of radius 1 centred at 0 (negative inside); y points down.

    Raises ValueError for an unknown shape.
    """
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


def _light(light: float, x: torch.Tensor, y: torch.Tensor, moment: float) -> torch.Tensor:
    """A soft, drifting wave of light in [0, 1]; `light` in [0, 1) determines its angle and where it begins."""
    across = x * math.cos(2 * math.pi * light) + y * math.sin(2 * math.pi * light)
    return 0.5 + 0.5 * torch.cos(2 * math.pi * (across / LIGHT_PERIOD - LIGHT_DRIFT * moment + 5 * light))


def _weave(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.5 * torch.sin((x - y) * (math.sqrt(2) * math.pi / WEAVE_PERIOD))


def _background(
    scene: Scene, x: torch.Tensor, y: torch.Tensor, light: float | None = None, moment: float = 0.0
) -> torch.Tensor:
    wave = 2 * math.pi / PATTERN_PERIOD
    if scene.pattern == "striped":
        marks = torch.sin(x * wave).clamp(min=0)
    elif scene.pattern == "dotted":
        marks = (torch.sin(x * wave) * torch.sin(y * wave)).clamp(min=0) * 1.2
    else:
        marks = torch.zeros_like(x)
    contrast = 0.18 if scene.background != "white" else -0.22
    colour = torch.tensor(BACKGROUNDS[scene.background])[:, None, None]
    if light is not None:
        pivot = PIVOTS[scene.background]
        colour = colour + LIGHT * (_light(light, x, y, moment) - pivot) + WEAVE * (_weave(x, y) - pivot)
    return (colour + contrast * marks).clamp(0, 1)


def trajectory(scene: Scene, start: tuple[float, float], frames: int, stride: int = 1) -> list[tuple[float, float]]:
    """Centres (x, y) in frame widths. `start` in [0, 1]² picks a place from which the shape stays inside a full clip.

    stride: only every n-th frame of the world is shown.
    """
    radius, travel = SIZES[scene.size], SPEEDS[scene.speed]
    centres = []
    for frame in range(frames):
        distance = travel * frame * stride / (FRAMES - 1)
        centre = []
        for fraction, step in zip(start, DIRECTIONS[scene.direction], strict=True):
            room = 1 - 2 * radius - (travel if step else 0.0)
            origin = radius + fraction * room + (travel if step < 0 else 0.0)
            centre.append(origin + step * distance)
        centres.append((centre[0], centre[1]))
    return centres


def paint(
    video: torch.Tensor,
    scene: Scene,
    start: tuple[float, float],
    colour: tuple[float, float, float] | None = None,
    light: float | None = None,
    stride: int = 1,
) -> None:
    """Paint the scene's moving shape over `video` (3, frames, height, width; values in [0, 1]), in place."""
    _, frames, height, width = video.shape
    y, x = _grid(height, width)
    radius, rgb = SIZES[scene.size], torch.tensor(colour or COLOURS[scene.colour])[:, None, None]
    for index, (cx, cy) in enumerate(trajectory(scene, start, frames, stride)):
        dx, dy = x - cx, y - cy
        cover = (0.5 - signed_distance(scene.shape, dx / radius, dy / radius) * radius * width).clamp(0, 1)
        texture = 1 + 0.22 * torch.sin((dx + dy) * (math.sqrt(2) * math.pi / TEXTURE_PERIOD))
        if light is not None:
            texture = texture + SHADING * (2 * _light(light, x, y, index * stride / (FRAMES - 1)) - 1)
        video[:, index] = video[:, index] * (1 - cover) + (rgb * texture).clamp(0, 1) * cover


def empty_stage(
    scene: Scene,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    light: float | None = None,
    stride: int = 1,
) -> torch.Tensor:
    """The scene's background alone, (3, frames, height, width) with values in [0, 1]."""
    y, x = _grid(height, width)
    if light is None:
        return _background(scene, x, y)[:, None].repeat(1, frames, 1, 1)
    moments = [frame * stride / (FRAMES - 1) for frame in range(frames)]
    return torch.stack([_background(scene, x, y, light, moment) for moment in moments], 1)


def render(
    scene: Scene,
    start: tuple[float, float],
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    light: float | None = None,
    stride: int = 1,
) -> torch.Tensor:
    """The scene as a video of shape (3, frames, height, width) with values in [-1, 1].

    light: None for the plain look; for the lit look a number in [0, 1) that says how the light falls.
    stride: only every n-th frame of the world is shown.
    """
    video = empty_stage(scene, frames, height, width, light, stride)
    paint(video, scene, start, light=light, stride=stride)
    return video * 2 - 1
