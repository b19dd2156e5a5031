"""Generate the samples that are missing: latent, mp4 and trace of each, whole or not at all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import safetensors.torch
import torch

from methods import Handle, apply

from . import backbones, provenance
from .config import Recipe, Run
from .frames import kept
from .identity import recipe_id, sample_key
from .store import Place, SampleFiles, write_json, write_whole


def place(run: Run) -> Place:
    """Where the run's results live."""
    recipe = run.recipe
    name = provenance.machine()["name"]
    return Place(run.results, name, recipe.backbone.name, recipe.method.NAME, recipe_id(recipe))


def missing(run: Run) -> list[tuple[str, int]]:
    """The run's samples that are not on disk."""
    here = place(run)
    return [(prompt, seed) for prompt, seed in run.samples if not here.sample(sample_key(prompt, seed)).complete]


def denoise(pipe: Any, recipe: Recipe, seed: int, **prompt: Any) -> torch.Tensor:
    """Final latents for one prompt (or its embeddings). The noise comes from a CPU generator of this seed alone."""
    arguments = backbones.family(recipe.backbone).call_arguments(recipe)
    if "prompt_embeds" in prompt:
        arguments.pop("negative_prompt", None)
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipe(**arguments, **prompt, generator=generator, output_type="latent").frames


@contextmanager
def cached(pipe: Any, run: Run, recipe: Recipe) -> Iterator[Handle]:
    """The pipeline with the recipe's method attached and its weights placed for a call, in that order: model offload
    would otherwise drop the method's hook."""
    guidance = backbones.family(recipe.backbone).guidance_scale(recipe)
    with apply(pipe, recipe.method, guidance_scale=guidance) as handle, backbones.placed(pipe, run.offload, run.device):
        yield handle


def decode(pipe: Any, run: Run, latents: torch.Tensor) -> np.ndarray:
    """Final latents to frames (frames, height, width, 3) in uint8."""
    with backbones.placed(pipe, run.offload, run.device):
        return backbones.family(run.recipe.backbone).decode(pipe, latents, run.recipe)


def _words(pipe: Any, prompt: str, recipe: Recipe) -> dict[str, Any]:
    """The prompt as the pipeline takes it; a pipeline of random weights has no text encoder and takes embeddings."""
    if pipe.text_encoder is not None:
        return {"prompt": prompt}
    return backbones.family(recipe.backbone).embed(pipe, prompt, recipe)


def generate(run: Run, say: Callable[[str], None]) -> None:
    """Make every missing sample of the run."""
    todo = missing(run)
    if not todo:
        return
    device = backbones.resolve_device(run.device)
    pipe = backbones.load(run.recipe, device, run.offload)
    for number, (prompt, seed) in enumerate(todo, 1):
        files = place(run).sample(sample_key(prompt, seed))
        summary = _generate_one(pipe, run, prompt, seed, files)
        say(f"{run.label}  sample {number}/{len(todo)}  {summary}  {prompt!r} seed {seed}")


def _generate_one(pipe: Any, run: Run, prompt: str, seed: int, files: SampleFiles) -> str:
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cached(pipe, run, run.recipe) as handle:
            latents = denoise(pipe, run.recipe, seed, **_words(pipe, prompt, run.recipe))
    notes = []
    for warning in caught:
        if str(warning.message).startswith(f"{run.recipe.method.NAME}:"):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not torch.isfinite(latents).all():
        raise FloatingPointError(f"the final latent of {prompt!r} seed {seed} is not finite")
    seconds = time.perf_counter() - began
    latents = latents.cpu().contiguous()
    write_whole(files.latent, lambda path: safetensors.torch.save_file({"latents": latents}, path))
    frames = decode(pipe, run, latents)
    kept.put(files.latent, frames)
    write_whole(files.video, lambda path: write_video(path, frames, run.fps))
    about = {
        "prompt": prompt,
        "seed": seed,
        "seconds": seconds,
        "notes": notes,
        "revision": provenance.revision(),
    }
    write_json(files.trace, about | handle.trace.to_dict())
    trace = handle.trace
    return f"{trace.computed}/{len(trace.steps)} steps computed, {seconds:.1f} s{''.join(f' [! {n}]' for n in notes)}"


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264 4:2:0 at CRF 18, which browsers play; to look at, never to measure on."""
    iio.imwrite(
        path, frames, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2,
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )  # fmt: skip


def frames_of(run: Run, files: SampleFiles) -> np.ndarray:
    """A sample's frames, decoded from its lossless latent unless still held from its making."""

    def decoded() -> np.ndarray:
        pipe = backbones.load(run.recipe, backbones.resolve_device(run.device), run.offload)
        return decode(pipe, run, latents_of(files))

    return kept.get(files.latent, decoded)


def latents_of(files: SampleFiles) -> torch.Tensor:
    """A sample's final latents."""
    return safetensors.torch.load_file(files.latent)["latents"]
