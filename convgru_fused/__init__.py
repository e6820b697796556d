"""convgru_fused: a ConvGRU for PyTorch that runs a whole sequence as one fused operator."""

from . import functional
from .backends import backends, use_backend
from .fusing import fuse, unfuse
from .modules import ConvGRU, ConvGRUCell
from .numerics import precision

__version__ = "0.1.0"
__all__ = ["ConvGRU", "ConvGRUCell", "backends", "functional", "fuse", "precision", "unfuse", "use_backend"]
