"""Every rejected input: the exception, and words that name the argument, what was expected and what came."""

import re

import pytest
import torch
from torch import nn

from convgru_fused import ConvGRU, ConvGRUCell, backends, functional, precision, use_backend

T, N, C, K, H, W = 4, 2, 3, 5, 6, 7


def images(*shape, **options):
    return torch.zeros(*shape, **options)


X = images(T, N, C, H, W)
HX = images(1, N, K, H, W)
GATE_BIAS = images(T, N, 3 * K, H, W)


def refuses(call, error, words):
    """Where the words have " ... " in them anything may stand there."""
    with pytest.raises(error, match=".*".join(map(re.escape, words.split(" ... ")))):
        call()


INPUT_RANK = "input: expected 5 dimensions (T,N,C,H,W), or 4 unbatched, got "
NEITHER = "input: expected a Tensor, or None together with gate_bias; got None for both"
STATES = "hx: expected (L*D,N,K,H,W) = (1, 2, 5, 6, 7), got "
GATES = "gate_bias: expected T=4, N=2, 15 channels and 6x7 or 1x1 pixels, got "
DTYPE = "expected the weights' dtype torch.float32, got"
EACH_VARIANT = "'gru-rcn', 'gru-rcn-relu', 'cudnn'"
COUNT = "params: expected 4 tensors (4 for each of 1 layers and directions), got "

