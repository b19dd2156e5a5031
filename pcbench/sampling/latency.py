"""Latency: the method and the uncached reference timed in turn, in one process, with spread.

Text encoder, denoising loop and VAE are timed separately; the speedup is that of the denoising loop, the part that a
cache changes. Each round times the reference and the method in alternating order, and gives one ratio. No recipe is
timed before this process has called it: the first call chooses kernels and fills the allocator.

The other conditions that affect latency, besides recipe and machine, are hashed into the file's name, so a measurement
under other conditions is never reused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import backbones, devices, provenance
from ..config import Run
from ..job import Job
from ..store import read_json, write_sealed
from . import parallel
from .generate import cached, decode, denoise

Say = Callable[[str], None]
Pair = dict[str, Job]  # "reference" and "method"; only "method" if the job is uncached
SPREADS = ("denoise_seconds", "reference_denoise_seconds", "decode_seconds", "speedup")


def conditions(run: Run) -> dict[str, Any]:
    """What affects the run's latency besides its recipe and machine. `attention` is the backend actually used."""
    return {
        "offload": run.offload,
        "attention": backbones.attention_of(run.recipe),
        "dtype": run.recipe.numerics.dtype,
        "threads": torch.get_num_threads(),
    }


def stored(job: Job) -> dict[str, Any] | None:
    """The latency measured under the run's conditions; None if there is none."""
    return read_json(_path(job))


def known(job: Job) -> dict[str, Any] | None:
    """The latency for the job's record: under the run's conditions, or if the run does not time and there is none,
    under those that were timed most; None if nothing was timed."""
    found = stored(job)
    if found is not None or "latency" in job.run.stages:
        return found
    others = [read_json(path) for path in sorted(job.place.folder.glob("*.latency.json"))]
    return max((other for other in others if other), key=lambda other: other["repeats"], default=None)


def _path(job: Job) -> Any:
    text = json.dumps(conditions(job.run), sort_keys=True)
    return job.place.latency(hashlib.sha256(text.encode()).hexdigest()[:8])


def timed_samples(run: Run) -> list[tuple[str, int]]:
    """The first prompts, as many as the run asks to time, each with the first seed."""
    return [(prompt, run.seeds[0]) for prompt in run.prompts[: run.latency.prompts]]


def is_own(run: Run) -> bool:
    """Whether the run times its samples: of the shards of a run, the one that has the first."""
    return timed_samples(run)[0] in run.samples


def to_time(job: Job, timed: Mapping[tuple[str, int], dict[str, Any]]) -> list[tuple[str, int]]:
    """The samples that the job's run is to time but for those that were, with at least as many repeats."""
    run = job.run
    return [key for key in timed_samples(run) if key not in timed or _repeats(timed[key]) < run.latency.repeats]


def calls(job: Job) -> int:
    """How many timed calls of the job's method are still to be made, and as many of its reference beside them."""
    if "latency" not in job.run.stages or not is_own(job.run):
        return 0
    return len(to_time(job, _by_sample(stored(job)))) * job.run.latency.repeats


def _by_sample(done: dict[str, Any] | None) -> dict[tuple[str, int], dict[str, Any]]:
    return {(sample["prompt"], sample["seed"]): sample for sample in (done or {"prompts": []})["prompts"]}


def profile(job: Job, say: Say) -> None:
    """Time the job's method on its samples, but for those that were already timed with at least as many repeats."""
    run = job.run
    timed = _by_sample(parallel.broadcast_from_rank0(stored(job)))
    todo = to_time(job, timed)
    if not todo:
        return
    pipe = backbones.load(run.recipe, run.device, run.offload)
    timed |= {key: _Timing(pipe, job, *key).measure(say) for key in todo}
    prompts = list(timed.values())
    write_sealed(
        _path(job),
        {
            "recipe": job.id,
            "repeats": min(map(_repeats, prompts)),
            "conditions": conditions(run),
            "text_seconds": statistics.median(sample["text_seconds"] for sample in prompts),
            **{name: spread([x for sample in prompts for x in sample[name]["values"]]) for name in SPREADS},
            "peak_gpu_bytes": _most(sample["peak_gpu_bytes"] for sample in prompts),
            "reference_peak_gpu_bytes": _most(sample["reference_peak_gpu_bytes"] for sample in prompts),
            "attention": backbones.attention_backend(),
            "prompts": prompts,
            "revision": provenance.revision(),
        },
    )


