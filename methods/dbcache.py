"""DBCache (vipshop, cache-dit): the first blocks always run and decide, the middle ones are cached. Optional extra.

The algorithm is the `cache-dit` package's own (`pip install "pcbench[dbcache]"`); this file attaches it beneath our
hooks, gives it a fresh context for each pipeline call, and records in the trace what it did: every block is hooked, so
blocks that cache-dit did not call are counted as skipped.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .engine.anatomy import Anatomy
from .engine.caller import transformers_of
from .engine.core import HOOK_NAME
from .engine.denoiser import Denoiser, ModuleCall
from .engine.method import Cache, Rule, Tradeoff

FAMILIES = ("wan", "hunyuanvideo", "cogvideox")


@dataclass(kw_only=True)
class DBCacheConfig(Cache):
    """DBCache with cache-dit's defaults (caching/cache_contexts/cache_config.py of 1.5.3).

    After `fn_blocks` blocks of a block list their residual is compared with that of the last computed step,
    mean|r - r_last| / mean|r_last|; below `residual_diff_threshold` the middle blocks' last residual is added instead
    of running them, and `bn_blocks` blocks at the end run again. HunyuanVideo's two block lists decide separately.

    fn_blocks, bn_blocks: official Fn_compute_blocks, Bn_compute_blocks; per block list.
    protect_first: official max_warmup_steps.
    protect_last: implemented with cache-dit's own steps_computation_mask.
    max_cached_steps, max_continuous_cached_steps: official; -1 is no limit.
    separate_cfg: official enable_separate_cfg; None follows the pipeline's guidance (Wan calls twice a step).

    Deviations: cache-dit takes a threshold of 1 or more as "always reuse", even with NaN: refused here. Calibrators,
    custom step masks and pruning are left out. A step where the middle blocks are reused is "partial" in the trace.
    """

    protect_first: float = 8
    fn_blocks: int = 8
    bn_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    separate_cfg: bool | None = None

    NAME: ClassVar[str] = "dbcache"
    TRADEOFF: ClassVar = Tradeoff("residual_diff_threshold", 1e-5, 100.0)
    INERT: ClassVar[dict[str, Any] | None] = {"residual_diff_threshold": 0.0}
    EAGER: ClassVar[dict[str, Any]] = {"fn_blocks": 1, "residual_diff_threshold": 0.5, "protect_first": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fn_blocks < 1 or self.bn_blocks < 0:
            raise ValueError("fn_blocks must be at least 1 and bn_blocks at least 0")
        if not 0 <= self.residual_diff_threshold < 1:
            raise ValueError(f"residual_diff_threshold must be in [0, 1), not {self.residual_diff_threshold}")

    def for_backbone(self, anatomy: Anatomy) -> DBCacheConfig:
        if anatomy.family not in FAMILIES:
            raise ValueError(f"dbcache: no adapter for {anatomy.family}; supported: {', '.join(FAMILIES)}")
        if importlib.util.find_spec("cache_dit") is None:
            raise ValueError('dbcache needs the cache-dit package: pip install "pcbench[dbcache]"')
        lists = [anatomy.config[name] for name in ("num_layers", "num_single_layers") if name in anatomy.config]
        if self.fn_blocks + self.bn_blocks >= min(lists):
            raise ValueError(
                f"dbcache: fn_blocks {self.fn_blocks} and bn_blocks {self.bn_blocks} leave none of the {min(lists)}"
                " blocks to cache; set them lower"
            )
        return self

    def modules(self, anatomy: Anatomy, transformer: torch.nn.Module) -> list[str]:
        return [block.path for block in anatomy.blocks(transformer)]

    def patch(self, pipe: Any) -> Callable[[], None]:
        import cache_dit

        undo: list[Callable[[], None]] = []

        def undo_all() -> None:
            while undo:
                undo.pop()()

        for transformer in dict.fromkeys(transformers_of(pipe).values()):
            hook = transformer._diffusers_hook.get_hook(HOOK_NAME).fn_ref
            undo.append(_restorer(transformer, hook))
            try:
                outer_forward, transformer.forward = transformer.forward, hook.original_forward
                with _quietly():
                    cache_dit.enable_cache(transformer, cache_config=self.official(separate=False))
                # cache-dit beneath our hook
                hook.original_forward, transformer.forward = transformer.forward, outer_forward
            except BaseException:
                undo_all()
                raise
        return undo_all

    def official(self, separate: bool, num_steps: int | None = None, start: int = 0) -> Any:
        """cache-dit's own config, for a transformer whose first step is step `start` of a pipeline call."""
        from cache_dit import DBCacheConfig as Official

        first = self.first_steps(num_steps)
        mask = None
        if self.protect_last and num_steps is not None:
            between = max(num_steps - first - self.protect_last, 0)
            mask = ([1] * first + [0] * between + [1] * self.protect_last)[start:num_steps]
        return Official(
            Fn_compute_blocks=self.fn_blocks,
            Bn_compute_blocks=self.bn_blocks,
            residual_diff_threshold=self.residual_diff_threshold,
            max_warmup_steps=max(first - start, 0),
            max_cached_steps=self.max_cached_steps,
            max_continuous_cached_steps=self.max_continuous_cached_steps,
            enable_separate_cfg=separate,
            steps_computation_mask=mask,
        )

    def rule(self) -> DualBlock:
        return DualBlock(self)

    def blocks_run(self, blocks: Mapping[str, int]) -> dict[str, int]:
        return dict.fromkeys(blocks, self.fn_blocks + self.bn_blocks)


