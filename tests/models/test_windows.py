"""Models of a fixed temporal extent: what a window sees, and the mean over windows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convgru_fused.models import C3D, EarlyFusion, FrameStack, LateFusion, SingleFrame, SlowFusion
from convgru_fused.models.c3d import _Pool

MODELS = {
    "single": (SingleFrame, 1),
    "early": (EarlyFusion, 10),
    "late": (LateFusion, 16),
    "slow": (SlowFusion, 10),
    "c3d": (C3D, 10),
}
each = pytest.mark.parametrize(("model", "frames"), MODELS.values(), ids=MODELS)


def clip(T, N=2):
    return torch.randn(N, T, 1, 32, 32)


def stack(frames, stride=None, average="probabilities"):
    return FrameStack(2, nn.Flatten(), (1, 1, 1), frames, stride, average)


@pytest.mark.parametrize(
    ("T", "frames", "stride", "starts"),
    [
        (6, 6, None, [0]),
        (12, 6, None, [0, 6]),
        (13, 6, None, [0, 6, 7]),
        (8, 4, 2, [0, 2, 4]),
        (9, 4, 3, [0, 3, 5]),
        (3, 1, None, [0, 1, 2]),
    ],
)
def test_windows(T, frames, stride, starts):
    """Every frame is in a window, and the last window ends with the clip."""
    x = torch.arange(2.0 * T).view(2, T, 1, 1, 1)
    windows = stack(frames, stride).windows(x)
    assert windows.shape == (2, len(starts), frames, 1, 1, 1)
    assert windows[:, :, 0].flatten(1).tolist() == [
        [float(s) for s in starts],
        [float(T + s) for s in starts],
    ]
    assert set(windows[0].flatten().tolist()) == set(x[0].flatten().tolist())


def test_scores_are_the_mean_of_the_windows_probabilities():
    x = torch.randn(3, 4, 1, 1, 1)
    expected = (x[:, :2].flatten(1).softmax(1) + x[:, 2:].flatten(1).softmax(1)) / 2
    torch.testing.assert_close(stack(2)(x).exp(), expected)


def test_windows_trained_one_at_a_time():
    """The loss is the mean of the windows' own."""
    x, labels = torch.randn(3, 4, 1, 1, 1), torch.tensor([0, 1, 1])
    loss = F.nll_loss(stack(2, average="log_probabilities")(x), labels)
    losses = [F.cross_entropy(window.flatten(1), labels) for window in (x[:, :2], x[:, 2:])]
    torch.testing.assert_close(loss, sum(losses) / 2)


@each
def test_average_of_all(model, frames):
    network = model.small(4, average="log_probabilities").eval()
    x = clip(2 * frames)
    network.average = "probabilities"
    windows = [network(x[:, start : start + frames]) for start in (0, frames)]
    network.average = "log_probabilities"
    torch.testing.assert_close(network(x), sum(windows) / 2)


@each
def test_forward_and_backward(model, frames):
    network = model.small(4)
    assert network.frames == frames
    scores = network(clip(2 * frames + 1))
    assert scores.shape == (2, 4)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))
    scores[:, 0].sum().backward()
    assert all(p.grad.any() for p in network.parameters())


@each
def test_windows_may_come_in_any_order(model, frames):
    network, x = model.small(4).eval(), clip(2 * frames)
    swapped = torch.cat([x[:, frames:], x[:, :frames]], dim=1)
    torch.testing.assert_close(network(x), network(swapped))


@each
def test_order_within_a_window_counts_but_for_a_single_frame(model, frames):
    network, x = model.small(4).eval(), clip(frames)
    assert torch.allclose(network(x), network(x.flip(1))) == (model is SingleFrame)


@each
def test_frames_that_a_window_depends_on(model, frames):
    network, x = model.small(4).double().eval(), clip(frames).double().requires_grad_()
    network(x)[:, 0].sum().backward()
    seen = x.grad.flatten(2).any(-1).any(0).nonzero().flatten().tolist()
    assert seen == ([0, frames - 1] if model is LateFusion else list(range(frames)))


def test_late_fusion_is_one_tower_twice():
    """The first dense layer sees the first frame's features, then the last one's."""
    network, x = LateFusion.small(4, distance=3).eval(), clip(4)
    features = [network.features(x[:, t]).flatten(1) for t in (0, 3)]
    expected = network.classifier(torch.cat(features, dim=1)).log_softmax(-1)
    torch.testing.assert_close(network(x), expected)


def test_early_fusion_sums_over_frames():
    """Its first layer is the sum of one convolution a frame."""
    network, x = EarlyFusion.small(4, frames=3), clip(3)
    first = network.network[0][0]
    parts = [
        nn.functional.conv2d(x[:, t], first.weight[:, t : t + 1], first.bias if t == 0 else None, padding=2)
        for t in range(3)
    ]
    torch.testing.assert_close(first(x.flatten(1, 2)), sum(parts))


def test_c3d_pool_pads_odd_maps_and_clips_time():
    x = torch.arange(2.0 * 7 * 7).view(1, 1, 2, 7, 7)
    pooled = _Pool(2)(x)
    assert pooled.shape == (1, 1, 1, 4, 4)
    rows = [0, 2, 4, 6]  # the border is in front of the first row too
    assert torch.equal(pooled[0, 0, 0], x[0, 0, 1][rows][:, rows])
    assert _Pool(2)(x[:, :, :1, :6, :6]).shape == (1, 1, 1, 3, 3)
    assert _Pool(1)(x).shape == (1, 1, 2, 4, 4)


def test_single_frame_takes_another_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 4))
    model, x = SingleFrame(4, frame_shape=(1, 32, 32), network=network), clip(3)
    expected = torch.stack([network(x[:, t]).softmax(-1) for t in range(3)]).mean(0)
    torch.testing.assert_close(model(x).exp(), expected)


def test_a_network_with_other_outputs_is_reported():
    model = SingleFrame(5, frame_shape=(1, 32, 32), network=nn.Flatten())
    with pytest.raises(ValueError, match=r"network: expected logits of shape \(6, 5\), got \(6, 1024\)"):
        model(clip(3))
