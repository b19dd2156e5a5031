"""Makes PyPI's torchvision, built for CUDA, importable beside a CPU torch, as far as its Python code goes.

For `make test-lpips` alone, which names this file to pytest as a plugin, so that it comes before diffusers is imported.
The compiled operators cannot load there, and torchvision stops at their missing schemas; with two schemas declared
everything that needs no operator works. A user with matching builds needs nothing of this.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_declared: list[torch.library.Library] = []  # a library lives as long as its object


def make_importable() -> None:
    """Import torchvision; if only its operators' schemas are missing, declare them and import it again."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        importlib.import_module("torchvision")


make_importable()
