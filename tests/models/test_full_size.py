"""The published sizes: parameters and maps, on meta tensors, which cost nothing."""

import pytest
import torch

from convgru_fused.models import (
    C3D,
    GRURCN,
    LRCN,
    ConvLSTM,
    EarlyFusion,
    LateFusion,
    SingleFrame,
    SlowFusion,
    Trunk,
    TwoStream,
)
from convgru_fused.models.c3d import _Pool


@pytest.fixture(autouse=True)
def _meta():
    with torch.device("meta"):
        yield


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_gru_rcn():
    """3k^2(C*K + K^2) for each layer, and 19,353,600 in all."""
    model = GRURCN(101)
    assert model.map_shapes == {
        "pool2": (128, 56, 56),
        "pool3": (256, 28, 28),
        "pool4": (512, 14, 14),
        "pool5": (512, 7, 7),
        "fc7": (4096, 1, 1),
    }
    assert [count(r) for r in model.recurrences] == [331_776, 1_327_104, 5_308_416, 5_308_416, 7_077_888]
    assert count(model.recurrences) == 19_353_600
    assert count(model.from_below) == 0
    assert [c.linear.in_features for c in model.classifiers] == [64, 128, 256, 256, 512]
    assert all(c.dropout.p == 0.7 for c in model.classifiers)
    clip = torch.empty(2, 10, 3, 224, 224)
    assert [tuple(x.shape) for x in model.maps(clip)] == [
        (2, 10, *shape) for shape in model.map_shapes.values()
    ]
    assert model.layer_scores(clip).shape == (2, 5, 101)
    assert model(clip).shape == (2, 101)


def test_stacked_gru_rcn_adds_the_convolutions_of_the_layers_below():
    model = GRURCN(101, stacked=True)
    assert count(model.from_below) == 2_179_072
    assert count(model.recurrences) == 19_353_600
    assert model(torch.empty(1, 3, 3, 224, 224)).shape == (1, 101)


def test_bidirectional_gru_rcn_doubles_the_recurrences():
    model = GRURCN(101, bidirectional=True)
    assert count(model.recurrences) == 2 * 19_353_600
    assert [c.linear.in_features for c in model.classifiers] == [128, 256, 512, 512, 1024]
    assert model(torch.empty(1, 3, 3, 224, 224)).shape == (1, 101)


def test_conv_lstm_has_four_gates_where_the_gru_has_three():
    assert count(ConvLSTM(101, bias=False).recurrences) == 19_353_600 // 3 * 4


def test_c3d():
    model = C3D(101)
    convolutions = [count(m) for m in model.features if isinstance(m, torch.nn.Conv3d)]
    assert convolutions == [
        5_248, 221_312, 884_992, 1_769_728, 3_539_456, 7_078_400, 7_078_400, 7_078_400,
    ]  # fmt: skip
    assert sum(convolutions) == 27_655_936  # 27.66 M
    dense = [count(m) for m in model.classifier if isinstance(m, torch.nn.Linear)]
    assert dense == [33_558_528, 16_781_312, 4096 * 101 + 101]

    pooled, x = [], torch.empty(1, 3, 16, 112, 112)
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, _Pool):
            pooled.append(tuple(x.shape[1:]))
    assert pooled == [
        (64, 16, 56, 56),
        (128, 8, 28, 28),
        (256, 4, 14, 14),
        (512, 2, 7, 7),
        (512, 1, 4, 4),
    ]
    assert model(torch.empty(2, 16, 3, 112, 112)).shape == (2, 101)


def shapes_after_pools(network, x):
    shapes = [tuple(x.shape)]
    for layer in network:
        x = layer(x)
        if isinstance(layer, (torch.nn.MaxPool2d, torch.nn.MaxPool3d)):
            shapes.append(tuple(x.shape))
    return shapes[1:]


def test_karpathy_maps_of_an_89x89_stream():
    """conv1 30x30, then 15, 8 and 4x4x256."""
    features = Trunk().convolutions(3)
    assert features[0](torch.empty(1, 3, 89, 89)).shape == (1, 96, 30, 30)
    assert shapes_after_pools(features, torch.empty(1, 3, 89, 89)) == [
        (1, 96, 15, 15),
        (1, 256, 8, 8),
        (1, 256, 4, 4),
    ]


def test_karpathy_parameters():
    single, early, slow = SingleFrame(487), EarlyFusion(487), SlowFusion(487)
    norms = [type(m) for m in single.network[0] if isinstance(m, torch.nn.LocalResponseNorm)]
    assert len(norms) == 2
    # Early fusion: 11x11x3xT filters with T=10, nine times more than a single frame's.
    assert early.network[0][0].weight.shape == (96, 10 * 3, 11, 11)
    assert count(early) - count(single) == 9 * 96 * 3 * 11 * 11
    extents = [m.weight.shape[2] for m in slow.features if isinstance(m, torch.nn.Conv3d)]
    assert extents == [4, 2, 2, 1, 1]
    assert count(slow) - count(single) == 3 * 96 * 3 * 121 + 96 * 256 * 25 + 256 * 384 * 9
    # Late fusion: twice the inputs of the first dense layer, towers shared.
    late = LateFusion(487)
    assert late.classifier[0].in_features == 2 * single.network[2][0].in_features
    assert count(late.features) == count(single.network[0])


def test_slow_fusion_has_4_2_and_1_responses_in_time():
    x, steps = torch.empty(1, 3, 10, 170, 170), []
    for layer in SlowFusion(487).features:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv3d):
            steps.append(x.size(2))
    assert steps == [4, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("model", "frames"), [(SingleFrame, 1), (EarlyFusion, 10), (LateFusion, 16), (SlowFusion, 10)]
)
def test_karpathy_windows(model, frames):
    model = model(487)
    assert model.frames == frames
    assert model(torch.empty(2, 16, 3, 170, 170)).shape == (2, 487)


def test_two_stream():
    """L = 10 fields are 20 channels of the first, 7x7 convolution with a stride of 2."""
    model = TwoStream(101)
    for stream, channels in ((model.spatial, 3), (model.temporal, 20)):
        first = stream.network[0][0]
        assert first.weight.shape == (96, channels, 7, 7) and first.stride == (2, 2)
        assert [m.out_features for m in stream.network[2] if isinstance(m, torch.nn.Linear)] == [
            4096, 2048, 101,
        ]  # fmt: skip
    norms = [
        sum(isinstance(m, torch.nn.LocalResponseNorm) for m in stream.network[0])
        for stream in (model.spatial, model.temporal)
    ]
    assert norms == [2, 1]  # the temporal net drops the second
    clip, flow = torch.empty(2, 11, 3, 224, 224), torch.empty(2, 10, 2, 224, 224)
    assert model.stream_scores(clip, flow).shape == (2, 2, 101)
    assert model(clip, flow).shape == (2, 101)


def test_lrcn():
    model = LRCN(101)
    assert (model.recurrence.input_size, model.recurrence.hidden_size) == (4096, 256)
    assert model.step_scores(torch.empty(2, 16, 3, 224, 224)).shape == (2, 16, 101)
    rnn = LRCN.vgg16_rnn(101)
    assert count(rnn.recurrence) == 7_077_888
    assert rnn(torch.empty(2, 16, 3, 224, 224)).shape == (2, 101)
