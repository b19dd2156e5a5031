"""Numbers that a method needs for a backbone before it can run on it: published, or measured by `pcbench.calibrate`.

A backbone is recognised by its signature: family, layers and width of its transformer. Measured calibrations are JSON
files in methods/calibrations/, one per method and signature, written by the command and never by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .engine.anatomy import Anatomy

FOLDER = Path(__file__).parent / "calibrations"


class NotCalibratedError(ValueError):
    """The method has no numbers for this backbone; the message says how to get them."""


def signature(anatomy: Anatomy) -> str:
    """For example "wan-40x5120": family, transformer layers, width."""
    config = anatomy.config
    width = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    return f"{anatomy.family}-{config.get('num_layers', 0)}x{width}"


def path_of(method: str, anatomy: Anatomy) -> Path:
    """The file of a measured calibration."""
    return FOLDER / f"{method}-{signature(anatomy)}.json"


def measured(method: str, anatomy: Anatomy) -> dict[str, Any]:
    """The measured calibration, as read from JSON. Raises NotCalibratedError if there is none."""
    path = path_of(method, anatomy)
    if not path.exists():
        raise NotCalibratedError(
            f"{method} has no published numbers for {signature(anatomy)} and none were measured;"
            f" measure them: python -m pcbench.calibrate method={method} model=…"
        )
    return json.loads(path.read_text())
