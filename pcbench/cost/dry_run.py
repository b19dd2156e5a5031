"""Rehearses a recipe without weights: the method runs on a stand-in for the transformer and gives a full-size trace.

The stand-in is the real class with all its blocks, at toy width, and *every number in it is NaN*. A method that follows
a schedule does not notice, so its trace is that of the real run. A method that looks at the data sees NaN, and computes
the step (every method must, see the contract tests): its trace holds all trials and all steps, the most a run can cost.
Modules that the method does not look into answer NaN without computing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from methods import FewerStepsConfig, Method, NoCacheConfig, apply
from methods.engine.anatomy import Anatomy, Block, Size, anatomy_for
from methods.engine.denoiser import ModuleCall
from methods.engine.kept_tensors import tensors_in
from methods.engine.reuse import hidden_of, replaced

from .. import backbones
from ..config import Recipe
from .held import Held, Scale
from .timesteps import boundary_of, scheduler_of, timesteps_on


@dataclass(frozen=True)
class Rehearsal:
    """trace: in the form of `Trace.to_dict()`, with the sizes and arguments of the real run.

    follows_schedule: the method never looked at the data, so the trace is what the run will do.
    least: number of steps that are computed whatever the data.
    held_whole: most bytes kept on the device, at full size, of predictions and of features measured before the blocks.
    held_inside: the same of what comes from inside the transformer, which GPUs that share a video share.
    waiting: most bytes that it keeps in the CPU's memory instead (`method.kept=cpu`).
    blocks: number of blocks for each path pattern, as in `Call.skipped`.
    """

    trace: dict[str, Any]
    follows_schedule: bool
    least: int
    held_whole: int
    held_inside: int
    waiting: int
    blocks: dict[str, int]

    @property
    def held(self) -> int:
        """Bytes kept on a single device."""
        return self.held_whole + self.held_inside

    @property
    def steps(self) -> int:
        return len(self.trace["steps"])

    @property
    def computed(self) -> int:
        """Steps not answered from the cache."""
        return sum(step["action"] != "reuse" for step in self.trace["steps"])

    @property
    def partial(self) -> int:
        """Steps at which some modules or some guidance branches were reused."""
        return sum(step["action"] == "partial" for step in self.trace["steps"])


@dataclass
class Stage:
    """The part of a pipeline that a caching method needs. guidance_scale: 1 if the pipeline combines no branches."""

    scheduler: Any
    guidance_scale: float
    transformer: Any
    transformer_2: Any = None
    _num_timesteps: int = field(default=0)


MOST_KEPT = 200  # rehearsals, of which one takes some 100 kB
_rehearsed: dict[str, Rehearsal] = {}


def rehearse(recipe: Recipe) -> Rehearsal:
    """Run the recipe's method through all steps on the stand-in, once in a process: what is priced or refused again, as
    a sweep's reference is for every method, is looked up. Its trace is shared: read it only."""
    if isinstance(recipe.method, FewerStepsConfig):  # the pipeline itself, asked for so many
        sampling = replace(recipe.sampling, steps=recipe.method.steps)
        recipe = replace(recipe, sampling=sampling, method=NoCacheConfig())
    read = backbones.transformer_config(recipe.backbone), scheduler_of(recipe)  # from files beside the weights
    key = repr((recipe, *read))
    if key not in _rehearsed:
        if len(_rehearsed) >= MOST_KEPT:
            del _rehearsed[next(iter(_rehearsed))]
        _rehearsed[key] = _rehearse(recipe)
    return _rehearsed[key]


