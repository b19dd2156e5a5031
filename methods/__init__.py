"""Training-free caching methods for diffusers' video transformers.

from methods import PreciseCacheConfig, apply

with apply(pipe, PreciseCacheConfig(alpha=0.7)) as cache:
    video = pipe(prompt).frames[0]
print(cache.trace.summary())
"""

from .core import Handle, apply
from .method import Cache, Method, StepwiseCache
from .precisecache import PreciseCacheConfig
from .schedule import FewerStepsConfig, NoCacheConfig, ReplayConfig, UniformConfig
from .trace import Call, Step, Trace

__all__ = [
    "Cache",
    "Call",
    "FewerStepsConfig",
    "Handle",
    "Method",
    "NoCacheConfig",
    "PreciseCacheConfig",
    "ReplayConfig",
    "Step",
    "StepwiseCache",
    "Trace",
    "UniformConfig",
    "apply",
]
