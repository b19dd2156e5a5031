"""How close a video is to the uncached video of the same prompt and seed."""
