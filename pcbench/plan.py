"""What a run would cost, before anything is loaded: videos, PMACs, hours where known, disk."""

from __future__ import annotations

from collections.abc import Callable

from . import backbones
from .config import Run
from .generate import missing, place
from .macs import PETA
from .record import reference_macs
from .store import read_json

BYTES_PER_PIXEL = 0.05  # of an mp4, roughly


def show(runs: list[Run], say: Callable[[str], None] = print) -> None:
    """Print what is missing and an upper bound of its cost (a cached video is priced as an uncached one)."""
    distinct: dict[tuple[str, str], Run] = {}
    for run in runs:
        for each in (run.reference, run):
            distinct.setdefault((each.recipe.backbone.name, place(each).id), each)
    videos, macs, seconds, disk, unknown = 0, 0.0, 0.0, 0.0, 0
    for run in distinct.values():
        count = len(missing(run))
        videos += count
        macs += count * reference_macs(run)
        disk += count * _bytes(run)
        known = read_json(place(run).latency) or read_json(place(run.reference).latency)
        if known is None:
            unknown += count
        else:
            seconds += count * (known["denoise_seconds"]["median"] + known["decode_seconds"]["median"])
        name = f"{run.recipe.backbone.name} {run.label}"
        say(f"{name:40s} {count:5d} of {len(run.samples)} videos missing, {reference_macs(run) / PETA:.3g} PMACs each")
    say(f"{len(distinct)} recipes, {videos} videos to make, at most {macs / PETA:.3g} PMACs, about {disk / 1e6:.1f} MB")
    if videos > unknown:
        say(f"about {seconds / 3600:.2f} device-hours for the {videos - unknown} videos of recipes timed here before")
    if unknown:
        say(f"{unknown} videos of recipes never timed on this machine: their hours are unknown")


def _bytes(run: Run) -> float:
    sampling, backbone = run.recipe.sampling, run.recipe.backbone
    shapes = backbones.family(backbone).arguments(run.recipe, backbones.transformer_config(backbone))
    latent = 4.0
    for n in shapes["hidden_states"]:
        latent *= n
    return latent + BYTES_PER_PIXEL * sampling.height * sampling.width * sampling.frames
