"""The ids of recipes and samples. A recipe's id hashes only the fields that differ from their defaults (it is sparse),
so a field added later, with a default, changes no id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any

from methods import Cache, Method

from .config import Recipe

IRRELEVANT = {"transformer"}  # only describes the weights that `source` chooses


def sparse(value: Any) -> Any:
    """A dataclass as plain data, without the fields that have their default value."""
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
    """The recipe's id: twelve hex digits of a SHA-256 hash."""
    text = json.dumps(sparse(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def described(method: Method) -> dict[str, Any]:
    """A method as records describe it: name, version and all fields; `kept` only where it is not "exact", so that a
    record from before there was a choice equals one from after."""
    described = {"name": method.NAME, "version": method.VERSION, **asdict(method)}
    return {name: value for name, value in described.items() if (name, value) != ("kept", "exact")}


def exact(method: Method) -> Method:
    """The method with what it keeps stored exactly, which computes as much."""
    return replace(method, kept="exact") if isinstance(method, Cache) else method


def sample_key(prompt: str, seed: int) -> str:
    """A file name for one sample: the beginning of the prompt, a hash that keeps prompts apart, the seed."""
    readable = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:40].rstrip("-")
    return f"{readable}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-s{seed}"
