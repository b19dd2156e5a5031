"""Which records and videos of a bench may be compared: only the same videos say which method is better."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from ..load import NO_CACHE, REPLAY, Bench


def compared(bench: Bench) -> pd.DataFrame:
    """The records whose videos are compared with each other: cached, with samples, and without replayed schedules,
    which a search makes for single videos; but those where there is nothing else."""
    cached = bench.records[(bench.records["method"] != NO_CACHE) & (bench.records["samples"] > 0)]
    methods = cached[cached["method"] != REPLAY]
    return methods if len(methods) else cached


def complete(bench: Bench, metric: str) -> pd.DataFrame:
    """The samples that all of `compared` have, of those of them that have a value of a metric for each."""
    samples = bench.samples[bench.samples["id"].isin(compared(bench)["id"])]
    groups = samples.groupby(["prompt", "seed"])["id"]
    common = samples[groups.transform("nunique") == samples["id"].nunique()]
    return common[common[metric].notna().groupby(common["id"]).transform("all")]


def on_front(bench: Bench, identity: str, metric: str) -> bool:
    """Whether no record of `compared`, nor the uncached one, has, over the videos that both have, as few MACs and as
    high a score (higher is better), and is better in one. A record without scores is not on the front."""
    if identity not in set(compared(bench)["id"]):
        return False
    identities, costs, scores = _by_video(bench, metric)
    place = identities.index(identity)
    own_cost, own_score = costs[place], scores[place]
    if np.isnan(own_score).all():
        return False
    return not any(_dominated(own_cost - cost, own_score, score) for cost, score in zip(costs, scores, strict=True))


@functools.lru_cache(maxsize=1)  # asked for by every row of a table
def _by_video(bench: Bench, metric: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The ids of `compared` and of the uncached record, and their MACs and scores (records, videos)."""
    identities = list(compared(bench)["id"])
    videos = bench.samples[bench.samples["id"].isin(identities) | (bench.samples["method"] == NO_CACHE)]
    videos = videos.assign(score=videos[metric].mask(_identical(bench, videos, metric), np.inf))
    table = videos.pivot(index="id", columns=["prompt", "seed"], values=["macs", "score"]).astype(float)
    return list(table.index), table["macs"].to_numpy(), table["score"].to_numpy()


def _identical(bench: Bench, videos: pd.DataFrame, name: str) -> list[bool]:
    """Of each video, whether it is identical to its reference, as that is to itself: its PSNR is infinite."""
    known = {
        (record["id"], sample["prompt"], sample["seed"])
        for record in bench.raw
        for sample in record["samples"]
        if "identical" in ((sample.get("fidelity_notes") or {}).get(name) or "")
    }
    keys = zip(videos["id"], videos["prompt"], videos["seed"], strict=True)
    return [key in known or method == NO_CACHE for key, method in zip(keys, videos["method"], strict=True)]


def _dominated(more_macs: np.ndarray, own: np.ndarray, others: np.ndarray) -> bool:
    """Whether another record is as cheap and as good, and better in one, over the videos that both have scores of.

    Videos of which one is identical to its reference decide only where the others say nothing.
    """
    both = ~np.isnan(own + others)
    if not both.any():
        return False
    different = both & (own != others)
    gaps = own[different] - others[different]
    finite = gaps[np.isfinite(gaps)]
    gain = finite.sum() if finite.any() else np.sign(gaps).sum()
    saved = more_macs[both].sum()
    return bool(saved >= 0 and gain <= 0 and (saved > 0 or gain < 0))
