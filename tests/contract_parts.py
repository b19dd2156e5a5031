"""Every preset of conf/method made eager, and its generations on every family, each made once."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import methods
from methods import Method, StepwiseCache, apply

from .families import SMALL as FAMILIES
from .families import Family

CONF = Path(__file__).parents[1] / "conf" / "method"


CLASSES: dict[str, type[Method]] = {
    cls.NAME: cls for name in methods.__all__ if name.endswith("Config") for cls in [getattr(methods, name)]
}


# On a CPU attention is an operator that PyTorch's formulas do not cover.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    )
}


class FlopCounter(TorchFunctionMode):
    """FLOPs of all torch functions called inside, by PyTorch's own formulas.

    FlopCounterMode follows every operator, which takes three times as long as they do; so each function is followed
    once for each combination of shapes.
    """

    known: ClassVar[dict[Any, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = func, *map(_shapes, args), *map(_shapes, kwargs.values())
        if key in self.known:
            output = func(*args, **kwargs)
        else:
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                output = func(*args, **kwargs)
            self.known[key] = counter.get_total_flops()
        self.total += self.known[key]
        return output


def _shapes(value: Any) -> Any:
    """What the number of FLOPs depends on in a function's argument: shapes, numbers (a stride), einsum's equation."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    return value if isinstance(value, str | int) else None


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
UNKNOWN_TO_CACHE_DIT = {"hunyuan15", "ltx2", "opensora", "vchitect"}
# Presets that families refuse. A refusal that is not expected here fails, and so does a family that works after all.
REFUSED: dict[str, set[str]] = {
    "adacache": {"ltx2"},
    "adacache_fast": {"ltx2"},
    "dbcache": UNKNOWN_TO_CACHE_DIT,
    "dbcache_dmd": UNKNOWN_TO_CACHE_DIT,
    "dbcache_foca": UNKNOWN_TO_CACHE_DIT,
    "dbcache_scm": UNKNOWN_TO_CACHE_DIT,
    "dbcache_taylorseer": UNKNOWN_TO_CACHE_DIT,
    "dicache": {"ltx2"},
    # a strength below 1 takes a part of their schedule only
    "fewer_steps": {"wan_video_to_video"},
    "fewer_steps_32": {"wan_video_to_video"},
    "fewer_steps_37": {"wan_video_to_video"},
    "fastercache_as_published": EVERY - COGVIDEOX - {"ltx2"},
    "pab_246": EVERY - {"opensora", "vchitect"},
    "pab_357": EVERY - {"opensora", "vchitect"},
    "pab_579": EVERY - {"opensora", "vchitect"},
    "seacache": {*COGVIDEOX, *UNKNOWN_TO_CACHE_DIT},
    "seacache_diffusers": EVERY - WAN,
    "seacache_fast": {*COGVIDEOX, *UNKNOWN_TO_CACHE_DIT},
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


def state_of(pipe) -> tuple:
    """All that apply() could have left behind: classes, attributes of the modules, hooks, the scheduler's own."""
    modules = {
        name: sorted(k for k in vars(m) if k != "_diffusers_hook") for name, m in pipe.transformer.named_modules()
    }
    hooks = [list(m._diffusers_hook.hooks) for m in pipe.transformer.modules() if getattr(m, "_diffusers_hook", None)]
    kinds = type(pipe), type(pipe.scheduler)
    return kinds, modules, [h for h in hooks if h], sorted(vars(pipe.scheduler)), pipe.transformer.is_cache_enabled
