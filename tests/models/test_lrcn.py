"""LRCN: causal steps, both recurrences, both read-outs."""

import pytest
import torch

from convgru_fused.models import GRURCN, LRCN, VGG
from convgru_fused.models.vgg import small_vgg


def clip(T=5):
    return torch.randn(2, T, 1, 32, 32)


@pytest.mark.parametrize("recurrence", ["lstm", "gru"])
def test_a_step_depends_on_the_frames_up_to_it(recurrence):
    model, x = LRCN.small(4, recurrence=recurrence).eval(), clip()
    before = model.step_scores(x)
    changed = x.clone()
    changed[:, 3:] += 1
    after = model.step_scores(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])


@pytest.mark.parametrize("recurrence", ["lstm", "gru"])
def test_readouts(recurrence):
    model, x = LRCN.small(4, recurrence=recurrence), clip()
    steps = model.step_scores(x)
    assert steps.shape == (2, 5, 4)
    torch.testing.assert_close(model(x).exp(), steps.exp().mean(1))
    model.readout = "last"
    torch.testing.assert_close(model(x), steps[:, -1])
    model(x)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_features_are_averaged_over_pixels():
    """A map that is moved (in a circle) has the same scores: LRCN does not know places."""
    backbone = VGG(((4,), (4,)), (6,), 2, in_channels=1, pool_size=1, layers=("pool2",))
    model = LRCN(3, backbone=backbone, frame_shape=(1, 32, 32), hidden_size=5).eval()
    maps = torch.randn(2 * 3, 4, 8, 8)
    model.backbone = _Constant(maps)
    before = model(clip(3))
    model.backbone = _Constant(maps.roll((2, 3), (-2, -1)))
    torch.testing.assert_close(model(clip(3)), before)


class _Constant(torch.nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, images):
        return {"pool2": self.maps}


def test_vgg16_rnn_is_gru_rcn_on_fc7_alone(backend):
    """The same recurrence, read-out and classifier."""
    rnn = LRCN.vgg16_rnn(3, backbone=small_vgg(1, ("fc7",)), frame_shape=(1, 32, 32)).eval()
    rcn = GRURCN(3, backbone=rnn.backbone, frame_shape=(1, 32, 32), hidden_sizes=(512,)).eval()
    rcn.recurrences[0].load_state_dict(rnn.recurrence.state_dict())
    rcn.classifiers[0].linear.load_state_dict(rnn.classifier.state_dict())
    x = clip()
    torch.testing.assert_close(rnn(x), rcn(x))
    assert rnn.dropout.p == rcn.classifiers[0].dropout.p == 0.7


def test_layers_on_each_other():
    assert LRCN.small(4, num_layers=2).recurrence.num_layers == 2
    assert LRCN.small(4, num_layers=2, recurrence="gru")(clip()).shape == (2, 4)


def test_memory():
    """Where nothing comes in, the LSTM's cell loses an eighth a step."""
    lstm = LRCN.small(2, hidden_size=3, memory=8).recurrence
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if "weight" in name:
                parameter.zero_()
            else:
                parameter.chunk(4)[2].zero_()  # of what comes in
    ones = torch.ones(1, 1, 3)
    _, (_, cell) = lstm(torch.zeros(1, 5, lstm.input_size), (ones, ones))
    torch.testing.assert_close(cell, ones * (7 / 8) ** 5)
