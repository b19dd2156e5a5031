"""Tiny backbones that the project trains itself: their world, training, weights, and a check that they obey prompts."""
