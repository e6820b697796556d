"""ConvLSTM against torch.nn.LSTM and against its equations."""

import torch
from torch import nn

from convgru_fused.models import GRURCN, ConvLSTM
from convgru_fused.models.convlstm import ConvLSTMLayer


def test_a_1x1_kernel_is_torch_lstm_at_every_pixel():
    lstm = nn.LSTM(3, 4, batch_first=True).double()
    layer = ConvLSTMLayer(3, 4, 1).double()
    order = torch.tensor([0, 1, 3, 2])  # torch's gates are i, f, g, o
    with torch.no_grad():
        for conv, weight in ((layer.input, lstm.weight_ih_l0), (layer.state, lstm.weight_hh_l0)):
            conv.weight.copy_(weight.unflatten(0, (4, 4))[order].flatten(0, 1)[..., None, None])
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        layer.input.bias.copy_(bias.unflatten(0, (4, 4))[order].flatten())
    x = torch.randn(2, 5, 3, 2, 3, dtype=torch.float64)
    output = layer(x)
    assert output.shape == (2, 5, 4, 2, 3)
    for row in range(2):
        for column in range(3):
            expected, _ = lstm(x[..., row, column])
            torch.testing.assert_close(output[..., row, column], expected)


def test_a_3x3_kernel_reaches_one_pixel_further_each_step():
    layer = ConvLSTMLayer(1, 2, 3).double()
    x = torch.zeros(1, 4, 1, 11, 11, dtype=torch.float64)
    before = layer(x)
    x[0, 0, 0, 5, 5] = 1.0
    changed = ((layer(x) - before).abs() > 0).any(2)[0]  # (T,H,W)
    for t in range(4):
        rows, columns = changed[t].nonzero(as_tuple=True)
        assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (4 - t, 6 + t)


def test_forget_gates_start_open():
    layer = ConvLSTMLayer(3, 4, 3)
    assert layer.input.bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8
    assert ConvLSTMLayer(3, 4, 3, bias=False).input.bias is None


def test_interface_is_that_of_gru_rcn():
    x = torch.randn(2, 3, 1, 32, 32)
    lstm, gru = ConvLSTM.small(4), GRURCN.small(4)
    assert lstm.layer_names == gru.layer_names and lstm.kernel_sizes == gru.kernel_sizes
    scores = lstm(x)
    torch.testing.assert_close(scores.exp(), lstm.layer_scores(x).exp().mean(1))
    scores.sum().backward()
    assert all(p.grad is not None for p in lstm.parameters() if p.requires_grad)


def test_last_state_is_read():
    model, x = ConvLSTM.small(4).eval(), torch.randn(2, 3, 1, 32, 32)
    maps = model.maps(x)
    expected = model.recurrences[0](maps[0])[:, -1]
    assert torch.equal(model.last_states(maps)[0], expected)