class DualBlock(Rule):
    """Lets cache-dit decide, and records what it decided."""

    def __init__(self, config: DBCacheConfig) -> None:
        self.config = config
        self.separate: bool | None = None  # None before the first step, and where cache-dit must start afresh
        self.start: int | None = None  # the step at which its context began
        self.called: Counter[str] = Counter()

    def predict(self, denoiser: Denoiser) -> torch.Tensor:
        if self.separate is None:
            self._begin(denoiser)
        count = len(denoiser.branches)
        if (count > 1) != self.separate and (count > 1 or denoiser.index != self.start):
            if self.start and self.config.separate_cfg is None:
                raise ValueError("dbcache: guidance was switched on in mid-call, which cache-dit cannot follow")
            raise ValueError(f"dbcache: {count} guidance branch(es) a step; set separate_cfg={str(count > 1).lower()}")
        self.called.clear()
        prediction = denoiser.run()
        patterns = Counter(ModuleCall(block.path, _nothing, (), {}).pattern for block in denoiser.blocks)
        denoiser.step.calls[-1].skipped.update(patterns - self.called)
        self._describe(denoiser)
        return prediction

    def visit(self, denoiser: Denoiser, call: ModuleCall) -> Any:
        self.called[call.pattern] += 1
        return call.run()

    def forget_branch(self, name: str) -> None:
        self.separate = None  # cache-dit tells branches apart by the order of their calls

    def change_transformer(self) -> None:
        self.separate = None

    def _begin(self, denoiser: Denoiser) -> None:
        """Start a fresh context, with nothing left of an earlier pipeline call, even one that failed."""
        import cache_dit

        self.separate = self.config.separate_cfg
        if self.start is not None:  # in mid-call the step's branches are known
            self.separate = len(denoiser.branches) > 1
        elif self.separate is None:
            self.separate = denoiser.anatomy.BATCHED is None and _guidance(denoiser) > 1
        self.start = denoiser.index
        with _quietly():
            official = self.config.official(self.separate, denoiser.num_steps, self.start)
            cache_dit.refresh_context(denoiser.transformer, cache_config=official)

    def _describe(self, denoiser: Denoiser) -> None:
        """Record the residual's difference, from the statistics that cache-dit leaves on each block list."""
        first = next(iter(denoiser.branches)) == denoiser.branch.name
        diffs = {}
        for name in dict.fromkeys(block.path.partition(".")[0] for block in denoiser.blocks):
            blocks = getattr(denoiser.transformer, name)
            known = blocks._residual_diffs if first or not self.separate else blocks._cfg_residual_diffs
            if (count := str(denoiser.index - (self.start or 0))) in known:
                diffs[name] = float(known[count])
        if diffs:
            step = denoiser.step
            step.indicator, step.threshold = next(iter(diffs.values())), self.config.residual_diff_threshold
            step.details.setdefault("residual_diffs", {})[denoiser.branch.name] = diffs


def _restorer(transformer: Any, hook: Any) -> Callable[[], None]:
    """A function that undoes cache-dit's changes to a transformer, including the order of its modules."""
    order, forward = list(transformer._modules), hook.original_forward
    is_class_forward = getattr(forward, "__func__", None) is type(transformer).forward

    def restore() -> None:
        import cache_dit

        with _quietly():
            cache_dit.disable_cache(transformer)
        for name in order:  # cache-dit swaps the block lists in and out, which moves them to the end
            transformer._modules[name] = transformer._modules.pop(name)
        transformer.forward = hook.original_forward = forward
        if is_class_forward:
            del transformer.forward

    return restore


def _guidance(denoiser: Denoiser) -> float:
    try:
        return denoiser.guidance_scale()
    except ValueError:  # HunyuanVideo without true CFG, or with a scale it does not publish
        return 1.0


def _nothing() -> None:
    """A placeholder for a module's forward; never called."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence cache-dit, which reports every step of attaching and removing on standard output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
