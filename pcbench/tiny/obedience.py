"""Does a generated video show what its prompt says?

`python -m pcbench.tiny.obedience --model tiny_wan --count 64`

Backgrounds of the world are grey and shapes are not, so the shape is where colour is saturated. Its colour is the
nearest of the world's colours, its direction that of a line fitted through its centres, its shape the one whose
silhouette overlaps best. On rendered videos of the world itself every answer is right (tests/test_tiny_world.py).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .twins import TWINS
from .world import BACKGROUNDS, COLOURS, DIRECTIONS, FRAMES, SHAPES, SIZES, SPEEDS, Scene, all_scenes, signed_distance

SATURATED = 0.30  # max minus min over channels
SMALLEST = 0.005  # share of a frame that the shape must cover to count as seen
# The average colours of backgrounds with light and weave.
LIT_BACKGROUNDS = {"black": (0.28,) * 3, "grey": (0.48,) * 3, "white": (0.68,) * 3}
MEASURED = ("shape", "colour", "direction", "size", "speed", "background")


@dataclass(frozen=True)
class Seen:
    """What a video shows; None for what could not be seen."""

    shape: str | None
    colour: str | None
    direction: str | None
    size: str | None
    speed: str | None
    background: str | None
    overlap: float  # intersection over union of the silhouette and the named shape, 0 to 1


def _silhouettes(frames: np.ndarray) -> np.ndarray:
    values = frames.astype(np.float32) / 255
    return values.max(-1) - values.min(-1) > SATURATED


def _nearest(rgb: np.ndarray, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(rgb - np.array(palette[name]))))


def _centres(masks: np.ndarray) -> np.ndarray:
    """Centres (frames, 2) of masks (frames, H, W): x, y in frame widths."""
    width = masks.shape[-1]
    return np.array([((np.argwhere(mask).mean(0) + 0.5) / width)[::-1] for mask in masks])


def _overlaps(mask: np.ndarray) -> dict[str, float]:
    """Intersection over union of a silhouette with each shape of the same area at the same centre."""
    width = mask.shape[-1]
    cx, cy = _centres(mask[None])[0]
    y, x = torch.meshgrid(
        (torch.arange(mask.shape[0]) + 0.5) / width - cy, (torch.arange(width) + 0.5) / width - cx, indexing="ij"
    )
    scores = {}
    for shape in SHAPES:
        radius = math.sqrt(mask.mean() * mask.shape[0] / width / _unit_area(shape))
        ideal = (signed_distance(shape, x / radius, y / radius) < 0).numpy()
        scores[shape] = float((mask & ideal).sum() / (mask | ideal).sum())
    return scores


def _unit_area(shape: str) -> float:
    axis = (torch.arange(400) + 0.5) / 160 - 1.25
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return float((signed_distance(shape, x, y) < 0).float().mean()) * 2.5**2


def look(frames: np.ndarray, lit: bool = False) -> Seen:
    """What a video of uint8 frames (T, H, W, 3) shows, in the world's plain or its lit look."""
    masks = _silhouettes(frames)
    grey = frames[~masks].mean(0) / 255 if (~masks).any() else np.zeros(3)
    background = _nearest(grey, LIT_BACKGROUNDS if lit else BACKGROUNDS)
    visible = [index for index, mask in enumerate(masks) if mask.mean() > SMALLEST]
    if len(visible) < len(frames) // 2:
        return Seen(None, None, None, None, None, background, 0.0)
    colour = _nearest(np.median(frames[masks], axis=0) / 255, COLOURS)
    centres = _centres(masks[visible])
    velocity = np.polyfit(visible, centres, 1)[0]  # frame widths a frame
    direction = max(DIRECTIONS, key=lambda name: float(velocity @ np.array(DIRECTIONS[name])))
    travel = float(np.abs(velocity).max()) * (FRAMES - 1)  # in a clip of the world's full length
    per_frame = [_overlaps(masks[index]) for index in visible[:: max(1, len(visible) // 8)]]
    overlaps = {shape: statistics.fmean(scores[shape] for scores in per_frame) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    radius = math.sqrt(float(masks[visible].mean()) / _unit_area(shape))
    return Seen(
        shape=shape,
        colour=colour,
        direction=direction if travel > 0.05 else None,
        size=min(SIZES, key=lambda name: abs(math.log(radius / SIZES[name]))),
        speed=min(SPEEDS, key=lambda name: abs(travel - SPEEDS[name])),
        background=background,
        overlap=overlaps[shape],
    )


def report(pairs: list[tuple[Scene, Seen]]) -> dict[str, Any]:
    """The share of right answers for each attribute, and every scene with a wrong answer."""
    right = {name: statistics.fmean(getattr(s, name) == getattr(seen, name) for s, seen in pairs) for name in MEASURED}
    wrong = [
        {"prompt": scene.prompt(), "seen": asdict(seen)}
        for scene, seen in pairs
        if any(getattr(scene, name) != getattr(seen, name) for name in MEASURED)
    ]
    return {"videos": len(pairs), "right": right, "wrong": wrong}


def main() -> None:
    """Generate videos of held-out prompts with the bundled weights, measure them, print and write the report."""
    from pcbench import cli
    from pcbench.backbones import family, load
    from pcbench.sampling import generate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny_wan")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lit = next((twin.LIT for twin in TWINS.values() if twin.model() == args.model), False)
    recipe = cli.run_from([f"model={args.model}", "method=none"]).recipe
    pipe = load(recipe, "cuda" if torch.cuda.is_available() else "cpu")
    scenes = [scene for scene in all_scenes() if scene.held_out]
    random.Random(0).shuffle(scenes)
    pairs = []
    for seed, scene in enumerate(scenes[: args.count]):
        latents = generate.denoise(pipe, recipe, seed, prompt=scene.prompt())
        pairs.append((scene, look(family(recipe.backbone).decode(pipe, latents, recipe), lit)))
        print(f"{seed + 1}/{args.count}  {scene.prompt()}  ->  {pairs[-1][1]}", flush=True)
    sampling = recipe.sampling
    data = report(pairs) | {"sampling_steps": sampling.steps, "guidance_scale": sampling.guidance_scale}
    print(json.dumps(data["right"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
