"""Over generated problems: any shape, variant, layout, dtype and lengths against the float64 reference, and
relations between calls that hold whatever the values are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convgru_fused import ConvGRU, functional, use_backend
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import VARIANTS, Gradients
from convgru_fused.testing import (
    LAYOUTS,
    SMOOTH_VARIANTS,
    Sample,
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    lay_out,
    reference,
)

kernels = st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)))
channels = st.one_of(
    st.integers(1, 5), st.sampled_from((16, 32))
)  # multiples of 16 have kernels of their own


@st.composite
def samples(draw, min_T=0, min_N=0):
    """Any problem of one layer and direction; sizes are small, zero steps and zero samples included."""
    T, N = draw(st.integers(min_T, 5)), draw(st.integers(min_N, 3))
    has_input = draw(st.booleans())
    gate_bias = draw(st.sampled_from(("", "full", "1x1") if has_input else ("full", "1x1")))
    has_state = draw(st.booleans())
    # Without input and state a gate_bias of 1x1 pixels says that the image has one.
    one_pixel = not has_input and not has_state and gate_bias == "1x1"
    size = st.just(1) if one_pixel else st.integers(1, 14)
    return Sample(
        "generated",
        T=T,
        N=N,
        C=draw(channels),
        K=draw(channels),
        H=draw(size),
        W=draw(size),
        kernel=draw(kernels),
        input=has_input,
        hx=has_state,
        bias=draw(st.booleans()),
        gate_bias=gate_bias,
        lengths=draw(st.none() | st.tuples(*[st.integers(0, T)] * N)),
        variant=draw(st.sampled_from(SMOOTH_VARIANTS)),
        reverse=draw(st.booleans()),
    )


def as_one_vector(gradients):
    """In 16 bits a sum of few terms can cancel until no digit is left; not so all gradients together."""
    return {"of everything": torch.cat([g.flatten() for g in gradients if g is not None])}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(data=st.data())
def test_native_agrees_with_the_reference(dtype, data):
    """In whatever layout each tensor comes."""
    sample = data.draw(samples())
    args = list(sample.arguments(dtype))
    for index in (0, 1, 2, 3, 6):
        if args[index] is not None:
            layout = data.draw(
                st.sampled_from([name for name in LAYOUTS if name != "expanded"]), label=f"layout {index}"
            )
            args[index] = lay_out(args[index], layout).requires_grad_()
    grad_output = lay_out(
        sample.grad_output(dtype), data.draw(st.sampled_from(LAYOUTS[:3]), label="layout of grad")
    )
    output = BACKENDS["cpu"].conv_gru(*args, save_gates=data.draw(st.booleans(), label="save_gates"))
    expected_output, expected_gradients = reference(sample, dtype)
    assert_close_to_reference(output, expected_output)
    gradients = autograd_gradients(output, args, grad_output)
    with_gradient = [arg is not None and arg.requires_grad for arg in args[:7]]
    expected = Gradients(*(g if w else None for g, w in zip(expected_gradients, with_gradient, strict=True)))
    if torch.finfo(dtype).eps > torch.finfo(torch.float32).eps:
        gradients, expected = as_one_vector(gradients), as_one_vector(expected)
    assert_gradients_close(gradients, expected)


def run_native(sample, args):
    return BACKENDS["cpu"].conv_gru(*args[:8], sample.variant, sample.reverse, save_gates=False)


@settings(max_examples=25)
@given(samples())
def test_running_backwards_is_turning_time_round(sample):
    sample = replace(sample, lengths=None)
    args = sample.arguments(torch.float64)
    turned = [t.flip(0) if i in (0, 6) and t is not None else t for i, t in enumerate(args)]
    output = run_native(replace(sample, reverse=not sample.reverse), turned)
    assert_close_to_reference(output.flip(0), run_native(sample, args))


@settings(max_examples=25)
@given(samples(min_T=1, min_N=1))
def test_a_short_sample_is_one_that_was_cut(sample):
    args = list(sample.arguments(torch.float64))
    lengths = sample.lengths or [sample.T] * sample.N
    output = run_native(sample, args)
    for n, length in enumerate(lengths):
        alone = [t[:length, n : n + 1] if i in (0, 6) and t is not None else t for i, t in enumerate(args)]
        alone[1] = None if args[1] is None else args[1][n : n + 1]
        alone[7] = None
        assert_close_to_reference(output[:length, n : n + 1], run_native(sample, alone))
        assert not output[length:, n].any()


@settings(max_examples=25)
@given(samples())
def test_what_is_left_out_is_zero(sample):
    """None for the state, the biases, gate_bias and lengths means zeros, zeros, zeros and T."""
    T, N, K = sample.T, sample.N, sample.K
    args = list(sample.arguments(torch.float64))
    expected = run_native(sample, args)
    zeros = args[3].new_zeros
    explicit = list(args)
    if explicit[1] is None:
        explicit[1] = zeros(N, K, sample.H, sample.W)
    if explicit[4] is None and explicit[0] is not None:
        explicit[4] = zeros(3 * K)
    explicit[5] = zeros(3 * K) if explicit[5] is None else explicit[5]
    explicit[6] = zeros(T, N, 3 * K, 1, 1) if explicit[6] is None else explicit[6]
    explicit[7] = torch.full((N,), T) if explicit[7] is None else explicit[7]
    assert_close_to_reference(run_native(sample, explicit), expected)


@settings(max_examples=25)
@given(samples(), st.randoms(use_true_random=False))
def test_exchanging_samples_and_channels_exchanges_results(sample, random):
    """The order of the batch, and that of the hidden channels, mean nothing."""
    batch, hidden = list(range(sample.N)), list(range(sample.K))
    random.shuffle(batch)
    random.shuffle(hidden)
    gates = [gate * sample.K + k for gate in range(3) for k in hidden]
    x, hx, w_ih, w_hh, b_ih, b_hh, gate_bias, lengths, *_ = args = sample.arguments(torch.float64)
    exchanged = (
        None if x is None else x[:, batch],
        None if hx is None else hx[batch][:, hidden],
        None if w_ih is None else w_ih[gates],
        w_hh[gates][:, hidden],
        None if b_ih is None else b_ih[gates],
        None if b_hh is None else b_hh[gates],
        None if gate_bias is None else gate_bias[:, batch][:, :, gates],
        None if lengths is None else lengths[batch],
    )
    expected = run_native(sample, args)
    assert_close_to_reference(run_native(sample, exchanged), expected[:, batch][:, :, hidden])


@settings(max_examples=25)
@given(samples())
def test_mirrored_images_and_kernels_give_mirrored_results(sample):
    args = sample.arguments(torch.float64)
    mirrored = [t.flip(-1) if i in (0, 1, 2, 3, 6) and t is not None else t for i, t in enumerate(args)]
    assert_close_to_reference(run_native(sample, mirrored).flip(-1), run_native(sample, args))


@settings(max_examples=25)
@given(samples(min_T=1), st.data())
def test_a_sequence_in_two_pieces_is_the_whole(sample, data):
    sample = replace(sample, lengths=None, reverse=False)
    cut = data.draw(st.integers(0, sample.T), label="cut")
    args = list(sample.arguments(torch.float64))
    whole = run_native(sample, args)
    pieces, state = [], args[1]
    for piece in (slice(0, cut), slice(cut, None)):
        part = [t[piece] if i in (0, 6) and t is not None else t for i, t in enumerate(args)]
        part[1] = state
        pieces.append(run_native(sample, part))
        state = pieces[-1][-1] if len(pieces[-1]) else state
    assert_close_to_reference(torch.cat(pieces), whole)


@settings(max_examples=25)
@given(data=st.data())
def test_modules_agree_through_layers_and_directions(data):
    """All options of ConvGRU at once, native against eager."""
    T, N = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 3))
    batch_first = data.draw(st.booleans())
    model = ConvGRU(
        data.draw(channels),
        data.draw(channels),
        data.draw(kernels),
        num_layers=data.draw(st.integers(1, 3)),
        bias=data.draw(st.booleans()),
        batch_first=batch_first,
        bidirectional=data.draw(st.booleans()),
        variant=data.draw(st.sampled_from(VARIANTS)),
        dtype=torch.float64,
    )
    x = torch.randn(*((N, T) if batch_first else (T, N)), model.input_size, 5, 6, dtype=torch.float64)
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N))
    results = {}
    for name in ("cpu", "eager"):
        with use_backend(name):
            results[name] = model(x, None, lengths)
    for actual, expected in zip(results["cpu"], results["eager"], strict=True):
        assert_close_to_reference(actual, expected)


@settings(max_examples=25)
@given(samples(min_T=1))
def test_the_cell_is_the_sequence_of_one(sample):
    sample = replace(sample, lengths=None, reverse=False)
    x, hx, w_ih, w_hh, b_ih, b_hh, gate_bias, *_ = sample.arguments(torch.float64)
    if w_ih is None:  # the cell wants the weight even where it does not use it
        w_ih = w_hh.new_zeros(3 * sample.K, 1, *sample.kernel)
    expected = run_native(sample, sample.arguments(torch.float64))
    with use_backend("cpu"):
        for t in range(sample.T):
            hx = functional.conv_gru_cell(
                None if x is None else x[t],
                hx,
                w_ih,
                w_hh,
                b_ih,
                b_hh,
                gate_bias=None if gate_bias is None else gate_bias[t],
                variant=sample.variant,
            )
            assert_close_to_reference(hx, expected[t])
