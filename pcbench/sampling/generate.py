"""Generate the missing samples: latent, mp4 and trace of each, written completely or not at all."""

from __future__ import annotations

import functools
import hashlib
import os
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

from methods import Handle, Trace, apply

from .. import backbones, provenance
from ..config import Recipe, Run
from ..failures import Failure, attempt
from ..job import Job
from ..store import SampleFiles, read_json, write_sealed
from ..store.atomic import alone, partial, put
from ..store.away import steadily
from ..store.claims import LAUNCH, WORKER, DeadlyError, claim, leave_to_others, may_be_deadly
from .video import is_whole_mp4, kept

_latest: list[Trace] = []  # of the method that is at work, or was last
ATTEMPTS = 2  # workers of a launch that try a sample which fails, each once


def denoise(pipe: Any, recipe: Recipe, seed: int, **prompt: Any) -> torch.Tensor:
    """Final latents for one prompt (or its embeddings). The noise depends on `seed` alone: a CPU generator draws it."""
    arguments = backbones.family(recipe.backbone).call_arguments(recipe)
    if "prompt_embeds" in prompt:
        arguments.pop("negative_prompt", None)
    backbones.set_guidance(pipe, recipe)
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipe(**arguments, **prompt, generator=generator, output_type="latent").frames


@contextmanager
def cached(pipe: Any, run: Run, recipe: Recipe) -> Iterator[Handle]:
    """Attach the recipe's method to the pipeline, then place its weights for a call. In this order, because otherwise
    model offload would drop the method's hook."""
    global _latest
    guidance = backbones.family(recipe.backbone).guidance_scale(recipe)
    try:
        with (
            apply(pipe, recipe.method, guidance_scale=guidance) as handle,
            backbones.placed(pipe, run.offload, run.device),
        ):
            _latest = handle.traces
            yield handle
    finally:
        backbones.after_call(pipe)


def progress() -> tuple[int, int, int]:
    """What changes with each denoising step that this process begins: the traces' identity, number and last length."""
    return id(_latest), len(_latest), len(_latest[-1].steps) if _latest else 0


def decode(pipe: Any, run: Run, latents: torch.Tensor) -> np.ndarray:
    """Final latents to frames (frames, height, width, 3) in uint8, by the backbone's VAE."""
    try:
        with backbones.placed(pipe, run.offload, run.device):
            return backbones.family(run.recipe.backbone).decode(pipe, latents, run.recipe)
    finally:
        backbones.after_call(pipe)


def generate(
    job: Job,
    say: Callable[[str], None],
    failed_before: set[str] | None = None,
    begin: float = 0.0,
    again: bool = False,
) -> list[Failure]:
    """Make every missing sample of the job that no other process is making, see `Job.in_turn` for `begin`. If one
    fails, that is noted in a file, the others go on, and it is tried again in the next run; one that a worker of the
    same launch did not survive is left for a further round (`again`). Returns the failures; raises errors that concern
    all samples (loading the pipeline). `failed_before` collects what failed, and is not tried again."""
    run, todo = job.run, job.missing(begin)
    failed_before = set() if failed_before is None else failed_before
    failures: list[Failure] = []
    by_others = 0
    for number, (prompt, seed) in enumerate(todo, 1):
        files, sample = job.files(prompt, seed), named(prompt, seed)
        if sample in failed_before:
            continue
        if may_be_deadly(files.stem) and not again:
            leave_to_others(files.stem)  # it may end this worker too
            continue
        failed: list[Failure] = []
        try:
            with claim(files.stem) as claimed:
                if files.complete:
                    by_others += 1
                elif claimed:
                    failed = _failed_in_this_launch(files, sample) or _try_one(
                        job, prompt, seed, files, f"{run.label}  sample {number}/{len(todo)}", say
                    )
        except DeadlyError as error:
            failed = [Failure(sample, str(error), "")]
            _note(files, prompt, seed, str(error))
        failures += failed
        failed_before.update(failure.what for failure in failed)
    if by_others:
        say(f"{run.label}  {by_others} of {len(todo)} samples were made by another process meanwhile")
    return failures


def named(prompt: str, seed: int) -> str:
    """A sample, in a line of output and in a `Failure`."""
    return f"{prompt!r} seed {seed}"


def failed_still(job: Job, failures: list[Failure]) -> list[Failure]:
    """The failures but for those of samples that are there by now: another worker has made them."""
    made = {named(*sample) for sample in job.run.samples if failures and job.files(*sample).complete}
    return [failure for failure in failures if failure.what not in made]


def _failed_in_this_launch(files: SampleFiles, sample: str) -> list[Failure]:
    """The failure of a sample that enough workers of the same launch have tried: it may have been the worker's fault,
    whose GPU somebody else fills."""
    found = _tried(files)
    return [Failure(sample, found["error"], "")] if len(found.get("workers", [])) >= ATTEMPTS else []


def _tried(files: SampleFiles) -> dict[str, Any]:
    """What is noted of a sample's failures in this launch; {} if there is nothing."""
    launch, found = os.environ.get(LAUNCH), read_json(files.failure)
    return found if found and launch and found.get("launch") == launch else {}


