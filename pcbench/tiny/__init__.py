"""Tiny backbones the project trains itself: the world, the training, the weights and the report of what they obey."""