def _rehearse(recipe: Recipe) -> Rehearsal:
    backbone, method = recipe.backbone, recipe.method
    family, config = backbones.family(backbone), backbones.transformer_config(backbone)
    real = anatomy_for(family.TRANSFORMER, config)
    narrow = {**config, **family.NARROW}
    shapes = family.arguments(recipe, narrow)
    boundary = boundary_of(backbone)
    key = family.TRANSFORMER, json.dumps(narrow), getattr(torch, recipe.numerics.dtype)
    transformers = [_narrow(*key, number) for number in range(1 if boundary is None else 2)]
    anatomy = anatomy_for(family.TRANSFORMER, transformers[0].config)
    inputs, full = _nan_inputs(shapes, transformers[0].dtype), family.latent_size(recipe.sampling)
    small = _small_size(anatomy, full, method)
    inputs = anatomy.sent(anatomy.trial_inputs(anatomy.received(inputs), small, "nearest-exact"))
    names = ["cond_uncond"] if anatomy.BATCHED else ["cond", "uncond"][: family.branches(recipe)]
    guided = len(names) == 2 or anatomy.batch(inputs) == 2
    stage = Stage(scheduler_of(recipe), recipe.sampling.guidance_scale if guided else 1.0, *transformers)
    held, least = Held(Scale(real, anatomy, full, small, shapes)), 0
    hollow = _hollow(transformers, method, lambda: held.look(handle.in_progress[1]))
    with warnings.catch_warnings(), torch.no_grad(), hollow, apply(stage, method) as handle:
        warnings.simplefilter("ignore")
        timesteps = timesteps_on(stage.scheduler, recipe)
        stage._num_timesteps = len(timesteps)
        for index, timestep in enumerate(timesteps):
            first = boundary is None or timestep >= boundary * stage.scheduler.config.num_train_timesteps
            transformer = transformers[0 if first else 1]
            precision = transformer.dtype if anatomy.ROUNDS_TIMESTEPS else torch.float32
            inputs["timestep"] = timestep.expand(inputs["timestep"].shape).to(precision)
            for name in names:
                context = {"step_index": index, "num_inference_steps": len(timesteps)}
                with transformer.cache_context(name, **context):
                    transformer(**inputs, return_dict=False)
            denoiser, rule = handle.in_progress
            least += denoiser.must_compute or denoiser.index < method.always_computed
            held.look(rule, between_steps=True)
        trace = handle.trace.to_dict()
    trace["arguments"], trace["latent_size"] = family.arguments(recipe, config), full
    for step in trace["steps"]:
        for call in step["calls"]:
            call["size"] = list(_real_size(call, method, anatomy, full, small))
    looked = any(row.indicator is not None and math.isnan(row.indicator) for row in handle.trace.steps)
    blocks = Counter(ModuleCall(block.path, apply, (), {}).pattern for block in anatomy.blocks(transformers[0]))
    return Rehearsal(trace, not looked, least, held.whole, held.inside, held.waiting, dict(blocks))


@functools.lru_cache(maxsize=8)  # to build one takes as long as a rehearsal
def _narrow(kind: Any, config: str, dtype: torch.dtype, number: int) -> Any:
    """A narrow transformer of NaNs, the `number`-th of a pipeline.

    The real dtype matters: some schedules see timesteps rounded to it, and kept tensors are counted in it.
    """
    transformer = kind.from_config(json.loads(config)).eval().requires_grad_(False)
    # torch's `to` rather than diffusers', which warns about modules that should stay in float32: nothing is computed.
    torch.nn.Module.to(transformer, dtype)
    for parameter in transformer.parameters():
        parameter.fill_(math.nan)
    return transformer


@contextlib.contextmanager
def _hollow(transformers: Sequence[Any], method: Method, look: Callable[[], None]) -> Iterator[None]:
    """Within it, what the method does not look into computes nothing: blocks that are visited whole, or not at all,
    pass their input on, and other modules with weights answer NaN. `look` is called whenever a visited block runs."""
    hollowed: list[Any] = []
    try:
        for transformer in transformers:
            anatomy = anatomy_for(type(transformer), transformer.config)
            blocks = {block.path: block for block in anatomy.blocks(transformer)}
            visited = set(method.modules(anatomy, transformer))
            unpatched = type(method).patch is Method.patch or not visited  # no other package looks at the blocks
            passing = blocks if visited <= blocks.keys() and unpatched else {}
            known: dict[str, dict[Any, Any]] = {}  # answers by pattern: modules of one pattern are alike
            for path, module in _closed(transformer, "", visited, set() if unpatched else set(blocks)):
                pattern = ModuleCall(path, apply, (), {}).pattern
                nan = functools.partial(_nan_answer, module.forward, known.setdefault(pattern, {}))
                looked = look if path in visited else None
                module.forward = _pass_on(passing[path], looked) if path in passing else nan
                hollowed.append(module)
        yield
    finally:
        for module in hollowed:
            del module.forward


