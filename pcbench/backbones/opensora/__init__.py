"""Open-Sora 1.2, which diffusers does not have, in diffusers' style: transformer, VAE, pipeline, conversion."""

from .transformer import STDiT3Transformer3DModel

__all__ = ["STDiT3Transformer3DModel"]