# Arguments of ConvGRU(C, K).forward that differ from valid ones, by name.
FORWARD = {
    "input-rank-3": (dict(input=images(C, H, W)), ValueError, INPUT_RANK + "shape (3, 6, 7)"),
    "input-rank-6": (dict(input=X[None]), ValueError, INPUT_RANK + "shape (1, 4, 2, 3, 6, 7)"),
    "input-channels": (
        dict(input=images(T, N, 4, H, W)),
        ValueError,
        "input: expected 3 channels, got 4 in shape (4, 2, 4, 6, 7)",
    ),
    "input-device": (
        dict(input=X.to("meta")),
        ValueError,
        "input: expected the weights' device cpu, got meta",
    ),
    "input-dtype": (dict(input=X.double()), ValueError, "input: " + DTYPE + " torch.float64"),
    "input-integers": (dict(input=X.long()), ValueError, "input: " + DTYPE + " torch.int64"),
    "input-no-rows": (
        dict(input=images(T, N, C, 0, W)),
        ValueError,
        "input: expected at least one pixel, got shape (4, 2, 3, 0, 7)",
    ),
    "input-no-columns": (
        dict(input=images(T, N, C, H, 0)),
        ValueError,
        "input: expected at least one pixel, got shape (4, 2, 3, 6, 0)",
    ),
    "input-list": (dict(input=[[0.0]]), TypeError, "input: expected a Tensor, got list"),
    "input-array": (dict(input=X.numpy()), TypeError, "input: expected a Tensor, got ndarray"),
    "input-none": (dict(input=None), ValueError, NEITHER),
    "hx-rank": (dict(hx=HX[0]), ValueError, STATES + "shape (2, 5, 6, 7)"),
    "hx-layers": (dict(hx=images(2, N, K, H, W)), ValueError, STATES + "shape (2, 2, 5, 6, 7)"),
    "hx-batch": (dict(hx=images(1, 1, K, H, W)), ValueError, STATES + "shape (1, 1, 5, 6, 7)"),
    "hx-channels": (dict(hx=images(1, N, C, H, W)), ValueError, STATES + "shape (1, 2, 3, 6, 7)"),
    "hx-pixels": (dict(hx=images(1, N, K, W, H)), ValueError, STATES + "shape (1, 2, 5, 7, 6)"),
    "hx-dtype": (dict(hx=HX.half()), ValueError, "hx: " + DTYPE + " torch.float16"),
    "hx-device": (dict(hx=HX.to("meta")), ValueError, "hx: expected the weights' device cpu, got meta"),
    "hx-tuple": (dict(hx=(HX, HX)), TypeError, "hx: expected a Tensor, got tuple"),
    "hx-unbatched-rank": (
        dict(input=X[:, 0], hx=HX),
        ValueError,
        "hx: expected (L*D,K,H,W) for unbatched input, got shape (1, 2, 5, 6, 7)",
    ),
    "hx-unbatched-tuple": (dict(input=X[:, 0], hx=(HX,)), TypeError, "hx: expected a Tensor, got tuple"),
    "lengths-too-long": (
        dict(lengths=torch.tensor([4, 5])),
        ValueError,
        "lengths: expected 0 to T=4, got [4, 5]",
    ),
    "lengths-negative": (
        dict(lengths=torch.tensor([-1, 4])),
        ValueError,
        "lengths: expected 0 to T=4, got [-1, 4]",
    ),
    "lengths-count": (
        dict(lengths=torch.tensor([4, 4, 4])),
        ValueError,
        "lengths: expected (2,), got shape (3,)",
    ),
    "lengths-rank": (
        dict(lengths=torch.tensor([[4, 4]])),
        ValueError,
        "lengths: expected (2,), got shape (1, 2)",
    ),
    "lengths-float": (
        dict(lengths=torch.tensor([4.0, 4.0])),
        TypeError,
        "lengths: expected integers, got torch.float32",
    ),
    "lengths-bool": (
        dict(lengths=torch.tensor([True, False])),
        TypeError,
        "lengths: expected integers, got torch.bool",
    ),
    "lengths-list-of-floats": (
        dict(lengths=[4.0, 2.0]),
        TypeError,
        "lengths: expected integers, got torch.float32",
    ),
    "lengths-number": (dict(lengths=4), ValueError, "lengths: expected (2,), got shape ()"),
    "lengths-string": (
        dict(lengths="44"),
        TypeError,
        "lengths: expected a Tensor or a sequence of integers, got '44'",
    ),
    "lengths-none-among": (
        dict(lengths=[4, None]),
        TypeError,
        "lengths: expected a Tensor or a sequence of integers, got [4, None]",
    ),
    "lengths-dict": (
        dict(lengths={0: 1}),
        TypeError,
        "lengths: expected a Tensor or a sequence of integers, got {0: 1}",
    ),
    "lengths-huge": (
        dict(lengths=[10**30, 1]),
        TypeError,
        f"lengths: expected a Tensor or a sequence of integers, got [{10**30}, 1]",
    ),
    "lengths-ragged": (
        dict(lengths=[[4], [4, 4]]),
        TypeError,
        "lengths: expected a Tensor or a sequence of integers, got [[4], [4, 4]]",
    ),
    "lengths-unbatched": (
        dict(input=X[:, 0], lengths=[4]),
        ValueError,
        "lengths: expected None for unbatched input",
    ),
    "gate_bias-channels": (
        dict(gate_bias=images(T, N, K, H, W)),
        ValueError,
        GATES + "shape (4, 2, 5, 6, 7)",
    ),
    "gate_bias-time": (
        dict(gate_bias=images(1, N, 3 * K, H, W)),
        ValueError,
        GATES + "shape (1, 2, 15, 6, 7)",
    ),
    "gate_bias-batch": (
        dict(gate_bias=images(T, 1, 3 * K, H, W)),
        ValueError,
        GATES + "shape (4, 1, 15, 6, 7)",
    ),
    "gate_bias-pixels": (
        dict(gate_bias=images(T, N, 3 * K, H, 1)),
        ValueError,
        GATES + "shape (4, 2, 15, 6, 1)",
    ),
    "gate_bias-rank": (
        dict(gate_bias=GATE_BIAS[0]),
        ValueError,
        "gate_bias: expected ... got shape (2, 15, 6, 7)",
    ),
    "gate_bias-scalar": (
        dict(gate_bias=torch.tensor(0.0)),
        ValueError,
        "gate_bias: expected ... got shape ()",
    ),
    "gate_bias-scalar-unbatched": (
        dict(input=X[:, 0], gate_bias=torch.tensor(0.0)),
        ValueError,
        "gate_bias: expected",
    ),
    "gate_bias-dtype": (
        dict(gate_bias=GATE_BIAS.double()),
        ValueError,
        "gate_bias: " + DTYPE + " torch.float64",
    ),
    "gate_bias-device": (
        dict(gate_bias=GATE_BIAS.to("meta")),
        ValueError,
        "gate_bias: expected the weights' device cpu, got meta",
    ),
    "gate_bias-number": (dict(gate_bias=0.5), TypeError, "gate_bias: expected a Tensor, got float"),
    "no-input-gate_bias-rank": (
        dict(input=None, gate_bias=images(3 * K, H, W)),
        ValueError,
        "gate_bias: expected 5 dimensions (T,N,C,H,W), or 4 unbatched, got shape (15, 6, 7)",
    ),
    "no-input-gate_bias-channels": (
        dict(input=None, gate_bias=images(T, N, K, H, W)),
        ValueError,
        "gate_bias: expected T=4, N=2, 15 channels",
    ),
    "no-input-gate_bias-pixels": (
        dict(input=None, gate_bias=images(T, N, 3 * K, 0, W)),
        ValueError,
        "gate_bias: expected at least one pixel, got shape (4, 2, 15, 0, 7)",
    ),
    "no-input-hx-pixels": (
        dict(input=None, gate_bias=GATE_BIAS, hx=images(1, N, K, H, 1)),
        ValueError,
        STATES + "shape (1, 2, 5, 6, 1)",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), FORWARD.values(), ids=FORWARD)