def _closed(module: torch.nn.Module, root: str, visited: set[str], opened: set[str]) -> Iterator[tuple[str, Any]]:
    """The largest modules with weights, and their paths, that are not `opened` and have no visited module inside."""
    for name, child in module.named_children():
        path = f"{root}{name}"
        inside = path in opened or any(other.startswith(f"{path}.") for other in visited)
        if inside or isinstance(child, torch.nn.ModuleList):
            yield from _closed(child, f"{path}.", visited, opened)
        elif next(child.parameters(), None) is not None:
            yield path, child


def _nan_answer(forward: Callable[..., Any], known: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
    """What a module of NaNs answers to arguments of any shapes: computed once, then new tensors of NaNs like it."""
    shapes = _shapes((args, kwargs))
    if shapes in known:
        return _new_nans(known[shapes])
    answer = forward(*args, **kwargs)
    parts = answer if type(answer) is tuple else (answer,)
    if all(isinstance(part, torch.Tensor) and bool(part.isnan().all()) for part in parts):
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in([args, kwargs])}
        if given.isdisjoint(part.untyped_storage().data_ptr() for part in parts):  # none is handed on
            known[shapes] = answer
    return answer


def _new_nans(answer: Any) -> Any:
    """New tensors like those of an answer, which share memory as those do: kept views are counted with all of it."""
    wholes: dict[int, torch.Tensor] = {}

    def new(part: torch.Tensor) -> torch.Tensor:
        storage = part.untyped_storage()
        if (place := storage.data_ptr()) not in wholes:
            wholes[place] = part.new_full((storage.nbytes() // part.itemsize,), math.nan)
        return wholes[place].as_strided(part.shape, part.stride(), part.storage_offset())

    return tuple(map(new, answer)) if type(answer) is tuple else new(answer)


def _shapes(value: Any) -> Any:
    """The arguments of a call with shapes and dtypes for tensors, as a key."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_shapes, value))
    if isinstance(value, dict):
        return tuple((name, _shapes(item)) for name, item in value.items())
    return value


def _pass_on(block: Block, look: Callable[[], None] | None) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if look is not None:
            look()
        call = ModuleCall(block.path, forward, args, kwargs)
        return replaced(block, call, hidden_of(block, call))

    return forward


def _nan_inputs(shapes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Tensors full of NaN in these shapes; masks are all true, and a number stays."""

    def tensor(name: str, shape: Any) -> Any:
        if isinstance(shape, int):
            return shape
        if shape and isinstance(shape[0], (list, tuple)):
            return tuple(tensor(name, inner) for inner in shape)
        mask = "mask" in name
        return torch.ones(shape, dtype=torch.bool) if mask else torch.full(shape, math.nan, dtype=dtype)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def _small_size(anatomy: Anatomy, full: Size, method: Method) -> Size:
    """The stand-in's latent size: all frames, but only as many cells as a trial needs to be valid."""
    _, down, right = method.trial_factor or (1, 1, 1)
    _, height, width = anatomy.patch
    return full[0], min(full[1], height * max(2, down)), min(full[2], width * max(2, right))


def _real_size(call: dict[str, Any], method: Method, anatomy: Anatomy, full: Size, small: Size) -> Size:
    """The size of a call in the real run; a trial's by the method's factor, or by its share of the stand-in's size."""
    if not call["trial"]:
        return full
    if method.trial_factor is not None:
        return anatomy.trial_size(full, method.trial_factor)
    frames, height, width = (max(1, round(n * of / by)) for n, of, by in zip(call["size"], full, small, strict=True))
    return frames, height, width
