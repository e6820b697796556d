"""Replacing the ConvGRUs of a model that exists.

recording        what a module computes, by running it
rules            what each operator does to channels
channels         polynomials over ranges of channels: the same formula however it is written
recognition      is that a step of a ConvGRU?
rolling          steps become sequences
formula          the instructions that are left, and how they are run
trial            all this on a copy of a module
verification     does the formula compute what the module does?
forward          what then stands in the place of the module's forward
examples         what to call a module with
"""

from .forward import unfuse
from .report import Record, Report
from .search import fuse

__all__ = ["Record", "Report", "fuse", "unfuse"]
