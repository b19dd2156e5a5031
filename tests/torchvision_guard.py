"""Makes PyPI's torchvision, built for CUDA, importable beside a CPU torch, as far as its Python code goes.

For `make test-lpips` alone, which names this file to pytest as a plugin, so that it comes before diffusers is imported.
A user with matching builds needs nothing of this.
"""

from __future__ import annotations

import importlib.util

from pcbench.vbench.worker import import_torchvision

if importlib.util.find_spec("torchvision") is not None:
    import_torchvision()
