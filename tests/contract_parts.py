"""Every preset of conf/method made eager, and its generations on every family, each made once."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

import methods
from methods import Method, StepwiseCache, apply

from .families import SMALL as FAMILIES
from .families import Family

CONF = Path(__file__).parents[1] / "conf" / "method"


CLASSES: dict[str, type[Method]] = {
    cls.NAME: cls for name in methods.__all__ if name.endswith("Config") for cls in [getattr(methods, name)]
}


# On a CPU attention is an operator that PyTorch's formulas do not cover.
FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_val=None, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
}


class FlopCounter(TorchDispatchMode):
    """FLOPs of all that runs inside, by PyTorch's own formulas; FlopCounterMode also follows modules, which is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def presets() -> dict[str, Method]:
    """Every preset of conf/method, made eager."""
    found = {}
    for path in sorted(CONF.glob("*.yaml")):
        fields = yaml.safe_load(path.read_text())
        (name,) = (each.removeprefix("_") for each in fields.pop("defaults") if each not in ("_self_",))
        cls = CLASSES[name]
        found[path.stem] = cls(**{**fields, **cls.EAGER})
    return found


PRESETS = presets()


# Made eager, some presets of a method are one: each is run once, under one name.
_NAMES = {repr(method): name for name, method in reversed(PRESETS.items())}
DISTINCT = _NAMES.values()


WAN = {name for name in FAMILIES if name.startswith("wan")}


EVERY, COGVIDEOX = set(FAMILIES), {"cogvideox_2b", "cogvideox_5b"}
# Presets that families refuse. A refusal that is not expected here fails, and so does a family that works after all.
REFUSED: dict[str, set[str]] = {
    "dbcache": {"opensora"},
    "dbcache_dmd": {"opensora"},
    "dbcache_foca": {"opensora"},
    "dbcache_scm": {"opensora"},
    "dbcache_taylorseer": {"opensora"},
    # a strength below 1 takes a part of their schedule only
    "fewer_steps": {"wan_video_to_video"},
    "fewer_steps_32": {"wan_video_to_video"},
    "fewer_steps_37": {"wan_video_to_video"},
    "fastercache_as_published": EVERY - COGVIDEOX,
    "pab_246": EVERY - {"opensora"},
    "pab_357": EVERY - {"opensora"},
    "pab_579": EVERY - {"opensora"},
    "seacache": {*COGVIDEOX, "opensora"},
    "seacache_diffusers": EVERY - WAN,
    "seacache_fast": {*COGVIDEOX, "opensora"},
    "teacache_retention": EVERY - WAN,
}


STEPWISE = {name: PRESETS[name] for name in DISTINCT if isinstance(PRESETS[name], StepwiseCache)}


@dataclasses.dataclass
class Outcome:
    """One eager generation, and what surrounded it."""

    family: Family
    method: Method
    uncached: torch.Tensor
    latents: torch.Tensor
    trace: methods.Trace
    pipe: Any
    counted: int


@functools.cache
def uncached(family: str) -> tuple[Any, torch.Tensor]:
    pipe = FAMILIES[family].pipeline()
    return pipe, FAMILIES[family].call(pipe)


def outcome(preset: str, family: str) -> Outcome | str:
    """The generation, or the reason of a refusal."""
    return _outcome(_NAMES[repr(PRESETS[preset])], family)


@functools.cache
def _outcome(preset: str, family: str) -> Outcome | str:
    kind, method = FAMILIES[family], PRESETS[preset]
    pipe, before = uncached(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counter = FlopCounter()
        try:
            with apply(pipe, method, **kind.options) as handle, counter:
                latents = kind.call(pipe)
        except ValueError as error:
            return str(error)
        return Outcome(kind, handle.method, before, latents, handle.trace, pipe, counter.total // 2)