def test_forward(backend, changes, error, words):
    model = ConvGRU(C, K)
    model(**{"input": X, "hx": HX, "lengths": None, "gate_bias": GATE_BIAS})
    refuses(lambda: model(**{"input": X, **changes}), error, words)


def test_batch_first_names_sizes_by_their_meaning(backend):
    model = ConvGRU(C, K, batch_first=True)
    refuses(
        lambda: model(X.transpose(0, 1), images(1, T, K, H, W)),
        ValueError,
        "= (1, 2, 5, 6, 7), got shape (1, 4, 5",
    )
    refuses(
        lambda: model(X.transpose(0, 1), gate_bias=GATE_BIAS),
        ValueError,
        "gate_bias: expected T=4, N=2, 15 channels",
    )
    refuses(
        lambda: model(X.transpose(0, 1), lengths=[5, 4]), ValueError, "lengths: expected 0 to T=4, got [5, 4]"
    )
    refuses(
        lambda: model(X.transpose(0, 1), gate_bias=torch.zeros(3)),
        ValueError,
        "gate_bias: expected ... got shape (3,)",
    )


def test_bidirectional_gate_bias_has_the_gates_of_both(backend):
    words = "gate_bias: expected T=4, N=2, 30 channels and 6x7 or 1x1 pixels, got shape (4, 2, 15, 6, 7)"
    refuses(lambda: ConvGRU(C, K, bidirectional=True)(X, gate_bias=GATE_BIAS), ValueError, words)


CELL = {
    "input-rank-2": (
        dict(input=images(C, H)),
        ValueError,
        "input: expected 4 dimensions (N,C,H,W), or 3 unbatched, got shape (3, 6)",
    ),
    "input-rank-5": (
        dict(input=X),
        ValueError,
        "input: expected 4 dimensions (N,C,H,W), or 3 unbatched, got shape (4, 2, 3, 6, 7)",
    ),
    "input-channels": (dict(input=images(N, 4, H, W)), ValueError, "input: expected 3 channels, got 4"),
    "input-none": (dict(input=None), ValueError, NEITHER),
    "input-string": (dict(input="x"), TypeError, "input: expected a Tensor, got str"),
    "hx-shape": (dict(hx=images(N, C, H, W)), ValueError, "hx: expected"),
    "hx-unbatched": (dict(input=X[0, 0], hx=HX[0]), ValueError, "hx: expected"),
    "hx-number": (dict(hx=0.0), TypeError, "hx: expected a Tensor, got float"),
    "gate_bias-shape": (dict(gate_bias=images(N, K, H, W)), ValueError, "gate_bias: expected"),
    "gate_bias-time": (dict(gate_bias=GATE_BIAS), ValueError, "gate_bias: expected"),
}


@pytest.mark.parametrize(("changes", "error", "words"), CELL.values(), ids=CELL)
def test_cell(backend, changes, error, words):
    cell = ConvGRUCell(C, K)
    cell(X[0], HX[0], GATE_BIAS[0])
    refuses(lambda: cell(**{"input": X[0], **changes}), error, words)


