"""Open-Sora 1.2 in diffusers' style, which diffusers itself does not have: transformer, VAE, pipeline, conversion."""

from .transformer import STDiT3Transformer3DModel

__all__ = ["STDiT3Transformer3DModel"]
