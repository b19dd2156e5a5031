"""Where a backbone's weights come from: bundled with pcbench, a local folder, a hub repository, or random numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache

from ..config import RANDOM, Backbone, ConfigError, Download

BUNDLED = Path(__file__).parents[1] / "tiny" / "weights"
INDEX = "model_index.json"  # every diffusers pipeline folder has one
HUB_TIMEOUT = 5  # seconds to wait for an answer from the hub


def source(backbone: Backbone) -> str:
    """The folder or hub repository of the weights. Raises ConfigError for bundled weights that do not exist."""
    place = backbone.source.removeprefix(f"{RANDOM}:")  # "random:FOLDER" means random numbers in FOLDER's architecture
    kind, _, name = place.partition(":")
    if kind != "bundled":
        return place
    if not (BUNDLED / name / INDEX).exists():
        raise ConfigError(f"no bundled weights named {name!r} in {BUNDLED}")
    return str(BUNDLED / name)


def are_random(backbone: Backbone) -> bool:
    """Whether the weights are random numbers, so that there is no checkpoint to load."""
    return backbone.source.partition(":")[0] == RANDOM


def config_of(backbone: Backbone, part: str) -> dict[str, Any]:
    """The config of a part of the pipeline: its folder's if that exists, else as declared; {} means class defaults."""
    path = Path(source(backbone)) / part / "config.json"
    if path.exists():
        return json.loads(path.read_text())
    return dict(backbone.transformer) if part == "transformer" else {}


def stored(backbone: Backbone, file: str) -> dict[str, Any] | None:
    """A JSON file of the checkpoint, from its folder or the hub's cache; None if it is not on this machine, or if the
    weights are random, so that no checkpoint is loaded."""
    if are_random(backbone):
        return None
    path: Any = Path(source(backbone)) / file
    if not path.exists() and backbone.source.count("/") == 1 and not path.is_absolute():
        path = try_to_load_from_cache(backbone.source, file, revision=backbone.revision)
    return json.loads(Path(path).read_text()) if isinstance(path, str | Path) and Path(path).exists() else None


def revision(backbone: Backbone) -> str | None:
    """The hub commit to load; bundled weights and local folders have none."""
    return None if backbone.source.startswith("bundled:") or Path(backbone.source).is_dir() else backbone.revision


def require(backbone: Backbone, download: Download) -> None:
    """Raise ConfigError, in one line that says what to do, if the weights are neither here nor can be downloaded."""
    place = Path(source(backbone))
    if backbone.source.startswith("bundled:") and not any((place / "transformer").glob("*.safetensors")):
        raise ConfigError(
            f"no weights for {backbone.name}: of the twins, pcbench's wheel has Wan's alone; install pcbench-twins"
            " (in a clone: pip install pcbench/tiny/weights), or run in a clone, which has all"
        )
    if are_random(backbone) or (place / INDEX).exists():
        return
    if place.is_dir():
        raise ConfigError(f"{place} is no diffusers pipeline folder: it has no {INDEX}")
    if backbone.source.count("/") != 1 or place.is_absolute():
        raise ConfigError(f"model.backbone.source={backbone.source}: no such folder")
    if download.obtain is not None:
        raise ConfigError(_what_to_do(backbone, download, "no pipeline folder"))
    if isinstance(try_to_load_from_cache(backbone.source, INDEX, revision=backbone.revision), str):
        return
    try:
        HfApi().model_info(backbone.source, revision=backbone.revision, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's client raises the errors of whichever transport it uses
        why = f"neither here nor in reach ({type(error).__name__})"
        raise ConfigError(_what_to_do(backbone, download, why)) from error


def _what_to_do(backbone: Backbone, download: Download, why: str) -> str:
    size = f" ({download.gigabytes:g} GB)" if download.gigabytes else ""
    choices = ["model.backbone.source=FOLDER", "model.weights=random"]
    choices += [f"model={download.twin}"] if download.twin else []
    advice = download.obtain or "give"
    return (
        f"no weights for {backbone.name}: {backbone.source}{size} is {why};"
        f" {advice} {', '.join(choices[:-1])} or {choices[-1]}"
    )


@contextmanager
def at(device: str, dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Modules made inside the block get seeded random weights of this dtype, created directly on this device."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        gpus = [torch.device(device).index or 0] if device.startswith("cuda") else []  # touch no other GPU's generator
        with torch.random.fork_rng(gpus), torch.device(device), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(default_dtype)


def random_embeddings(prompt: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Noise in place of a prompt's embeddings where there is no text encoder; a prompt always gets the same noise."""
    generator = torch.Generator().manual_seed(sum(ord(letter) << (index % 24) for index, letter in enumerate(prompt)))
    return torch.randn(shape, generator=generator).to(like)


def built(kind: Any, config: dict[str, Any]) -> Any:
    """A model of a diffusers class with random weights, set up for inference."""
    return kind.from_config(config).eval().requires_grad_(False)
