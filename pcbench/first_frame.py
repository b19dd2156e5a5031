"""The image that an image-to-video prompt comes with, the first frame of its video: `TEXT | IMAGE` in a prompt file.

Inside pcbench such a prompt is named `TEXT | NAME HASH`, so that another image is another sample wherever it lies.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .config import ConfigError
from .messages import shortened

BETWEEN = " | "
KINDS = (".png", ".jpg", ".jpeg", ".webp")
DEFAULT, INSTEAD = (
    "bundled:demo.txt",
    "bundled:first_frame.txt",
)  # the default prompts; those for a model that starts from an image
LETTERS = 12  # hex digits of an image's SHA-256 in its prompt's name


def is_taken_by(pipeline: Any) -> bool:
    """Whether the calls of a class of pipelines take an image."""
    return "image" in inspect.signature(pipeline.__call__).parameters


def named(lines: Sequence[str], folder: Path) -> dict[str, Path]:
    """The prompts of a file's lines, each with its image. folder: the file's, in which the paths begin.

    Raises ConfigError for a line without an image, or with one that cannot be read.
    """
    found: dict[str, Path] = {}
    for line in lines:
        text, between, name = line.rpartition(BETWEEN)
        if not between or not text.strip():
            raise ConfigError(
                f"{shortened(line)!r} has no image: this model makes videos from a first frame; write TEXT | IMAGE,"
                " or say prompts=first_frame"
            )
        path = folder / name.strip()
        try:
            content = path.read_bytes()
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # Pillow raises errors of many kinds for a damaged file
            why = getattr(error, "strerror", None) or "no image that can be read"
            raise ConfigError(f"image {shortened(name.strip())!r} of {shortened(text)!r}: {why}") from error
        found[f"{text.strip()}{BETWEEN}{path.name} {hashlib.sha256(content).hexdigest()[:LETTERS]}"] = path
    return found


def refuse(lines: Sequence[str]) -> None:
    """Raise ConfigError for a line with an image, for a model that takes none."""
    for line in lines:
        if BETWEEN in line and line.lower().endswith(KINDS):
            raise ConfigError(f"{shortened(line)!r} has an image, and this model takes text alone")


def text_of(prompt: str) -> str:
    """The text of a prompt that has an image."""
    return prompt.rpartition(BETWEEN)[0]


def opened(path: Path, height: int, width: int) -> Image.Image:
    """An image in RGB, cut at its middle to a video's shape and resized to its height and width."""
    with Image.open(path) as image:
        scale = min(image.width / width, image.height / height)
        side, tall = width * scale, height * scale
        left, top = (image.width - side) / 2, (image.height - tall) / 2
        box = (left, top, left + side, top + tall)
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box=box)
