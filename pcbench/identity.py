"""Who a recipe and a machine are. A recipe's id hashes only fields that differ from their defaults (it is sparse), so
that a field added later, with a default, renames nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from methods import Method

from .config import Recipe

IRRELEVANT = {"transformer"}  # describes the weights named elsewhere; does not choose them


def sparse(value: Any) -> Any:
    """Plain data without the dataclass fields that hold their default."""
    if not is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    data: dict[str, Any] = {}
    if isinstance(value, Method):
        data["name"] = value.NAME
        if value.VERSION != 1:
            data["version"] = value.VERSION
    for item in fields(value):
        held = getattr(value, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if item.name not in IRRELEVANT and (default is MISSING or held != default):
            data[item.name] = sparse(held)
    return data


def recipe_id(recipe: Recipe) -> str:
    """Twelve hex digits."""
    text = json.dumps(sparse(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sample_key(prompt: str, seed: int) -> str:
    """A file name for one sample: a readable beginning, a hash that keeps prompts apart, the seed."""
    readable = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:40].rstrip("-")
    return f"{readable}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-s{seed}"
