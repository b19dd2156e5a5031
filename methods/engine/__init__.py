"""The machinery under every method: hooks on the transformer, the clock of steps and branches, what a step reuses."""
