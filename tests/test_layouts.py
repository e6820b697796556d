"""Memory: any layout is accepted, none is modified, results have their own, in the input's format."""

from itertools import product

import pytest
import torch

from convgru_fused import ConvGRU, ConvGRUCell, functional, use_backend
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import (
    LAYOUTS,
    Sample,
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    lay_out,
    sample_inputs,
)

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def is_dense_channels_last(images):
    return images.movedim(-3, -1).is_contiguous()


@each_variant
@pytest.mark.parametrize("argument", ["input", "hx", "weight_ih", "weight_hh", "gate_bias", "grad_output"])
@each_layout
def test_each_argument_in_each_layout(backend, layout, argument, variant):
    """One at a time, so that a mistake in one is not hidden by the others being alike."""
    index = ("input", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "gate_bias", "grad_output").index(
        argument
    )
    sample = Sample("layouts", T=3, N=2, C=4, K=5, H=5, W=6, hx=True, gate_bias="full", variant=variant)
    args = list(sample.arguments(torch.float64))
    grad_output = sample.grad_output(torch.float64)
    laid_out = lay_out(grad_output if argument == "grad_output" else args[index], layout)
    results = []
    for tensor in (laid_out, laid_out.clone(memory_format=torch.contiguous_format)):
        given, gradient = list(args), grad_output
        if argument == "grad_output":
            gradient = tensor
        else:
            given[index] = tensor
        given = [arg.detach().requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in given]
        output = BACKENDS[backend].conv_gru(*given, save_gates=True)
        results.append((output, autograd_gradients(output, given, gradient)))
    assert_close_to_reference(results[0][0], results[1][0])
    assert_gradients_close(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", ["slice", "expanded"])
@pytest.mark.parametrize("bias", ["bias_ih", "bias_hh"])
@each_variant
def test_biases_need_not_be_contiguous(backend, variant, bias, kind):
    sample = next(sample_inputs(lambda s: s.name == f"plain-{variant}", VARIANTS))
    args = list(sample.arguments(torch.float64))
    index = {"bias_ih": 4, "bias_hh": 5}[bias]
    if kind == "slice":
        args[index] = torch.stack((args[index], torch.full_like(args[index], float("nan"))), dim=1)[:, 0]
    else:
        args[index] = args[index][:1].expand(args[index].shape)
    expected = BACKENDS[backend].conv_gru(
        *(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args), save_gates=False
    )
    assert torch.equal(BACKENDS[backend].conv_gru(*args, save_gates=False), expected)


@each_layout
def test_output_has_the_memory_format_of_the_input(layout):
    """On the native backend; eager leaves that to PyTorch's convolutions."""
    x = lay_out(torch.randn(4, 2, 3, 5, 6), layout)
    with use_backend("cpu"):
        results = *ConvGRU(3, 4, num_layers=2, bidirectional=True)(x), ConvGRUCell(3, 4)(x[0])
    for result in results:
        assert is_dense_channels_last(result) if layout == "channels_last" else result.is_contiguous()


def test_a_channels_last_module_gives_the_same(backend):
    model = ConvGRU(3, 4, num_layers=2, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 5, 6, dtype=torch.float64)
    expected, _ = model(x)
    model = model.to(memory_format=torch.channels_last)
    assert is_dense_channels_last(model.weight_ih_l0)
    assert_close_to_reference(model(lay_out(x, "channels_last"))[0], expected)


@each_layout
def test_gradients_have_the_memory_format_of_what_they_belong_to(layout):
    """Of the native backend's images; an expanded one gets a dense gradient."""
    sample = Sample("formats", T=3, N=2, C=4, K=5, H=5, W=6, hx=True, gate_bias="full", layout=layout)
    args = sample.arguments(torch.float64, requires_grad=True)
    output = BACKENDS["cpu"].conv_gru(*args, save_gates=True)
    gradients = torch.autograd.grad(output, [args[0], args[1], args[6]], sample.grad_output(torch.float64))
    for gradient in gradients:
        assert is_dense_channels_last(gradient) if layout == "channels_last" else gradient.is_contiguous()


@each_variant
@pytest.mark.parametrize("lengths", [None, (3, 1)], ids=["whole", "lengths"])
@each_layout
def test_nothing_given_is_modified(backend, layout, lengths, variant):
    sample = Sample(
        "read-only", T=3, N=2, C=4, K=5, H=5, W=6, hx=True, gate_bias="full", lengths=lengths, layout=layout
    )
    args = sample.arguments(torch.float32, requires_grad=True)
    grad_output = sample.grad_output(torch.float32)
    tensors = [t for t in (*args, grad_output) if isinstance(t, torch.Tensor)]
    before = [(t.detach().clone(), t._version) for t in tensors]
    output = BACKENDS[backend].conv_gru(*args[:8], variant, False, save_gates=True)
    autograd_gradients(output, args, grad_output)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


def storages(*tensors):
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


@pytest.mark.parametrize(
    ("T", "lengths"), [(1, None), (4, None), (4, [4, 0]), (0, None), (0, [0, 0])], ids=str
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_results_have_memory_of_their_own(backend, T, lengths, bidirectional):
    """Writing to one does not change the other, nor what was given."""
    model = ConvGRU(4, 4, bidirectional=bidirectional)
    x, hx = torch.randn(T, 2, 4, 5, 6), torch.randn(2 if bidirectional else 1, 2, 4, 5, 6)
    with torch.no_grad():
        output, h_n = model(x, hx, lengths)
    assert not storages(output) & storages(h_n, x, hx, *model.parameters())
    assert not storages(h_n) & storages(x, hx, *model.parameters())
    expected = h_n.clone()
    output.zero_()
    assert torch.equal(h_n, expected)


def test_cell_result_has_memory_of_its_own(backend):
    cell, x, h = ConvGRUCell(4, 4), torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        assert not storages(cell(x, h)) & storages(x, h, *cell.parameters())


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(("T", "N"), [(0, 2), (3, 0), (0, 0)], ids=["T=0", "N=0", "T=N=0"])
@each_variant
def test_empty_input(backend, variant, T, N, lengths):
    model = ConvGRU(3, 4, num_layers=2, bidirectional=True, variant=variant)
    x = torch.randn(T, N, 3, 5, 6, requires_grad=True)
    hx = torch.randn(4, N, 4, 5, 6, requires_grad=True)
    lengths = torch.zeros(N, dtype=torch.int64) if lengths else None
    output, h_n = model(x, hx, lengths)
    assert output.shape == (T, N, 8, 5, 6)
    assert torch.equal(h_n, hx)  # no step: the initial state, which is no zero
    (output.sum() + 2 * h_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert torch.equal(hx.grad, torch.full_like(hx, 2))
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    without_hx, h_n = model(x, None, lengths)
    assert without_hx.shape == output.shape and not h_n.any()
    assert h_n.shape == (4, N, 4, 5, 6)


def test_empty_batch_without_input(backend):
    """N=0 and T=0 where gate_bias stands for the input."""
    params = [torch.randn(12, 3, 3, 3), torch.randn(12, 4, 3, 3)]
    for T, N in product((0, 2), (0, 2)):
        if T and N:
            continue
        gate_bias = torch.randn(T, N, 12, 5, 6)
        output, h_n = functional.conv_gru(None, None, params, has_biases=False, gate_bias=gate_bias)
        assert output.shape == (T, N, 4, 5, 6)
        assert h_n.shape == (1, N, 4, 5, 6) and not h_n.any()


def test_first_axes_of_size_one_in_any_stride(backend):
    """Strides of axes of size 1 say nothing; here they are absurd."""
    model = ConvGRU(3, 4, dtype=torch.float64)
    x = torch.randn(1, 1, 3, 5, 6, dtype=torch.float64)
    absurd = torch.empty_strided(x.shape, (7, 1, 30, 6, 1), dtype=torch.float64).copy_(x)
    assert_close_to_reference(model(absurd)[0], model(x)[0])
    pixel = torch.randn(3, 2, 4, 1, 1, dtype=torch.float64)
    absurd = torch.empty_strided(pixel.shape, (8, 4, 1, 1, 4), dtype=torch.float64).copy_(pixel)
    model = ConvGRU(4, 4, dtype=torch.float64)
    assert_close_to_reference(model(absurd)[0], model(pixel)[0])
