"""Video models around the ConvGRU, and those that they are compared with.

All take a clip (N,T,C,H,W), N clips of T frames, and give log-probabilities (N,num_classes): `nll_loss` fits
them, and the mean of several classifiers' probabilities is `mean_log_probabilities` of their results.
`TwoStream` takes optical flow (N,T',2,H,W) beside the clip. Constructor defaults are the published sizes;
`small` makes small networks of the same code. What is called "our choice" is not known to be the paper's.
"""

from .backbones import FrameClassifier, NamedLayers
from .c3d import C3D
from .convlstm import ConvLSTM
from .grurcn import GRURCN
from .karpathy import EarlyFusion, LateFusion, SingleFrame, SlowFusion, Trunk
from .lrcn import LRCN
from .scores import mean_log_probabilities
from .svm import SVMFusion
from .twostream import FlowStack, TwoStream
from .vgg import VGG, VGG16
from .windows import FrameStack

__all__ = [
    "C3D",
    "GRURCN",
    "LRCN",
    "VGG",
    "VGG16",
    "ConvLSTM",
    "EarlyFusion",
    "FlowStack",
    "FrameClassifier",
    "FrameStack",
    "LateFusion",
    "NamedLayers",
    "SVMFusion",
    "SingleFrame",
    "SlowFusion",
    "Trunk",
    "TwoStream",
    "mean_log_probabilities",
]
