"""diffusers' group offloading loads weights when a module is called: code that uses only a part must ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from torch import nn


def onload(transformer: nn.Module, *paths: str, alone: bool = False) -> None:
    """Load the offloaded weights of modules, of the modules they are in and of those inside them, onto their device.

    alone: without the modules inside them. diffusers offloads a group again after the group's next run, so that at most
    these groups stay until then.
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
