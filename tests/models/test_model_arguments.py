"""Wrong constructor arguments and clips: errors that say what was expected and what came."""

import pytest
import torch
from torch import nn

from convgru_fused.models import (
    C3D,
    GRURCN,
    LRCN,
    VGG,
    ConvLSTM,
    EarlyFusion,
    FlowStack,
    FrameStack,
    LateFusion,
    SingleFrame,
    SlowFusion,
    Trunk,
    TwoStream,
)

FAMILIES = [GRURCN, ConvLSTM, C3D, LRCN, TwoStream, SingleFrame, EarlyFusion, LateFusion, SlowFusion]
each_family = pytest.mark.parametrize("family", FAMILIES)
CLIP_FAMILIES = [family for family in FAMILIES if family is not TwoStream]


@each_family
@pytest.mark.parametrize(
    ("num_classes", "error", "message"),
    [
        (0, ValueError, "num_classes: expected at least 1, got 0"),
        (2.0, TypeError, "num_classes: expected an int, got float"),
        (True, TypeError, "num_classes: expected an int, got bool"),
    ],
)
def test_num_classes(family, num_classes, error, message):
    with pytest.raises(error, match=message):
        family.small(num_classes)


@each_family
@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (32, TypeError, "frame_shape: expected a sequence of ints, got 32"),
        ((32, 32), ValueError, r"frame_shape: expected 3 sizes, got \(32, 32\)"),
        ((1, 32, 0), ValueError, r"frame_shape: expected sizes of at least 1, got \(1, 32, 0\)"),
        ((1, 32.0, 32), TypeError, "frame_shape: expected a sequence of ints"),
    ],
)
def test_frame_shape(family, shape, error, message):
    with pytest.raises(error, match=message):
        family.small(3, frame_shape=shape)


@pytest.mark.parametrize("family", CLIP_FAMILIES)
@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        ([1.0], TypeError, "clip: expected a Tensor, got list"),
        (
            torch.zeros(1, 16, 1, 32, 32, dtype=torch.uint8),
            TypeError,
            "clip: expected a floating-point dtype",
        ),
        (
            torch.zeros(16, 1, 32, 32),
            ValueError,
            r"clip: expected \(N,T,1,32,32\), got shape \(16, 1, 32, 32\)",
        ),
        (torch.zeros(1, 16, 3, 32, 32), ValueError, r"clip: expected \(N,T,1,32,32\), got shape"),
        (torch.zeros(1, 16, 1, 32, 31), ValueError, r"clip: expected \(N,T,1,32,32\), got shape"),
        (torch.zeros(1, 0, 1, 32, 32), ValueError, r"clip: expected at least \d+ frames, got 0"),
    ],
)
def test_clip(family, clip, error, message):
    with pytest.raises(error, match=message):
        family.small(3)(clip)


@pytest.mark.parametrize("family", [C3D, EarlyFusion, SlowFusion])
def test_a_clip_shorter_than_a_window(family):
    with pytest.raises(ValueError, match="clip: expected at least 10 frames, got 9"):
        family.small(3)(torch.zeros(1, 9, 1, 32, 32))