CONSTRUCTOR = {
    "even-kernel": (dict(kernel_size=2), ValueError, "kernel_size: expected odd positive sizes, got 2"),
    "even-side": (
        dict(kernel_size=(3, 4)),
        ValueError,
        "kernel_size: expected odd positive sizes, got (3, 4)",
    ),
    "negative-kernel": (dict(kernel_size=-1), ValueError, "kernel_size: expected odd positive sizes, got -1"),
    "kernel-of-three": (
        dict(kernel_size=(3, 3, 3)),
        TypeError,
        "kernel_size: expected an int or a pair of ints, got (3, 3, 3)",
    ),
    "kernel-of-float": (
        dict(kernel_size=3.0),
        TypeError,
        "kernel_size: expected an int or a pair of ints, got 3.0",
    ),
    "kernel-of-bool": (
        dict(kernel_size=True),
        TypeError,
        "kernel_size: expected an int or a pair of ints, got True",
    ),
    "kernel-of-string": (
        dict(kernel_size="33"),
        TypeError,
        "kernel_size: expected an int or a pair of ints, got '33'",
    ),
    "no-channels": (dict(input_size=0), ValueError, "input_size: expected at least 1, got 0"),
    "float-channels": (dict(input_size=3.0), TypeError, "input_size: expected an int, got float"),
    "no-hidden": (dict(hidden_size=0), ValueError, "hidden_size: expected at least 1, got 0"),
    "no-layers": (dict(num_layers=0), ValueError, "num_layers: expected at least 1, got 0"),
    "layers-of-float": (dict(num_layers=1.5), TypeError, "num_layers: expected an int, got float"),
    "dropout-above-1": (dict(dropout=1.5), ValueError, "dropout: expected at least 0 and at most 1, got 1.5"),
    "dropout-negative": (
        dict(dropout=-0.1),
        ValueError,
        "dropout: expected at least 0 and at most 1, got -0.1",
    ),
    "dropout-nan": (
        dict(dropout=float("nan")),
        ValueError,
        "dropout: expected at least 0 and at most 1, got nan",
    ),
    "dropout-of-bool": (dict(dropout=True), TypeError, "dropout: expected a number, got bool"),
    "variant": (
        dict(variant="gru"),
        ValueError,
        f"variant: expected one of {EACH_VARIANT}, got 'gru'",
    ),
    "variant-none": (
        dict(variant=None),
        ValueError,
        f"variant: expected one of {EACH_VARIANT}, got None",
    ),
    "variant-list": (
        dict(variant=["cudnn"]),
        ValueError,
        f"variant: expected one of {EACH_VARIANT}, got ['cudnn']",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), CONSTRUCTOR.values(), ids=CONSTRUCTOR)
def test_constructor(changes, error, words):
    valid = dict(input_size=C, hidden_size=K)
    refuses(lambda: ConvGRU(**{**valid, **changes}), error, words)
    if not changes.keys() & {"num_layers", "dropout"}:
        refuses(lambda: ConvGRUCell(**{**valid, **changes}), error, words)


def params(**changes):
    """Of one layer, by name, changed; None leaves one out."""
    valid = dict(
        weight_ih=images(3 * K, C, 3, 3),
        weight_hh=images(3 * K, K, 3, 3),
        bias_ih=images(3 * K),
        bias_hh=images(3 * K),
    )
    return [p for p in {**valid, **changes}.values()]