def _try_one(
    job: Job, prompt: str, seed: int, files: SampleFiles, name: str, say: Callable[[str], None]
) -> list[Failure]:
    """Make one sample, or note why it could not be made."""
    sample = named(prompt, seed)
    pipe = backbones.load(job.run.recipe, job.run.device, job.run.offload)

    def work() -> None:
        say(f"{name}  {_generate_one(pipe, job, prompt, seed, files)}  {sample}")
        files.failure.unlink(missing_ok=True)

    failed = attempt(sample, work)
    if failed is None:
        return []
    say(f"{name}  failed  {failed.line}")
    _note(files, prompt, seed, failed.why)
    return [failed]


def _note(files: SampleFiles, prompt: str, seed: int, why: str) -> None:
    """Write down why a sample is missing, and which workers of a launch have tried it."""
    launch = {}
    if LAUNCH in os.environ:
        workers = [*_tried(files).get("workers", []), os.environ.get(WORKER)]
        launch = {"launch": os.environ[LAUNCH], "workers": workers}
    write_sealed(files.failure, {"prompt": prompt, "seed": seed, "error": why, **launch})


def _generate_one(pipe: Any, job: Job, prompt: str, seed: int, files: SampleFiles) -> str:
    run, began = job.run, time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cached(pipe, run, run.recipe) as handle:
            latents = denoise(pipe, run.recipe, seed, **backbones.prompt_arguments(pipe, run, prompt))
    backbones.calls[job.id] += 1
    notes = []
    for warning in caught:
        if str(warning.message).startswith(f"{run.recipe.method.NAME}:"):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not torch.isfinite(latents).all():
        raise FloatingPointError("the final latent is not finite")
    seconds = time.perf_counter() - began
    latents = latents.cpu().contiguous()
    frames = decode(pipe, run, latents)
    header = {
        "prompt": prompt,
        "seed": seed,
        "seconds": seconds,
        "notes": notes,
        "fps": run.fps,
        "revision": provenance.revision(),
    }
    steadily(lambda: _write(run, files, latents, frames, header | handle.trace.to_dict()))
    trace = handle.trace
    return f"{trace.computed}/{len(trace.steps)} steps computed, {seconds:.1f} s{''.join(f' [! {n}]' for n in notes)}"


def _write(run: Run, files: SampleFiles, latents: torch.Tensor, frames: np.ndarray, trace: dict[str, Any]) -> None:
    """Put a sample's files into place together, the trace last, unless another process has already done so."""
    content = safetensors.torch.save({"latents": latents})
    with partial(files.latent) as latent, partial(files.video) as video:
        latent.write_bytes(content)
        write_video(video, frames, run.fps)
        encoded = video.read_bytes()
        if not is_whole_mp4(encoded):  # ffmpeg may stop without an error if the disk is full
            raise OSError(f"the video was not written whole: {files.video}")
        trace["files"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in (("latent", content), ("video", encoded))
        }
        with alone(files.latent.parent):
            if files.complete:
                return
            put(latent, files.latent)
            put(video, files.video)
            write_sealed(files.trace, trace)
    kept.put(files.latent, frames)


def at_another_rate(job: Job) -> str:
    """A line about the finished samples whose mp4 has another frame rate than the run; empty if there are none."""
    traces = [read_json(job.files(*sample).trace) or {} for sample in job.run.samples]
    rates = [trace["fps"] for trace in traces if trace.get("fps", job.run.fps) != job.run.fps]  # older ones have none
    others = " or ".join(str(rate) for rate in sorted(set(rates)))
    finished = f"{len(rates)} of {len(traces)} mp4 files are there with {others} frames per second, and stay so"
    return f"model.fps={job.run.fps}: {finished}; those that are deleted are made again" if rates else ""


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write uint8 frames (n, height, width, 3) as H.264 4:2:0 at CRF 18, which browsers play; not for PSNR or SSIM."""
    iio.imwrite(
        path, frames, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2,
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )  # fmt: skip


def frames_of(run: Run, files: SampleFiles) -> np.ndarray:
    """A sample's frames (n, height, width, 3) in uint8: still in memory, or decoded from its lossless latent."""

    def decoded() -> np.ndarray:
        pipe = backbones.load(run.recipe, run.device, run.offload)
        return decode(pipe, run, latents_of(files))

    return kept.get(files.latent, decoded)


def latents_of(files: SampleFiles) -> torch.Tensor:
    """A sample's final latents. Raises RuntimeError if their file is not as it was written."""
    content = files.latent.read_bytes()
    if checksum(files) not in (None, hashlib.sha256(content).hexdigest()):
        raise RuntimeError(f"{files.latent} was damaged while in use; the same command makes it again")
    return safetensors.torch.load(content)["latents"]


def checksum(files: SampleFiles) -> str | None:
    """The SHA-256 of a sample's latent as noted in its trace; None if the trace is older than checksums or missing."""
    try:
        status = files.trace.stat()
    except OSError:
        return None
    return _checksum(files.trace, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=10_000)
def _checksum(trace: Path, *state: int) -> str | None:
    return ((read_json(trace) or {}).get("files") or {}).get("latent")