WRONG = [
    (GRURCN, dict(hidden_sizes=(1, 2)), ValueError, r"hidden_sizes: expected 5 sizes, got \(1, 2\)"),
    (GRURCN, dict(hidden_sizes=8), TypeError, "hidden_sizes: expected a sequence of ints, got 8"),
    (GRURCN, dict(kernel_size=2), ValueError, "kernel_size: expected an odd size, got 2"),
    (GRURCN, dict(kernel_size=(3, 3)), TypeError, "kernel_size: expected an int, got tuple"),
    (GRURCN, dict(dropout=1.5), ValueError, "dropout: expected at least 0 and at most 1, got 1.5"),
    (GRURCN, dict(dropout=float("nan")), ValueError, "dropout: expected at least 0"),
    (GRURCN, dict(dropout="no"), TypeError, "dropout: expected a number, got str"),
    (GRURCN, dict(stacked=1), TypeError, "stacked: expected a bool, got int"),
    (GRURCN, dict(bidirectional=None), TypeError, "bidirectional: expected a bool, got NoneType"),
    (GRURCN, dict(stacked=True, bidirectional=True), ValueError, "stacked: expected False together with"),
    (GRURCN, dict(variant="lstm"), ValueError, "variant: expected one of .*, got 'lstm'"),
    (GRURCN, dict(backbone="vgg"), TypeError, "backbone: expected a torch.nn.Module, got str"),
    (GRURCN, dict(memory=1.5, bias=True), ValueError, "memory: expected at least 2, got 1.5"),
    (GRURCN, dict(memory="long"), TypeError, "memory: expected a number, got str"),
    (GRURCN, dict(memory=8), ValueError, "memory: expected None together with bias=False, got 8"),
    (C3D, dict(width=-1), ValueError, "width: expected at least 0, got -1"),
    (SingleFrame, dict(width="wide"), TypeError, "width: expected a number, got str"),
    (GRURCN, dict(average="max"), ValueError, "average: expected one of 'probabilities', 'log_prob"),
    (ConvLSTM, dict(average=2), ValueError, "average: expected one of 'probabilities', 'log_prob"),
    (ConvLSTM, dict(bias="yes"), TypeError, "bias: expected a bool, got str"),
    (ConvLSTM, dict(kernel_size=4), ValueError, "kernel_size: expected an odd size, got 4"),
    (C3D, dict(average="max"), ValueError, "average: expected one of 'probabilities', 'log_prob"),
    (TwoStream, dict(flow_stride=0), ValueError, "flow_stride: expected at least 1, got 0"),
    (TwoStream, dict(average=None), ValueError, "average: expected one of 'probabilities', 'log_prob"),
    (C3D, dict(frames=0), ValueError, "frames: expected at least 1, got 0"),
    (C3D, dict(stride=0), ValueError, "stride: expected at least 1, got 0"),
    (C3D, dict(blocks=3), TypeError, "blocks: expected a sequence of sequences of ints, got 3"),
    (C3D, dict(blocks=(3,)), TypeError, r"blocks\[0\]: expected a sequence of ints, got 3"),
    (C3D, dict(blocks=((3,), ())), ValueError, r"blocks\[1\]: expected at least one sizes, got \(\)"),
    (C3D, dict(dense=(0,)), ValueError, r"dense: expected sizes of at least 1, got \(0,\)"),
    (C3D, dict(dropout=-1), ValueError, "dropout: expected at least 0 and at most 1, got -1"),
    (LRCN, dict(recurrence="rnn"), ValueError, "recurrence: expected one of 'lstm', 'gru', got 'rnn'"),
    (LRCN, dict(readout="first"), ValueError, "readout: expected one of 'mean', 'last', got 'first'"),
    (LRCN, dict(hidden_size=0), ValueError, "hidden_size: expected at least 1, got 0"),
    (LRCN, dict(num_layers=1.0), TypeError, "num_layers: expected an int, got float"),
    (LRCN, dict(bias=2), TypeError, "bias: expected a bool, got int"),
    (LRCN, dict(memory=1), ValueError, "memory: expected at least 2, got 1"),
    (LRCN, dict(memory=8, bias=False), ValueError, "memory: expected None together with bias=False, got 8"),
    (LRCN, dict(dropout=2), ValueError, "dropout: expected at least 0 and at most 1, got 2"),
    (TwoStream, dict(flow_frames=0), ValueError, "flow_frames: expected at least 1, got 0"),
    (TwoStream, dict(flow_weight=2), ValueError, "flow_weight: expected at least 0 and at most 1, got 2"),
    (TwoStream, dict(spatial=3), TypeError, "spatial: expected a torch.nn.Module, got int"),
    (TwoStream, dict(temporal=3), TypeError, "temporal: expected a torch.nn.Module, got int"),
    (SingleFrame, dict(network=3), TypeError, "network: expected a torch.nn.Module, got int"),
    (SingleFrame, dict(trunk=3), TypeError, "trunk: expected a Trunk, got int"),
    (EarlyFusion, dict(frames="ten"), TypeError, "frames: expected an int, got str"),
    (LateFusion, dict(distance=0), ValueError, "distance: expected at least 1, got 0"),
    (SlowFusion, dict(stride=2.0), TypeError, "stride: expected an int, got float"),
]


@pytest.mark.parametrize(("family", "options", "error", "message"), WRONG, ids=str)
def test_options(family, options, error, message):
    with pytest.raises(error, match=message):
        family.small(3, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VGG(blocks=3), TypeError, "blocks: expected a sequence of sequences of ints, got 3"),
        (
            lambda: VGG(((4,),), (3,), layers=("pool2",)),
            ValueError,
            "layers: expected some of pool1, fc2, got",
        ),
        (lambda: VGG(((4,),), (3,), in_channels=0), ValueError, "in_channels: expected at least 1, got 0"),
        (lambda: VGG(((4,),), (3,), pool_size="7"), TypeError, "pool_size: expected an int, got str"),
        (lambda: Trunk(widths=(1, 2)), ValueError, r"widths: expected 5 sizes, got \(1, 2\)"),
        (lambda: Trunk(first_stride=0), ValueError, "first_stride: expected at least 1, got 0"),
        (lambda: FrameStack(3, nn.Flatten(), (1, 2, 2), 0), ValueError, "frames: expected at least 1, got 0"),
        (
            lambda: FlowStack(3, nn.Flatten(), (3, 2, 2)),
            ValueError,
            r"frame_shape: expected \(2,H,W\) of flow",
        ),
        (
            lambda: TwoStream(3, frame_shape=(3, 20, 20)),
            ValueError,
            "frame_shape: expected frames large enough",
        ),
        (lambda: C3D(3, frame_shape=(3, 0, 20)), ValueError, "frame_shape: expected sizes of at least 1"),
    ],
)
def test_parts(make, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        make()
