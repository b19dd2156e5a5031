"""Published checkpoints in formats of their own: reading their weights, and filling our models with exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

KINDS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
DTYPES = ("bfloat16", "float16", "float32")


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder, sharded or not, by name. Raises ValueError if it has none."""
    for kind in KINDS:
        if files := sorted(Path(folder).glob(kind)):
            break
    else:
        raise ValueError(f"no weights in {folder}: looked for {', '.join(KINDS)}")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            state |= safetensors.torch.load_file(file)
        else:
            state |= torch.load(file, map_location="cpu", weights_only=True)
    return state


def filled(
    model: Any, weights: Mapping[str, torch.Tensor], of: str, folder: str | Path, unknown: Iterable[str] = ()
) -> Any:
    """The model with exactly these weights, which go by our names.

    of: whose checkpoint it should be. unknown: further weights, without a name of ours. Raises ValueError if any is
    unknown, missing or of another shape.
    """
    expected = model.state_dict()
    problems = {
        "not known": [*unknown, *sorted(set(weights) - set(expected))],
        "missing": sorted(set(expected) - set(weights)),
        "of another shape": [n for n, v in weights.items() if n in expected and v.shape != expected[n].shape],
    }
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"{folder} is no checkpoint of {of} ({type(model).__name__}): weights {listed}")
    model.load_state_dict(weights)
    return model
