"""Attach a caching method to a diffusers pipeline, reversibly: `with apply(pipe, config) as handle: pipe(...)`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook

from .anatomy import anatomy_of
from .caller import transformers_of
from .clock import Clock
from .core import HOOK_NAME, Generation, ModuleHook, Recorder, StepHook
from .denoiser import Denoiser
from .method import Method, Rule
from .trace import Trace

SPLIT = "cp_input"  # how the names of diffusers' hooks that split tokens among processes begin


class _Hooked:
    """A module with one of our hooks."""

    def __init__(self, module: Any, hook: ModelHook, root: bool) -> None:
        self.module, self.hook = module, hook
        self.plain = "forward" not in vars(module)  # forward is the class's own
        registry = HookRegistry.check_if_exists_or_initialize(module)
        # What splits a block's tokens among processes stays outside: the block, and so its cache, knows only its part.
        splits = [] if root else [name for name in registry._hook_order if name.startswith(SPLIT)]
        outside = {name: registry.get_hook(name) for name in splits}
        for name in reversed(splits):
            registry.remove_hook(name, recurse=False)
        registry.register_hook(hook, HOOK_NAME)
        for name, each in outside.items():
            registry.register_hook(each, name)
        self.forward = module.forward
        # With diffusers' hooks a copied module would run its original; copy and pickle both start here.
        vars(module)["__reduce_ex__"] = self._refuse_to_copy

    def _refuse_to_copy(self, protocol: int) -> Any:
        raise RuntimeError(
            f"a {type(self.module).__name__} cannot be copied or pickled with a caching method attached: remove() the"
            " handle first, and apply the method to the copy"
        )

    def undo(self) -> None:
        """Remove the hook, wherever it now is among others."""
        module, registry = self.module, self.module._diffusers_hook
        vars(module).pop("__reduce_ex__", None)
        index, outermost = registry._hook_order.index(HOOK_NAME), module.forward
        own_ref, outer_refs = registry._fn_refs[index], registry._fn_refs[index + 1 : index + 2]
        outer_forwards = [(ref, ref.forward) for ref in outer_refs if ref.original_forward is not None]
        registry.remove_hook(HOOK_NAME, recurse=False)
        for ref, forward in outer_forwards:  # a hook with a forward of its own, which remove_hook would pass over
            ref.forward, ref.original_forward = forward, own_ref.original_forward
        if not outer_refs and outermost is not self.forward:  # wrapped by something other than diffusers' hooks
            module.forward, own_ref.forward = outermost, own_ref.original_forward
            if vars(module).get("_old_forward") is self.forward:  # accelerate
                module._old_forward = own_ref.original_forward
        elif self.plain and not registry.hooks:
            vars(module).pop("forward", None)  # the class's own again


class Handle:
    """A method attached to a pipeline. Leave the `with` block or call `remove()` to undo everything."""

    def __init__(self, pipe: Any, method: Method, guidance_scale: float | None = None) -> None:
        self._recorder = Recorder(method)
        self._hooked: list[_Hooked] = []
        self._transformers: list[Any] = []
        self._undo_patch: Callable[[], None] = lambda: None
        modules = list(dict.fromkeys(transformers_of(pipe).values()))
        if not modules:
            raise TypeError(f"{type(pipe).__name__} has no transformer to attach {method.NAME} to")
        for module in modules:
            _refuse_if_taken(module, method)
            method = method.for_backbone(anatomy_of(module))
        self.method = method
        self._pipe = pipe
        self._generation = Generation(method, self._recorder, Clock(pipe, guidance_scale))
        roots = [StepHook(anatomy_of(module), self._generation) for module in modules]
        plans = [
            (module, root, method.modules(root.anatomy, module)) for module, root in zip(modules, roots, strict=True)
        ]
        try:
            for module, root, paths in plans:
                self._hooked.append(_Hooked(module, root, root=True))
                self._transformers.append(module)
                module._cache_config = method  # so that diffusers refuses a second cache
                module.disable_cache = self.remove  # diffusers' own method knows only its own caches
                for path in paths:
                    self._hooked.append(_Hooked(module.get_submodule(path), ModuleHook(root, path), root=False))
                module._diffusers_hook.invalidate_child_registries_cache()
            self._undo_patch = method.patch(pipe)
        except BaseException:
            self.remove()
            raise

    @property
    def traces(self) -> list[Trace]:
        """One trace per pipeline call since the method was applied."""
        return self._recorder.traces

    @property
    def trace(self) -> Trace:
        """The trace of the latest pipeline call. Raises LookupError before the first."""
        if not self.traces:
            raise LookupError("no pipeline call yet: the transformer was not run since apply()")
        return self.traces[-1]

    @property
    def in_progress(self) -> tuple[Denoiser, Rule]:
        """The pipeline call in progress and the rule at work in it. Raises LookupError between calls."""
        denoiser, rule = self._generation.denoiser, self._generation.rule
        if denoiser is None or rule is None:
            raise LookupError("no pipeline call is in progress")
        return denoiser, rule

    def remove(self) -> None:
        """Detach; the pipeline is what it was before. Safe to call twice, and with other hooks attached since."""
        present = set(transformers_of(self._pipe).values())
        if self._transformers and present and present.isdisjoint(self._transformers):
            warnings.warn(
                f"{self.method.NAME}: the pipeline's transformer was replaced while the method was attached, and calls"
                " of the new one were not cached; replace it first, then apply the method",
                stacklevel=2,
            )
        for hooked in self._hooked:
            hooked.undo()
        for module in self._transformers:
            module._diffusers_hook.invalidate_child_registries_cache()
            for name in ("_cache_config", "disable_cache"):  # the class's own show again
                vars(module).pop(name, None)
        self._hooked, self._transformers = [], []
        self._undo_patch()
        self._undo_patch = lambda: None
        self._generation.forget()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def apply(pipe: Any, method: Method, guidance_scale: float | None = None) -> Handle:
    """Attach `method` to a diffusers pipeline; every later call of the pipeline uses it until the handle is removed.

    Apply before `enable_model_cpu_offload()`, which otherwise drops the hook after the first video.
    `guidance_scale` is for pipelines that do not publish their own (HunyuanVideo's `true_cfg_scale`).
    Raises TypeError for an unsupported pipeline; ValueError if its transformer already has a cache or is offloaded, if
    it publishes a guidance scale and one is given, or if the method cannot work on this family.
    """
    return Handle(pipe, method, guidance_scale)


def _refuse_if_taken(module: Any, method: Method) -> None:
    if getattr(module, "is_cache_enabled", False):
        raise ValueError("the transformer already has a cache; remove it before applying another")
    if hasattr(module, "_hf_hook"):
        raise ValueError(
            f"the transformer is already offloaded by accelerate, which would drop {method.NAME} after the first"
            " video: apply the cache first, then call enable_model_cpu_offload()"
        )