def _repeats(timed: dict[str, Any]) -> int:
    return len(timed["speedup"]["values"])


def spread(values: list[float]) -> dict[str, Any]:
    """Median, minimum and maximum, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def _most(peaks: Any) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)


class _Timing:
    """The timing of one sample."""

    def __init__(self, pipe: Any, job: Job, prompt: str, seed: int) -> None:
        self.pipe, self.job, self.run, self.prompt, self.seed = pipe, job, job.run, prompt, seed
        self.device = devices.resolve(job.run.device)
        self.pair: Pair = {"method": job} if job.uncached is None else {"reference": job.uncached, "method": job}

    def measure(self, say: Say) -> dict[str, Any]:
        """Time the sample; returns its timings in seconds and peak memory in bytes, as plain data."""
        run = self.run
        text_seconds, self.embeds = self._text()
        self._warm_up()
        seconds: dict[str, list[float]] = {name: [] for name in self.pair}
        peaks: dict[str, list[int | None]] = {name: [] for name in self.pair}
        decode_seconds: list[float] = []
        for number in range(run.latency.repeats):
            for name in self.pair if number % 2 == 0 else reversed(self.pair):
                devices.reset_peak(self.device)
                spent, latents, traced = self._call(self.pair[name])
                seconds[name].append(spent)
                peaks[name].append(devices.peak(self.device))
                if name == "method":
                    trace = traced
                    decoding = functools.partial(decode, self.pipe, run, latents)
                    decode_seconds.append(devices.timed(decoding, self.device)[0])
            say(f"{run.label}  timing {number + 1}/{run.latency.repeats}  {seconds['method'][-1]:.2f} s")
        reference = seconds.get("reference", seconds["method"])
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "text_seconds": text_seconds,
            "denoise_seconds": spread(seconds["method"]),
            "reference_denoise_seconds": spread(reference),
            "decode_seconds": spread(decode_seconds),
            "speedup": spread([r / m for r, m in zip(reference, seconds["method"], strict=True)]),
            "peak_gpu_bytes": _most(peaks["method"]),
            "reference_peak_gpu_bytes": _most(peaks.get("reference", peaks["method"])),
            "trace": trace.to_dict(),
        }

    def _text(self) -> tuple[float, dict[str, Any]]:
        """Median seconds to encode the prompt, after one warm-up encoding; and its embeddings."""
        text = backbones.text_of(self.run, self.prompt)
        embed = functools.partial(self.job.family.embed, self.pipe, text, self.run.recipe)
        with backbones.placed(self.pipe, self.run.offload, self.run.device):
            timed = [devices.timed(embed, self.device) for _ in range(1 + self.run.latency.repeats)]
        return statistics.median(seconds for seconds, _ in timed[1:]), timed[0][1] | backbones.image_of(
            self.run, self.prompt
        )

    def _warm_up(self) -> None:
        for job in self.pair.values():
            while backbones.calls[job.id] < max(1, self.run.latency.warmup):
                self._call(job)

    def _call(self, job: Job) -> tuple[float, torch.Tensor, Any]:
        """Seconds of one denoising loop, its final latents and its trace."""
        with cached(self.pipe, self.run, job.recipe) as handle:
            loop = functools.partial(denoise, self.pipe, job.recipe, self.seed, **self.embeds)
            # an image is encoded inside the call, before the loop
            seconds, latents = devices.timed(loop, self.device, self.pipe.transformer if self.run.images else None)
        backbones.calls[job.id] += 1
        return seconds, latents, handle.trace
