"""pcbench: measure training-free caching methods for video diffusion transformers, side by side."""

__version__ = "0.1.0"
