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

from .engine.anatomy import Anatomy, Size
from .engine.caller import transformers_of
from .engine.core import HOOK_NAME
from .engine.denoiser import Denoiser, ModuleCall
from .engine.method import Cache, Rule, Tradeoff
from .schedule import check_actions

FAMILIES = ("wan", "hunyuanvideo", "cogvideox")
CALIBRATORS = ("none", "taylorseer", "dmd", "foca")
MASKS = ("slow", "medium", "fast", "ultra")


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
    calibrator: what is added instead of the last residual: cache-dit's forecast of it by "taylorseer" (a Taylor
        expansion of `taylorseer_order` in steps), "dmd" (exponential modes of the last `dmd_history` residuals) or
        "foca" (a line, corrected by the last step's); "none" is the last one itself. Their other options are official.
    steps_computation_mask: which steps must be computed: a letter a step, "F" to compute and "r" where reuse is
        allowed, or one of cache-dit's own masks: "slow", "medium", "fast", "ultra" (official `steps_mask`).
    steps_computation_policy: where the mask allows reuse, "dynamic" asks the threshold, "static" always reuses.

    Deviations: cache-dit takes a threshold of 1 or more as "always reuse", even with NaN: refused here, and pruning is
    left out. Officially a mask cuts the warm-up short at its own first r; here protected steps are computed beside it,
    and protect_first=0 follows the mask alone. A step where the middle blocks are reused is "partial" in the trace.
    """

    protect_first: float = 8
    fn_blocks: int = 8
    bn_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    separate_cfg: bool | None = None
    calibrator: str = "none"
    taylorseer_order: int = 1
    dmd_history: int = 6
    steps_computation_mask: str | None = None
    steps_computation_policy: str = "dynamic"

    NAME: ClassVar[str] = "dbcache"
    TRADEOFF: ClassVar = Tradeoff("residual_diff_threshold", 1e-5, 0.999)
    INERT: ClassVar[dict[str, Any] | None] = {
        "residual_diff_threshold": 0.0,
        "steps_computation_policy": "dynamic",
    }
    EAGER: ClassVar[dict[str, Any]] = {"fn_blocks": 1, "residual_diff_threshold": 0.5, "protect_first": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fn_blocks < 1 or self.bn_blocks < 0:
            raise ValueError("fn_blocks must be at least 1 and bn_blocks at least 0")
        if not 0 <= self.residual_diff_threshold < 1:
            raise ValueError(f"residual_diff_threshold must be in [0, 1), not {self.residual_diff_threshold}")
        if self.calibrator not in CALIBRATORS:
            raise ValueError(f"calibrator must be one of {', '.join(CALIBRATORS)}, not {self.calibrator!r}")
        if self.taylorseer_order < 1 or self.dmd_history < 1:
            raise ValueError("taylorseer_order and dmd_history must be at least 1")
        if self.steps_computation_policy not in ("dynamic", "static"):
            raise ValueError(
                f"steps_computation_policy must be dynamic or static, not {self.steps_computation_policy!r}"
            )
        if self.steps_computation_mask is None:
            if self.steps_computation_policy == "static":
                raise ValueError("steps_computation_policy=static needs a steps_computation_mask to follow")
        elif self.steps_computation_mask not in MASKS:
            check_actions(self.steps_computation_mask, f"steps_computation_mask, if none of {', '.join(MASKS)},")

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

    def check(self, anatomy: Anatomy, latent_size: Size, num_steps: int | None) -> None:
        super().check(anatomy, latent_size, num_steps)
        mask = self.steps_computation_mask
        if mask is None:
            return
        if num_steps is None:
            raise ValueError("dbcache: this pipeline does not announce its number of steps, which a mask needs")
        if mask not in MASKS and len(mask) != num_steps:
            raise ValueError(f"dbcache: steps_computation_mask has {len(mask)} letters for {num_steps} steps")
        if mask in MASKS and num_steps < 8 and num_steps not in (4, 6):
            raise ValueError(f"dbcache: cache-dit has no mask {mask} for {num_steps} steps: give it a letter a step")

    @property
    def keeps_blocks(self) -> bool:
        return False  # cache-dit keeps them, its own way

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
                    cache_dit.enable_cache(transformer, **self.official(separate=False))
                # cache-dit beneath our hook
                hook.original_forward, transformer.forward = transformer.forward, outer_forward
            except BaseException:
                undo_all()
                raise
        return undo_all

    def official(self, separate: bool, num_steps: int | None = None, start: int = 0) -> dict[str, Any]:
        """cache-dit's own configs, for a transformer whose first step is step `start` of a pipeline call."""
        from cache_dit import DBCacheConfig as Official

        first = self.first_steps(num_steps)
        config = Official(
            Fn_compute_blocks=self.fn_blocks,
            Bn_compute_blocks=self.bn_blocks,
            residual_diff_threshold=self.residual_diff_threshold,
            max_warmup_steps=max(first - start, 0),
            max_cached_steps=self.max_cached_steps,
            max_continuous_cached_steps=self.max_continuous_cached_steps,
            enable_separate_cfg=separate,
            steps_computation_mask=None if num_steps is None else self._mask(first, num_steps, start),
            steps_computation_policy=self.steps_computation_policy,
        )
        return {"cache_config": config, "calibrator_config": self._calibrator()}

    def _mask(self, first: int, num_steps: int, start: int) -> list[int] | None:
        """1 for each step from `start` on that must be computed: it itself (nothing is cached), and the protected."""
        import cache_dit

        given = self.steps_computation_mask
        if given is None and not self.protect_last:
            return None
        mask = [0] * num_steps if given is None else [int(letter == "F") for letter in given]
        if given in MASKS:
            mask = cache_dit.steps_mask(mask_policy=given, total_steps=num_steps)
        last = num_steps - self.protect_last
        return [int(bool(must) or not first <= step < last or step == start) for step, must in enumerate(mask)][start:]

    def _calibrator(self) -> Any:
        import cache_dit

        if self.calibrator == "taylorseer":
            return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.taylorseer_order)
        if self.calibrator == "dmd":
            return cache_dit.DMDCalibratorConfig(dmd_history=self.dmd_history)
        return cache_dit.FoCaCalibratorConfig() if self.calibrator == "foca" else None

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
        self.managers: dict[int, Any] = {}  # cache-dit's, of each transformer: they hold the tensors it keeps

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
            cache_dit.refresh_context(denoiser.transformer, **official)
        self.managers[id(denoiser.transformer)] = denoiser.transformer._context_manager

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
