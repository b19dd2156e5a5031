"""Every preset of conf/method made eager, and its generations on every family, each made once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import methods
from methods import Method, StepwiseCache, apply

from . import conftest
from .families import FEW as STEPS
from .families import SMALL as FAMILIES
from .families import Family

SHORT = 4  # steps, as many as both of Wan2.2's transformers need
FEWER = 8  # steps in place of STEPS, for what is compared with none of the generations of `outcome`
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


# What would have the host wait for the device.
WAITS = frozenset({"item", "tolist", "cpu", "numpy", "equal", "__float__", "__int__", "__bool__", "__index__"})


class Counter(TorchFunctionMode):
    """FLOPs of all torch functions called inside, by PyTorch's own formulas, and how often the host waits for them.

    FlopCounterMode follows every operator, which takes three times as long as they do; so each function is followed
    once for each combination of shapes, and no more if it had no FLOPs.
    """

    known: ClassVar[dict[Any, int]] = {}
    free: ClassVar[set[Any]] = set()  # functions without FLOPs: indexing, sums

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.waits = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.waits += getattr(func, "__name__", "") in WAITS
        if func in self.free:
            return func(*args, **kwargs)
        key = func, *map(_shapes, args), *map(_shapes, kwargs.values())
        if key in self.known:
            output = func(*args, **kwargs)
        else:
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                output = func(*args, **kwargs)
            self.known[key] = counter.get_total_flops()
            if not self.known[key] and not any(0 in part for part in key[1:] if isinstance(part, torch.Size)):
                self.free.add(func)
        self.flops += self.known[key]
        return output

    @contextlib.contextmanager
    def calls_of(self, pipe: Any) -> Iterator[list[tuple[int, int]]]:
        """The FLOPs of each call of the pipeline's transformers, and how often the host waits in it."""
        found: list[tuple[int, int]] = []
        modules = [each for each in (pipe.transformer, getattr(pipe, "transformer_2", None)) if each is not None]
        before = [(module, vars(module).get("forward")) for module in modules]
        for module in modules:
            module.forward = self._counted(module.forward, found)
        try:
            yield found
        finally:
            for module, forward in before:
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _counted(self, forward: Any, found: list[tuple[int, int]]) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            flops, waits = self.flops, self.waits
            output = forward(*args, **kwargs)
            found.append((self.flops - flops, self.waits - waits))
            return output

        return counted


def _shapes(value: Any) -> Any:
    """What the number of FLOPs depends on in a function's argument: shapes, numbers (a stride), einsum's equation."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    return value if isinstance(value, str | int) else None


def shortened(fields: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method for STEPS; its own eager and inert ones are for twelve."""
    found = dict(fields)
    if actions := found.get("actions"):
        found["actions"] = actions[: STEPS - 1] + actions[-1]
    if isinstance(ratios := found.get("ratios"), dict):
        found["ratios"] = {name: values[:STEPS] for name, values in ratios.items()}
    return found | ({"steps": STEPS} if found.get("steps") == conftest.STEPS else {})


def presets() -> dict[str, Method]:
    """Every preset of conf/method, made eager."""
    found = {}
    for path in sorted(CONF.glob("*.yaml")):
        fields = yaml.safe_load(path.read_text())
        (name,) = (each.removeprefix("_") for each in fields.pop("defaults") if each not in ("_self_",))
        cls = CLASSES[name]
        found[path.stem] = cls(**shortened({**fields, **cls.EAGER}))
    return found


PRESETS = presets()


def distinct(named: Mapping[str, Method]) -> dict[str, Method]:
    """Of methods that are the same the first alone."""
    names = {repr(method): name for name, method in reversed(named.items())}
    return {name: named[name] for name in names.values()}


# Made eager, some presets of a method are one: each is run once, under one name.
DISTINCT = distinct(PRESETS)
_NAMES = {repr(method): name for name, method in DISTINCT.items()}


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


def working(presets: Iterable[str] = DISTINCT, families: Iterable[str] = FAMILIES) -> list[Any]:
    """Presets and families that are not expected to refuse each other, as parameters of a test."""
    return [
        pytest.param(preset, family, id=f"{preset}-{family}")
        for preset in presets
        for family in families
        if family not in REFUSED.get(preset, ())
    ]


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
    macs: int  # counted in the transformer's calls
    waits: list[int]  # in each of them


def fewer(method: Method) -> int:
    """FEWER steps, or as many as the method's schedule is for."""
    fixed = "dbcache", "fewer_steps", "planned", "replay", "searched"
    return STEPS if method.NAME in fixed else FEWER


@functools.cache
def uncached(family: str) -> tuple[Any, torch.Tensor]:
    pipe = FAMILIES[family].pipeline()
    return pipe, FAMILIES[family].call(pipe)


@functools.cache
def untouched(family: str, steps: int) -> torch.Tensor:
    """Latents of a pipeline to which nothing was ever applied."""
    return FAMILIES[family].call(FAMILIES[family].pipeline(), steps=steps)


def outcome(preset: str, family: str) -> Outcome | str:
    """The generation, or the reason of a refusal."""
    return _outcome(_NAMES[repr(PRESETS[preset])], family)


@functools.cache
def _outcome(preset: str, family: str) -> Outcome | str:
    kind, method = FAMILIES[family], PRESETS[preset]
    pipe, before = uncached(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counter = Counter()
        try:
            with apply(pipe, method, **kind.options) as handle, counter.calls_of(pipe) as calls, counter:
                latents = kind.call(pipe)
        except ValueError as error:
            return str(error)
        flops, waits = zip(*calls, strict=True)
        return Outcome(kind, handle.method, before, latents, handle.trace, pipe, sum(flops) // 2, list(waits))


def state_of(pipe) -> tuple:
    """All that apply() could have left behind: classes, attributes of the modules, hooks, the scheduler's own."""
    modules = {
        name: sorted(k for k in vars(m) if k != "_diffusers_hook") for name, m in pipe.transformer.named_modules()
    }
    hooks = [list(m._diffusers_hook.hooks) for m in pipe.transformer.modules() if getattr(m, "_diffusers_hook", None)]
    kinds = type(pipe), type(pipe.scheduler)
    return kinds, modules, [h for h in hooks if h], sorted(vars(pipe.scheduler)), pipe.transformer.is_cache_enabled
