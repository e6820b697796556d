"""The video models against each other: the same tasks, parameters, steps and seeds for all."""
