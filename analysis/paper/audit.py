"""The paper against itself: `python -m analysis audit [--out tables]`.

A reproduction should know which printed numbers cannot all be right, so that it is not held to them. Every finding is
computed from pcbench/paper/*.csv; what needs our own count of MACs is in `python -m pcbench plan=table1`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from ..command import PRINTED, Parser, publish, run
from ..render import Block, Cell, Table
from .published import published

ROUNDING = 0.006  # largest error of a speedup with two digits: half its last digit, and that of its latencies
PEAK = 312e12  # dense bfloat16 FLOPs a second of an A800
MACS_APART = 0.02  # MACs and latency ratios further apart than this are reported
# Wan2.1-T2V-14B: blocks, width, width of the feed-forward, text tokens (its config.json); 50 steps of two branches.
BLOCKS, WIDTH, FEED_FORWARD, TEXT, FORWARDS = 40, 5120, 13824, 512, 100
LATENT_FRAMES = 21  # of 81
TRIALS = 49  # steps that could be preceded by a trial


def wan_macs(height: float, width: float, frames: float = LATENT_FRAMES) -> float:
    """MACs of Wan2.1-14B's blocks for one forward pass. height, width: pixels, 16 to a token's side; frames: latent."""
    tokens = frames * (height / 16) * (width / 16)
    linear = tokens * (6 * WIDTH**2 + 2 * WIDTH * FEED_FORWARD) + 2 * TEXT * WIDTH**2
    attention = 2 * tokens**2 * WIDTH + 2 * tokens * TEXT * WIDTH
    return BLOCKS * (linear + attention)


def audit() -> list[tuple[str, str]]:
    """Every finding: (where, what contradicts what)."""
    return [(where, what) for check in CHECKS for where, what in check()]


def _speedups() -> list[tuple[str, str]]:
    """Table 1's speedups against the ratio of its latencies."""
    found = []
    table = published("table1")
    for model, rows in table.groupby("model", sort=False):
        uncached = rows[rows["method"] == "none"].iloc[0]
        cached = rows[rows["method"] != "none"]
        implied = uncached["latency_s"] / cached["latency_s"]
        off = cached[(cached["speedup"] - implied).abs() > ROUNDING]
        if len(off):
            examples = ", ".join(
                f"{row['method']} {row['speedup']:.2f} for {uncached['latency_s'] / row['latency_s']:.2f}"
                for _, row in off.iterrows()
            )
            fits = (cached["speedup"] * cached["latency_s"]).mean()
            found.append((
                f"Table 1, {model}",
                f"{len(off)} of {len(cached)} speedups are not the ratio of the printed latencies ({examples}); "
                f"an uncached latency of {fits:.1f} s instead of {uncached['latency_s']:.2f} s would fit.",
            ))  # fmt: skip
    consistent = table[table["method"] != "none"].groupby("model").ngroups - len(found)
    return [*found, ("Table 1", f"the speedups of the other {consistent} backbones agree with their latencies.")]


def _macs() -> list[tuple[str, str]]:
    """Table 1's MACs ratios against its latency ratios."""
    found = []
    for model, rows in published("table1").groupby("model", sort=False):
        uncached = rows[rows["method"] == "none"].iloc[0]
        for _, row in rows[rows["method"] != "none"].iterrows():
            macs, seconds = uncached["pmacs"] / row["pmacs"], uncached["latency_s"] / row["latency_s"]
            if macs < (1 - MACS_APART) * seconds:
                found.append((
                    f"Table 1, {model} {row['method']}",
                    f"{seconds:.2f} times faster with {macs:.2f} times fewer MACs: more time saved than work.",
                ))  # fmt: skip
    return found


def _one_workload() -> list[tuple[str, str]]:
    """The same run in several tables, under two sizes."""
    one, two, three, four = (published(f"table{number}") for number in (1, 2, 3, 4))
    wan = one[one["model"] == "wan"].set_index("method")
    four_gpus = two[(two["model"] == "wan") & (two["gpus"] == 4)].iloc[0]
    factors, strategies = three.set_index("factor"), four.set_index("strategy")
    turbo, default, prediction = wan.loc["turbo"], factors.loc["2x4x4"], strategies.loc["prediction"]
    return [
        (
            "Tables 1, 2, 3",
            f"uncached Wan2.1-14B on 4 GPUs takes {wan.loc['none', 'latency_s']:g} s at 720P (Table 1) and "
            f"{four_gpus['latency_s']:g} s at \"1080P\" (Table 2); Table 3 has {factors.loc['none', 'latency_s']:g} s.",
        ),
        (
            "Tables 1, 3, 4",
            f"Turbo on Wan2.1-14B has LPIPS {turbo['lpips']:.4f} at {turbo['latency_s']:g} s ({turbo['speedup']:.2f}×) "
            f"in Table 1, {default['lpips']:.4f} at {default['latency_s']:g} s ({default['speedup']:.2f}×) in Table 3 "
            f"and {prediction['lpips']:.4f} in Table 4, with the same VBench: {turbo['vbench']:.2f}, "
            f"{default['vbench']:.2f}, {prediction['vbench']:.2f}.",
        ),
    ]  # fmt: skip


