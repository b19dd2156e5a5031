"""Small records with known answers, as pcbench writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEPS, PROMPTS, BLOCKS = 12, 8, 8
PARTS = ("whole", "low", "high")
REFERENCE = "none0"
Series = Callable[[np.random.Generator], np.ndarray]


def listed(values: np.ndarray) -> list[float | None]:
    """A list over steps; the first has none."""
    return [None, *map(float, values)]


def rising(generator: np.random.Generator) -> np.ndarray:
    """Positive, no two alike, in no order."""
    return generator.permutation(np.linspace(1, 2, STEPS - 1)) + generator.uniform(0, 1e-3)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """All observations of one uncached sample, in which everything is as the paper says.

    changes: `impact`, `plain`, `trial`, `literal` are functions of the LFD (STEPS - 1,); `shares` is (BLOCKS,).
    """
    generator = np.random.default_rng(number)
    lfd = np.sort(rising(generator))[::-1] ** 8
    told: dict[str, Any] = {
        "impact": lambda lfd: lfd**2,
        "plain": lambda lfd: lfd[::-1],
        "trial": lambda lfd: lfd * 1.1,
        "literal": lambda lfd: lfd,
        "shares": np.array([10, 5, *[0.1] * (BLOCKS - 2)]),
    } | changes
    of = {"whole": told["impact"](lfd), "low": told["impact"](lfd), "high": told["impact"](lfd) * 1e-3}
    plain = told["plain"](lfd)
    change = {"whole": plain, "low": lfd, "high": plain * 0.9}
    return {
        "prompt": f"prompt {number}",
        "seed": 0,
        "rerun_rmse": 0.0,
        "difference@1": {p: {"rms": listed(change[p]), "relative": listed(change[p] / 3)} for p in PARTS},
        "resolution@1": {
            "1x1x1": {"size": [4, 8, 8], "adjacent": listed(lfd), "literal": listed(lfd)},
            "2x4x4": {
                "size": [2, 2, 2],
                "adjacent": listed(told["trial"](lfd)),
                "literal": listed(told["literal"](lfd)),
            },
            "4x4x4": {"size": [1, 2, 2], "adjacent": listed(lfd), "literal": listed(lfd)},
        },
        "blocks@1": {
            "paths": [f"blocks.{i}" for i in range(BLOCKS)],
            "rms": [list(told["shares"] * (1 + 0.01 * step)) for step in range(STEPS)],
            "relative": [[0.1] * BLOCKS] * STEPS,
        },
        "impact@1": {
            p: {"latent_rmse": listed(of[p] ** 0.5), "video_mse": listed(of[p]), "psnr@2": listed(of[p])} for p in PARTS
        },
        "bound@1": {
            "factors": {
                "c_full": 1.2,
                "c_trial": 1.0,
                "sum_final": 1.0,
                "sum_trial": 5.0,
                "C_Z_trial": 10.0,
                "L_F": 0.1,
            },
            "final_prediction": [0.1] * STEPS,
        },
    }


def deviation(number: int, delta: float, error: float, computed: float = 0.0) -> dict[str, Any]:
    """A run with a cache that reuses every step but 0, 1, 2 and the last, whose prediction is off by `computed`."""
    steps = [0.0] * 3 + [0.5 * delta] * (STEPS - 4) + [computed]
    seen = {"delta": delta, "prediction": steps, "latent": [0.0] * (STEPS - 1) + [error], "video": error / 10}
    return {"prompt": f"prompt {number}", "seed": 0, "rerun_rmse": 0.0, "deviation@1": seen}


def sample(number: int, actions: str, psnr: float | None = None, macs: float = 1e12, ssim: float | None = None) -> dict:
    fidelity = {} if psnr is None else {"psnr@2": psnr, "ssim@2": 1 - 1 / psnr if ssim is None else ssim}
    return {
        "prompt": f"prompt {number}", "seed": 0, "steps": len(actions), "computed": actions.count("F"), "partial": 0,
        "macs": macs, "seconds": 1.0, "fidelity": fidelity, "trace": {"actions": actions},
    }  # fmt: skip


def put(root: Path, method: dict[str, Any], samples: list[dict], observations: list[dict] | None = None) -> None:
    """Write a record; its id is made of the method's name and fields."""
    name = method["name"]
    told = "".join(c for c in json.dumps(method) if c.isalnum())
    identity = REFERENCE if name == "none" else f"{told:.60}"
    macs = float(np.mean([each["macs"] for each in samples])) / 1e15
    data = {
        "schema": 2,
        "id": identity,
        "reference": REFERENCE,
        "status": "ok",
        "error": None,
        "recipe": {
            "backbone": {"name": "tiny"},
            "sampling": {"frames": 13, "height": 64, "width": 64, "steps": STEPS},
            "method": {"version": 1, **method},
        },
        "machine": {"name": "m"},
        "macs": {"peta_per_video": macs, "reference_peta_per_video": 1e-3, "speedup": 1e-3 / macs},
        "latency": None,
        "samples": samples,
        **({"observations": observations} if observations else {}),
    }
    path = root / "records" / "m" / "tiny" / f"{name}-{identity}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def uncached(root: Path, prompts: int = PROMPTS, changes: Callable[[int], dict[str, Any]] = lambda number: {}) -> Path:
    """The reference with everything seen of it; `changes` by the prompt's number."""
    numbers = range(prompts)
    put(root, {"name": "none"}, [sample(i, "F" * STEPS) for i in numbers], [entry(i, **changes(i)) for i in numbers])
    return root


def cached(root: Path, error: Callable[[float], float], computed: float = 0.0, prompts: int = PROMPTS) -> Path:
    """Runs of PreciseCache at several thresholds, whose final error is a function of δ."""
    actions = "FFF" + "r" * (STEPS - 4) + "F"
    for alpha in (0.1, 0.2, 0.4, 0.8):
        numbers = [(i, alpha * (1 + 0.1 * i)) for i in range(prompts)]
        seen = [deviation(i, delta, error(delta), computed) for i, delta in numbers]
        put(root, {"name": "precisecache", "alpha": alpha}, [sample(i, actions) for i, _ in numbers], seen)
    return root


def replayed(root: Path, low_noise_is_better_by: Callable[[int], float], prompts: int = PROMPTS) -> Path:
    """Two schedules that reuse three steps each, in one half."""
    for actions, sign in (("FrFrFrFFFFFF", 0), ("FFFFFFFrFrFr", 1)):
        samples = [sample(i, actions, 40 + i + sign * low_noise_is_better_by(i)) for i in range(prompts)]
        put(root, {"name": "replay", "actions": actions}, samples)
    return root


def curve(root: Path, name: str, psnr: dict[float, float], **fields: Any) -> None:
    """A method at several speedups by MACs; the prompts differ by a decibel."""
    for number, (speedup, value) in enumerate(psnr.items()):
        method = {"name": name, "setting": number, **fields}
        put(root, method, [sample(i, "F" * STEPS, value + i, 1e12 / speedup) for i in range(PROMPTS)])