PARAMETERS = {
    "too-few": (params()[:3], ValueError, COUNT + "3"),
    "too-many": (params() * 2, ValueError, COUNT + "8"),
    "none": ([], ValueError, "params: expected 4 tensors"),
    "not-a-sequence": (None, TypeError, "params: expected a sequence of Tensors, got NoneType"),
    "weight-none": (
        params(weight_ih=None),
        TypeError,
        "params[0] (weight_ih): expected a Tensor, got NoneType",
    ),
    "hidden-weight-none": (
        params(weight_hh=None),
        TypeError,
        "params[1] (weight_hh): expected a Tensor, got NoneType",
    ),
    "bias-none": (params(bias_hh=None), TypeError, "params[3] (bias_hh): expected a Tensor, got NoneType"),
    "weight-list": (params(weight_hh=[0.0]), TypeError, "params[1] (weight_hh): expected a Tensor, got list"),
    "even-kernel": (
        params(weight_ih=images(15, 3, 2, 3), weight_hh=images(15, 5, 2, 3)),
        ValueError,
        "params[1] (weight_hh): expected an odd kernel, got 2x3",
    ),
    "kernels-differ": (
        params(weight_ih=images(15, 3, 1, 1)),
        ValueError,
        "params[0] (weight_ih): expected (15,C,3,3), got shape (15, 3, 1, 1)",
    ),
    "hidden-weight": (
        params(weight_hh=images(10, 5, 3, 3)),
        ValueError,
        "params[1] (weight_hh): expected (3K,K,kh,kw), got shape (10, 5, 3, 3)",
    ),
    "hidden-weight-rank": (
        params(weight_hh=images(15, 5)),
        ValueError,
        "params[1] (weight_hh): expected (3K,K,kh,kw), got shape (15, 5)",
    ),
    "input-weight": (
        params(weight_ih=images(12, 3, 3, 3)),
        ValueError,
        "params[0] (weight_ih): expected (15,C,3,3), got shape (12, 3, 3, 3)",
    ),
    "bias": (params(bias_ih=images(5)), ValueError, "params[2] (bias_ih): expected (15,), got shape (5,)"),
    "hidden-bias": (
        params(bias_hh=images(15, 1)),
        ValueError,
        "params[3] (bias_hh): expected (15,), got shape (15, 1)",
    ),
    "integers": (
        [p.long() for p in params()],
        TypeError,
        "params[1] (weight_hh): expected a floating-point dtype, got torch.int64",
    ),
    "complex": (
        [p.cfloat() for p in params()],
        TypeError,
        "params[1] (weight_hh): expected a floating-point dtype, got torch.complex64",
    ),
    "bias-dtype": (
        params(bias_hh=images(15).double()),
        ValueError,
        "params[3] (bias_hh): " + DTYPE + " torch.float64",
    ),
    "bias-device": (
        params(bias_hh=images(15).to("meta")),
        ValueError,
        "params[3] (bias_hh): expected the weights' device cpu, got meta",
    ),
}


