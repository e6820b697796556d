"""A ConvGRU of variant "cudnn" with 1x1 kernels on 1x1 images is torch.nn.GRU, gradients included."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from convgru_fused import ConvGRU, ConvGRUCell
from convgru_fused.testing import assert_close_to_reference, assert_gradients_close

T, N, C, K = 5, 3, 4, 6

OPTIONS = {
    "one-layer": {},
    "no-bias": dict(bias=False),
    "two-layers": dict(num_layers=2),
    "bidirectional": dict(bidirectional=True),
    "everything": dict(num_layers=2, bidirectional=True, batch_first=True, dropout=0.0),
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def options(request):
    return request.param


def make_pair(**options):
    """A torch.nn.GRU and the ConvGRU with its state dict."""
    gru = nn.GRU(C, K, **options, dtype=torch.float64)
    conv = ConvGRU(C, K, kernel_size=1, variant="cudnn", **options, dtype=torch.float64)
    conv.load_state_dict(
        {
            name: value[..., None, None] if value.dim() == 2 else value
            for name, value in gru.state_dict().items()
        }
    )
    return gru, conv


def images(x):
    """(..., C) as images of one pixel."""
    return x[..., None, None]


def pixels(x):
    return x.flatten(-3)


def make_inputs(gru):
    shape = (N, T, C) if gru.batch_first else (T, N, C)
    directions = 2 if gru.bidirectional else 1
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(gru.num_layers * directions, N, K, dtype=torch.float64, requires_grad=True)
    return x, hx


def gradients(module, output, h_n, **leaves):
    """Of a function of output and h_n, by the leaves and all parameters."""
    leaves = {**leaves, **dict(module.named_parameters())}
    value = (
        output.sin() * torch.linspace(1, 2, output.size(-1), dtype=torch.float64)
    ).sum() + h_n.cos().sum()
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def assert_same(actual, expected):
    """(output, h_n, gradients) of the two; the gradients of convolution weights have two more dimensions."""
    assert_close_to_reference(actual[0], expected[0])
    assert_close_to_reference(actual[1], expected[1], "h_n")
    shaped = {name: g.view_as(expected[2][name]) for name, g in actual[2].items()}
    assert_gradients_close(shaped, expected[2])


@pytest.mark.parametrize("given", [True, False], ids=["hx", "no-hx"])
def test_values_and_gradients(backend, options, given):
    gru, conv = make_pair(**options)
    x, hx = make_inputs(gru)
    leaves = dict(x=x, hx=hx) if given else dict(x=x)
    output, h_n = gru(*leaves.values())
    expected = output, h_n, gradients(gru, output, h_n, **leaves)
    output, h_n = (pixels(t) for t in conv(*map(images, leaves.values())))
    assert_same((output, h_n, gradients(conv, output, h_n, **leaves)), expected)


def test_unbatched(backend, options):
    gru, conv = make_pair(**options)
    x, hx = make_inputs(gru)
    x, hx = (
        (x[0] if gru.batch_first else x[:, 0]).detach().requires_grad_(),
        hx[:, 0].detach().requires_grad_(),
    )
    output, h_n = gru(x, hx)
    expected = output, h_n, gradients(gru, output, h_n, x=x, hx=hx)
    output, h_n = (pixels(t) for t in conv(images(x), images(hx)))
    assert_same((output, h_n, gradients(conv, output, h_n, x=x, hx=hx)), expected)


@pytest.mark.parametrize("lengths", [(5, 3, 1), (2, 5, 4), (1, 1, 1)], ids=str)
def test_lengths_are_packed_sequences(backend, options, lengths):
    """Values, zeros past the end, the state at the last valid step, where the reverse direction starts."""
    gru, conv = make_pair(**options)
    x, hx = make_inputs(gru)
    packed = pack_padded_sequence(x, torch.tensor(lengths), gru.batch_first, enforce_sorted=False)
    packed_output, h_n = gru(packed, hx)
    assert isinstance(packed_output, PackedSequence)
    output, _ = pad_packed_sequence(packed_output, gru.batch_first, total_length=T)
    expected = output, h_n, gradients(gru, output, h_n, x=x, hx=hx)
    output, h_n = (pixels(t) for t in conv(images(x), images(hx), torch.tensor(lengths)))
    assert_same((output, h_n, gradients(conv, output, h_n, x=x, hx=hx)), expected)


def test_every_pixel_is_a_gru_of_its_own(backend, options):
    """from_gru: 1x1 kernels do not mix pixels."""
    gru = nn.GRU(C, K, **options, dtype=torch.float64)
    conv = ConvGRU.from_gru(gru)
    x = torch.randn(*((N, T) if gru.batch_first else (T, N)), C, 3, 2, dtype=torch.float64)
    output, h_n = conv(x)
    for row in range(3):
        for column in range(2):
            expected_output, expected_h_n = gru(x[..., row, column])
            assert_close_to_reference(output[..., row, column], expected_output)
            assert_close_to_reference(h_n[..., row, column], expected_h_n)


def test_cell_is_grucell(backend):
    gru = nn.GRUCell(C, K, dtype=torch.float64)
    cell = ConvGRUCell(C, K, kernel_size=1, variant="cudnn", dtype=torch.float64)
    cell.load_state_dict(
        {
            name: value[..., None, None] if value.dim() == 2 else value
            for name, value in gru.state_dict().items()
        }
    )
    x, h = torch.randn(N, C, dtype=torch.float64), torch.randn(N, K, dtype=torch.float64)
    assert_close_to_reference(pixels(cell(images(x), images(h))), gru(x, h))
    assert_close_to_reference(pixels(cell(images(x))), gru(x))
    assert_close_to_reference(pixels(cell(images(x[0]), images(h[0]))), gru(x[0], h[0]))


def test_from_gru_copies_everything():
    gru = nn.GRU(
        C, K, 2, bias=False, batch_first=True, dropout=0.25, bidirectional=True, dtype=torch.float64
    ).eval()
    conv = ConvGRU.from_gru(gru)
    assert (conv.input_size, conv.hidden_size, conv.num_layers) == (C, K, 2)
    assert (conv.kernel_size, conv.variant) == ((1, 1), "cudnn")
    assert (conv.bias, conv.batch_first, conv.dropout, conv.bidirectional) == (False, True, 0.25, True)
    assert not conv.training
    assert next(conv.parameters()).dtype == torch.float64
    before = conv.weight_ih_l0.detach().clone()
    with torch.no_grad():
        gru.weight_ih_l0.zero_()
    assert torch.equal(conv.weight_ih_l0, before)  # copies, not views


def test_the_other_variant_is_not_a_gru(backend):
    """The test of the test: with "gru-rcn" the same parameters give something else."""
    gru, conv = make_pair()
    conv.variant = "gru-rcn"
    x, hx = make_inputs(gru)
    with pytest.raises(AssertionError, match="output: not close to the reference"):
        assert_close_to_reference(pixels(conv(images(x), images(hx))[0]), gru(x, hx)[0])
