"""The check that all configs share: numbers are finite and in range, texts are valid UTF-8."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 1e9  # limit of any number in a config; more is taken for a typing error


def check_plain(name: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> None:
    """Raise ValueError unless every number in `value` is finite and from `low` to `high`, and every text is UTF-8.

    value: a field's value: a number, a text, None, or lists and dicts of them. Other objects are left alone.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(f"{name}.{key}", item, low, high)
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(name, item, low, high)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be {_span(low, high)}, not {_shown(value)}")
    elif isinstance(value, str) and (not value.isascii() or "\0" in value):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not text in UTF-8") from None
        if "\0" in value:
            raise ValueError(f"{name} holds a null character")


def _span(low: float, high: float) -> str:
    if high == LARGEST:
        return f"at most {high:g}" if low == -LARGEST else f"at least {low:g} (and at most {high:g})"
    return f"from {low} to {high}"


def _shown(value: float) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"a number of {len(text)} digits"