@pytest.mark.parametrize(("given", "error", "words"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameters(backend, given, error, words):
    functional.conv_gru(X, None, params())
    refuses(lambda: functional.conv_gru(X, None, given), error, words)


def test_parameters_of_the_cell_go_by_their_names(backend):
    valid = params()
    functional.conv_gru_cell(X[0], None, *valid)
    for index, name in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
        given = list(valid)
        given[index] = "no tensor"
        refuses(
            lambda g=given: functional.conv_gru_cell(X[0], None, *g),
            TypeError,
            f"{name}: expected a Tensor, got str",
        )
    refuses(
        lambda: functional.conv_gru_cell(X[0], None, valid[0], None),
        TypeError,
        "weight_hh: expected a Tensor, got NoneType",
    )
    refuses(
        lambda: functional.conv_gru_cell(X[0], None, None, valid[1]),
        TypeError,
        "weight_ih: expected a Tensor, got NoneType",
    )


def test_parameters_of_layers_fit_each_other(backend):
    first, other_k = (
        params(),
        params(
            weight_ih=images(12, K, 3, 3),
            weight_hh=images(12, 4, 3, 3),
            bias_ih=images(12),
            bias_hh=images(12),
        ),
    )
    call = functional.conv_gru
    refuses(
        lambda: call(X, None, [*first, *other_k], num_layers=2),
        ValueError,
        "params: expected the same K=5 in every layer",
    )
    refuses(
        lambda: call(X, None, [*first, *first], num_layers=2),
        ValueError,
        "params: expected weight_ih (3K,5,kh,kw) above layer 0, got shape (15, 3, 3, 3)",
    )
    upper = params(weight_ih=images(15, K, 3, 3))
    call(X, None, [*first, *upper], num_layers=2)
    refuses(
        lambda: call(X, None, [*first, *(p.double() for p in upper)], num_layers=2),
        ValueError,
        "expected the weights' dtype torch.float32, got torch.float64",
    )
    refuses(
        lambda: call(X, None, [*first, *upper], num_layers=2, bidirectional=True),
        ValueError,
        "params: expected 16 tensors (4 for each of 4 layers and directions), got 8",
    )
    narrow = params(weight_ih=images(15, 4, 3, 3))
    refuses(lambda: call(X, None, [*first, *narrow], bidirectional=True), ValueError, "params: expected")


def test_options_of_the_functional_form(backend):
    call = functional.conv_gru
    refuses(lambda: call(X, None, params(), variant="gru"), ValueError, "variant: expected one of")
    refuses(
        lambda: call(X, None, params(), num_layers=0), ValueError, "num_layers: expected at least 1, got 0"
    )
    refuses(
        lambda: call(X, None, params(), dropout=2.0),
        ValueError,
        "dropout: expected at least 0 and at most 1, got 2.0",
    )
    refuses(
        lambda: functional.conv_gru_cell(X[0], None, *params(), variant=3),
        ValueError,
        "variant: expected one of",
    )


def test_unknown_backend():
    refuses(
        lambda: use_backend("cudnn").__enter__(),
        ValueError,
        "name: expected one of 'cpu', 'cuda', 'eager', 'triton', got 'cudnn'",
    )
    refuses(
        lambda: use_backend(None).__enter__(),
        ValueError,
        "name: expected one of 'cpu', 'cuda', 'eager', 'triton', got None",
    )


def test_a_named_backend_says_why_it_cannot():
    """It does not fall back: native code is asked to run on tensors without data, and on a strange dtype."""
    model = ConvGRU(C, K, device="meta")
    with use_backend("cpu"):
        refuses(lambda: model(X.to("meta")), ValueError, "backend 'cpu' cannot run")
        refuses(lambda: model(X.to("meta")), ValueError, "runs on cpu tensors, got meta")
        exotic = ConvGRU(C, K).to(torch.float8_e5m2)
        refuses(
            lambda: exotic(X.to(torch.float8_e5m2)),
            ValueError,
            "supports float32, float64, bfloat16, float16, got float8_e5m2",
        )


def test_unknown_precision():
    refuses(lambda: precision("exact"), ValueError, "setting: expected one of 'fast', 'strict', got 'exact'")
    refuses(lambda: precision(None), ValueError, "setting: expected one of 'fast', 'strict', got None")


def test_what_is_refused_changes_nothing(backend):
    """A call that failed leaves module, selection and random state as they were."""
    model = ConvGRU(C, K)
    state, random = model.state_dict(), torch.get_rng_state()
    with pytest.raises(ValueError):
        model(X, images(1))
    with pytest.raises(ValueError), use_backend("nothing"):
        pass
    assert backends().__class__ and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert isinstance(model, nn.Module) and model(X)[0].shape == (T, N, K, H, W)


def test_what_a_cell_remembers_is_about_the_same_arguments_only():
    """A cell's checks are remembered by shapes, dtypes and devices."""
    cell, x, h = ConvGRUCell(C, K), images(N, C, H, W), images(N, K, H, W)
    for _ in range(2):
        assert cell(x, h).shape == h.shape
        with torch.no_grad():
            assert cell(x).shape == h.shape
        refuses(
            lambda: cell(x, h[:1]),
            ValueError,
            "hx: expected (N,K,H,W) = (2, 5, 6, 7), got shape (1, 5, 6, 7)",
        )
        refuses(lambda: cell(x[0], h), ValueError, "hx: expected (K,H,W) = (5, 6, 7), got shape (2, 5, 6, 7)")
        refuses(lambda: cell(x.double(), h), ValueError, f"input: {DTYPE} torch.float64")
        refuses(lambda: cell(x.numpy(), h), TypeError, "input: expected a Tensor, got ndarray")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert cell(x, h).dtype == torch.bfloat16
            assert cell(x.half(), h).dtype == torch.bfloat16
    cell.weight_hh.data = cell.weight_hh.data.double()
    refuses(lambda: cell(x, h), ValueError, "weight_ih: expected the weights' dtype torch.float64")
