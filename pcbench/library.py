"""pcbench for scripts: a model's pipeline, and the arguments it is usually called with. `import pcbench` has both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import backbones, compose, feasible
from .backbones import weights
from .config import Run
from .messages import nearest, shortened


def load(name: str | os.PathLike[str], device: str = "auto", dtype: str | None = None) -> Any:
    """The diffusers pipeline of a model, ready to be called: `pcbench.load("tiny_wan")`.

    name: a model of conf/model/ ("tiny_wan" and the other twins bring their weights with them), a diffusers pipeline
        folder (a string or a Path), or owner/name on the hub, of a known class.
    device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N"; the weights are placed there.
    dtype: "float32", "bfloat16" or "float16"; None for the model's usual one.

    Every call loads anew: the pipeline is the caller's alone. Raises ValueError, in one line that says what to do, for
    an unknown name (with the nearest ones), missing weights or a wrong device.
    """
    run = _run(name, [f"device={device}", *([] if dtype is None else [f"model.numerics.dtype={dtype}"])])
    weights.require(run.recipe.backbone, run.download)
    feasible.check_here(run)
    return backbones.fresh(run.recipe, run.device)


def arguments(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments that a model's pipeline is usually called with, except prompt and noise: size, frames, steps,
    guidance. `pipe(prompt, **pcbench.arguments("tiny_wan"))`; without them diffusers' own defaults hold, which for a
    twin are a far larger video than it was trained on.

    Raises ValueError for an unknown name, as `load` does.
    """
    recipe = _run(name, []).recipe
    return backbones.family(recipe.backbone).call_arguments(recipe)


def _run(model: str | os.PathLike[str], words: list[str]) -> Run:
    name = os.path.expanduser(os.fspath(model))
    known = compose.names("model")
    if name in known:
        return compose.run_from([f"model={name}", "method=none", *words])
    if "/" not in name and not Path(name).is_dir():
        raise ValueError(f"unknown model {shortened(name)!r}: {nearest(name, known)}; or give a pipeline folder")
    return compose.run_from(["model=custom", f"model.backbone.source={name}", "method=none", *words])
