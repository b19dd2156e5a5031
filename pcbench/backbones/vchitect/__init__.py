"""Vchitect-2.0, which diffusers does not have."""

from .transformer import VchitectTransformer3DModel

__all__ = ["VchitectTransformer3DModel"]
