"""Training-free caching methods for diffusers' video transformers.

from methods import PreciseCacheConfig, apply

with apply(pipe, PreciseCacheConfig(alpha=0.7)) as cache:
    video = pipe(prompt).frames[0]
print(cache.trace.summary())
"""

from .adacache import AdaCacheConfig
from .controlled import ControlledConfig
from .corrected import CorrectedConfig
from .dbcache import DBCacheConfig
from .dicache import DiCacheConfig
from .easycache import EasyCacheConfig
from .engine.attach import Handle, apply
from .engine.method import Cache, Method, StepwiseCache
from .engine.trace import Call, Step, Trace
from .fastercache import FasterCacheConfig
from .first_block_cache import FirstBlockCacheConfig
from .magcache import MagCacheConfig
from .pab import PABConfig
from .planned import PlannedConfig
from .precisecache import PreciseCacheConfig
from .schedule import FewerStepsConfig, NoCacheConfig, ReplayConfig, UniformConfig
from .seacache import SeaCacheConfig
from .searched import SearchedConfig
from .sencache import SenCacheConfig
from .taylorseer import ForaConfig, TaylorSeerConfig
from .teacache import TeaCacheConfig

__all__ = [
    "AdaCacheConfig",
    "Cache",
    "Call",
    "ControlledConfig",
    "CorrectedConfig",
    "DBCacheConfig",
    "DiCacheConfig",
    "EasyCacheConfig",
    "FasterCacheConfig",
    "FewerStepsConfig",
    "FirstBlockCacheConfig",
    "ForaConfig",
    "Handle",
    "MagCacheConfig",
    "Method",
    "NoCacheConfig",
    "PABConfig",
    "PlannedConfig",
    "PreciseCacheConfig",
    "ReplayConfig",
    "SeaCacheConfig",
    "SearchedConfig",
    "SenCacheConfig",
    "Step",
    "StepwiseCache",
    "TaylorSeerConfig",
    "TeaCacheConfig",
    "Trace",
    "UniformConfig",
    "apply",
]
