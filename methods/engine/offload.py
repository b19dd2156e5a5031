"""diffusers' group offloading brings a module's weights when it is called: who looks at a part of one asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from torch import nn


def onload(transformer: nn.Module, *paths: str, alone: bool = False) -> None:
    """Bring the weights of modules to their device if they wait elsewhere, and those of the modules they are in.

    alone: not those of the modules inside them. diffusers takes a group away again after its own next run, so at most
    these groups stay meanwhile.
    """
    groups: dict[int, Any] = {}
    for path in paths:
        for module in _around(transformer, path, alone):
            registry = getattr(module, "_diffusers_hook", None)
            hook = None if registry is None else registry.get_hook(_GROUP_OFFLOADING)
            if hook is not None:
                groups[id(hook.group)] = hook.group
    for group in groups.values():
        group.onload_()
        if group.stream is not None:
            group.stream.synchronize()


def _around(transformer: nn.Module, path: str, alone: bool) -> Iterator[nn.Module]:
    module = transformer
    for name in path.split("."):
        yield module
        module = module.get_submodule(name)
    yield from [module] if alone else module.modules()
