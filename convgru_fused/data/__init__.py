"""Data for the video models."""

from .generated import GeneratedTask
from .tasks import EventOrder, LimitedLifetimeDots, PathTracker

__all__ = ["EventOrder", "GeneratedTask", "LimitedLifetimeDots", "PathTracker"]