def _size() -> list[tuple[str, str]]:
    """Table 2's "1080P" against the peak of an A800."""
    two, one = published("table2"), published("table1")
    seconds = two[(two["model"] == "wan") & (two["gpus"] == 1)].iloc[0]["latency_s"]
    found = []
    for name, height, width in (("1080P", 1088, 1920), ("720P", 720, 1280)):
        share = 2 * FORWARDS * wan_macs(height, width) / seconds / PEAK
        found.append(f"{name} would be {share:.0%} of an A800's peak")
    expected = FORWARDS * wan_macs(720, 1280) / 1e15
    printed = one[(one["model"] == "wan") & (one["method"] == "none")].iloc[0]["pmacs"]
    return [
        ("Table 2, wan", f'{seconds:g} s on one GPU: {", ".join(found)}. "1080P" cannot be right.'),
        ("Table 1, wan", f"720P is: its blocks take {expected:.1f} PMACs, {printed:g} are printed."),
    ]


def _factors() -> list[tuple[str, str]]:
    """Table 3's latencies against what the trials cost."""
    three, one = published("table3").set_index("factor"), published("table1").set_index(["model", "method"])
    full = wan_macs(720, 1280)
    share = one.loc[("wan", "turbo"), "pmacs"] / one.loc[("wan", "none"), "pmacs"]
    default = TRIALS * wan_macs(720 / 4, 1280 / 4, LATENT_FRAMES / 2) / full
    computed = 50 * share - default
    found = []
    for factor, row in three.drop(index=["none", "2x4x4"]).iterrows():
        t, h, w = map(int, str(factor).split("x"))
        trials = TRIALS * wan_macs(720 / h, 1280 / w, LATENT_FRAMES / t) / full
        expected = 50 / (computed + trials)
        if abs(expected / row["speedup"] - 1) > 0.1:
            found.append((
                f"Table 3, {factor}",
                f"{TRIALS} trials cost {trials:.1f} full steps, so that Turbo's {computed:.1f} computed steps would be "
                f"{expected:.2f} times faster; {row['speedup']:.2f} is printed, which takes "
                f"{max(50 / row['speedup'] - trials, 0):.0f} computed steps of 50, at LPIPS {row['lpips']:.4f}.",
            ))  # fmt: skip
    return found


def _average() -> list[tuple[str, str]]:
    """The abstract's average speedup."""
    means = published("table1").groupby("method")[["speedup", "lpips"]].mean()
    speed = means["speedup"]
    most = means.loc[["base", "turbo", "flash"], "lpips"].idxmax()
    return [(
        "Abstract",
        f"\"an average of 2.6x speedup\" is Flash's {speed['flash']:.2f}; Base has {speed['base']:.2f}, Turbo "
        f"{speed['turbo']:.2f}. Of the three {most.capitalize()} is farthest from the uncached videos by LPIPS.",
    )]  # fmt: skip


def _borrowed() -> list[tuple[str, str]]:
    """Uncached VBench scores that another paper printed before."""
    peers, one = published("peers"), published("table1")
    none = one[one["method"] == "none"]
    both = none.merge(peers[peers["method"] == "none"], on=["model", "vbench"], suffixes=("", " theirs"))
    return [
        (f"Table 1, {row['model']}", f"the uncached VBench {row['vbench']:.2f} is that of the {row['paper']} paper "
         f"({row['workload theirs']}), to all four digits.")
        for _, row in both.iterrows()
    ]  # fmt: skip


CHECKS: tuple[Callable[[], list[tuple[str, str]]], ...] = (
    _speedups, _macs, _one_workload, _size, _factors, _average, _borrowed,
)  # fmt: skip


def table() -> Table:
    """The findings as a table."""
    rows = [[Cell(text=where), Cell(text=what)] for where, what in audit()]
    sources = pd.concat([published(f"table{number}")["source"] for number in (1, 2, 3, 4)])
    paper = sources.str.partition(" ")[0].iloc[0]
    notes = [f"Computed from the printed tables of {paper}, as in pcbench/paper."]
    return Table("audit", "The paper against itself", ("where", "what"), [Block("", rows)], notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings and write them; no records are needed."""
    parser = Parser(prog="analysis audit", description=__doc__)
    parser.add_argument("results", nargs="?", help="not read: the paper is held against itself")
    parser.add_argument("--out", default="tables", help="folder to write to; - writes nothing")
    args = parser.parse_args(argv)
    for where, what in audit():
        print(f"{where}: {what}")
    return run(lambda: "" if args.out == PRINTED else publish([table()], args.out))
