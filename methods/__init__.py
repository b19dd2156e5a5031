"""Training-free caching methods for diffusers' video transformers.

from methods import PreciseCacheConfig, apply

with apply(pipe, PreciseCacheConfig(alpha=0.7)) as cache:
    video = pipe(prompt).frames[0]
print(cache.trace.summary())
"""

from .core import Handle, Method, apply
from .precisecache import PreciseCacheConfig
from .schedule import FewerStepsConfig, NoCacheConfig, UniformConfig
from .trace import Step, Trace

__all__ = [
    "FewerStepsConfig",
    "Handle",
    "Method",
    "NoCacheConfig",
    "PreciseCacheConfig",
    "Step",
    "Trace",
    "UniformConfig",
    "apply",
]
