"""The Triton backend in Triton's interpreter, on the CPU: every kernel in every variant, by descriptors and
by pointers, in memory full of NaNs, against plain PyTorch in float64. `make test` runs these in processes of
their own, with TRITON_INTERPRET=1. Not bfloat16, which is wrong in the interpreter."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from convgru_fused import ConvGRU, ConvGRUCell, eager, ops, use_backend
from convgru_fused.eager import VARIANTS, Gradients
from convgru_fused.testing import (
    SMOOTH_VARIANTS,
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    reference,
    run,
    sample_inputs,
)

if not ops.triton_interprets():
    pytest.skip("make test runs these with TRITON_INTERPRET=1", allow_module_level=True)

from test_relu import check_operators

from convgru_fused.triton import kernels, launch, layout, problem, tiles, tuning

# Small ones that together have every argument, each of them missing, both ways of loading, tails everywhere.
CASES = (
    "plain",
    "one-step",
    "one-step-hx",
    "1x1-image",
    "kernel-beyond-image",
    "kernel-3x5",
    "no-bias-hx",
    "lengths",
    "lengths-hx",
    "gate-bias",
    "gate-bias-1x1",
    "no-input",
    "no-input-1x1",
    "channels-last",
    "strided",
    "expanded",
    "channels-of-16-1x5",
    "channels-of-16-5x1",
)


def samples(*cases, variants=SMOOTH_VARIANTS):
    return list(sample_inputs(lambda s: s.name.split(f"-{s.variant}")[0] in cases, variants))


def forwards(*cases, **options):
    return [s for s in samples(*cases, **options) if not s.reverse]


@pytest.fixture(autouse=True)
def _memory_full_of_nans():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(sample, dtype=torch.float32, save_gates=True):
    output, gradients = run("triton", sample, dtype, save_gates=save_gates)
    expected_output, expected_gradients = reference(sample, dtype)
    assert output.dtype == dtype
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize(
    "sample",
    forwards(*CASES) + [s for s in samples("plain", "lengths-hx", "everything") if s.reverse],
    ids=str,
)
def test_output_and_gradients(sample):
    check(sample)


@pytest.mark.parametrize("sample", forwards("plain", "lengths-hx", "channels-of-16-1x5"), ids=str)
def test_float16(sample):
    check(sample, torch.float16)


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("absent", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("case", ["plain", "one-step", "gate-bias"])
def test_one_bias(case, absent, variant):
    """Which the kernels add, not the convolution before them."""
    (sample,) = forwards(case, variants=[variant])
    index = Gradients._fields.index(absent)

    def outputs(function, dtype):
        args = list(sample.arguments(torch.float32, requires_grad=True))
        args[index] = None
        args = [a.detach().to(dtype).requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        output = function(*args)
        return output.detach(), autograd_gradients(output, args, sample.grad_output(torch.float32).to(dtype))

    def triton(*args):
        return ops.TRITON.conv_gru(*args, save_gates=True)

    output, gradients = outputs(triton, torch.float32)
    expected_output, expected_gradients = outputs(eager.conv_gru, torch.float64)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize(("case", "joined"), [("plain", False), ("one-step", True), ("no-input-1x1", False)])
def test_no_pass_over_all_gates_for_the_bias(case, joined):
    (sample,) = forwards(case, variants=["gru-rcn"])
    input, _, weight, _, bias_ih, bias_hh, gate_bias, *_ = arguments = sample.arguments(torch.float32)
    outside = problem.outside(problem.Problem(*arguments, False), joined)
    if joined:
        assert outside.a is None
    elif input is None:
        assert outside.a.data_ptr() == gate_bias.data_ptr()
    else:
        x = eager.same_conv(input.flatten(0, 1), weight)
        torch.testing.assert_close(outside.a, x.movedim(1, -1).view(outside.a.shape))
    assert torch.equal(outside.bias, bias_hh if bias_ih is None else bias_ih + bias_hh)


@pytest.mark.parametrize("sample", samples("kernel-3x5", "no-input", "channels-last"), ids=str)
def test_gradients_from_recomputed_gates(sample):
    check(sample, save_gates=False)


@pytest.mark.parametrize(
    "sample", samples("plain", "one-step-hx", "lengths-hx", variants=["gru-rcn-relu"]), ids=str
)
def test_relu(sample):
    check_operators(ops.TRITON.forward, ops.TRITON.backward, sample, torch.float32, fast=False)


@pytest.fixture
def by_library(monkeypatch):
    """PyTorch's convolutions take the place of our own."""
    monkeypatch.setattr(launch, "prefers_library", lambda weight, fast: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sample",
    samples("no-bias-hx", "lengths", "one-step") + forwards("lengths-hx", "kernel-3x5", "gate-bias"),
    ids=str,
)
def test_convolutions_of_the_library(sample, dtype, by_library):
    check(sample, dtype)


@pytest.mark.parametrize("sample", samples("lengths-hx", variants=["gru-rcn-relu"]), ids=str)
def test_relu_after_convolutions_of_the_library(sample, by_library):
    check_operators(ops.TRITON.forward, ops.TRITON.backward, sample, torch.float32, fast=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_library_need_not_copy(variant, by_library, monkeypatch):
    """What the steps hand it is dense and channels last, the weights too; those are laid out once for all."""
    (sample,) = forwards("no-bias-hx", variants=[variant])
    calls = []

    def noted(images, weight, padding):
        calls.append((images, weight))
        return F.conv2d(images, weight, padding=padding)

    monkeypatch.setattr(launch, "F", SimpleNamespace(conv2d=noted, pad=F.pad))
    run("triton", sample, torch.float32)
    assert len(calls) == sample.T * (2 if variant == "cudnn" else 4)
    for tensor in (tensor for pair in calls for tensor in pair):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    # Forward, backward, and of the initial state.
    assert len({weight.data_ptr() for _, weight in calls}) == (3 if variant == "cudnn" else 5)


def test_the_library_is_preferred_where_it_was_faster(monkeypatch):
    monkeypatch.setattr(tiles, "triton_interprets", lambda: False)
    preferred = {}
    for architecture in (("cuda", 80), ("cuda", 90), ("cuda", 100), ("cuda", 120), ("hip", 0)):
        monkeypatch.setattr(tiles, "_architecture", lambda index, value=architecture: value)
        for dtype in (torch.bfloat16, torch.float16):
            weight = torch.empty(0, dtype=dtype)
            preferred[architecture] = tiles.prefers_library(weight, fast=True)
            assert preferred[architecture] == tiles.prefers_library(weight, fast=False)
        assert tiles.prefers_library(torch.empty(0), fast=False)
        assert not tiles.prefers_library(torch.empty(0), fast=True)
    assert [key for key, value in preferred.items() if value] == [("cuda", 90)]


@pytest.mark.parametrize("sample", forwards("channels-of-16-1x5", "channels-last"), ids=str)
def test_pointers(sample, monkeypatch):
    """What descriptors would be used for."""
    monkeypatch.setattr(tiles, "INTERPRETED", replace(tiles.INTERPRETED, descriptors=False))
    check(sample)


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_small_tiles(variant, monkeypatch):
    monkeypatch.setattr(tiles, "INTERPRETED", tiles.Tile(1, 1, 16, 16, 16, True))
    (sample,) = forwards("channels-of-16-1x5", variants=[variant])
    check(replace(sample, T=2, K=24, C=24))


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("asked", [(0,), (1,), (3,), (2, 5), (0, 6)], ids=str)
def test_only_the_gradients_asked_for(asked, variant):
    (sample,) = forwards("gate-bias", variants=[variant])
    sample = replace(sample, T=2, H=3, W=4)
    args = sample.arguments(torch.float32)
    for index in asked:
        args[index].requires_grad_()
    output = ops.TRITON.conv_gru(*args, save_gates=True)
    gradients = autograd_gradients(output, args, sample.grad_output(torch.float32))
    expected = reference(sample, torch.float32)[1]
    assert_gradients_close(gradients, Gradients(*(g if i in asked else None for i, g in enumerate(expected))))


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
def test_what_is_past_the_length_does_not_matter(variant):
    (sample,) = forwards("kernel-3x5", variants=[variant])
    args = sample.arguments(torch.float32, requires_grad=True)
    with torch.no_grad():
        for n, length in enumerate(sample.lengths):
            args[0][length:, n] = float("nan")
    output = ops.TRITON.conv_gru(*args, save_gates=True)
    expected_output, expected_gradients = reference(sample, torch.float32)
    assert_close_to_reference(output.detach(), expected_output)
    gradients = autograd_gradients(output, args, sample.grad_output(torch.float32))
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 2, 2), (2, 65, 67), (1, 64, 128), (2, 3, 1500), (2, 1500, 3), (3, 130, 5)], ids=str
)
def test_transposing(shape, dtype):
    matrices = torch.randn(shape).to(dtype)
    result = layout.transposed(matrices)
    assert result.is_contiguous() and torch.equal(result, matrices.transpose(1, 2))
    rows, columns = layout.tile(*shape[1:])
    assert 4 <= rows * columns <= 4096


def test_formats_change_by_transposing(monkeypatch):
    """Plain and large images; others as PyTorch copies them, or not at all."""
    copied, transposed = [], layout.transposed

    def noted(matrices):
        copied.append(matrices.shape)
        return transposed(matrices)

    monkeypatch.setattr(layout, "transposed", noted)
    plain = torch.randn(2 * 3 * 65 * 13 * 17 + 1)[1:].view(2, 3, 65, 13, 17)  # begins at an odd address
    last = layout.memory(plain)
    assert last.is_contiguous() and torch.equal(last, plain.movedim(2, -1))
    back = layout.in_format(last, plain)
    assert back.is_contiguous() and torch.equal(back, plain)
    assert copied == [(6, 65, 221), (6, 221, 65)]

    like_last = layout.images_of(last)
    for view in (layout.memory(like_last), layout.in_format(last, like_last)):
        assert view.data_ptr() == last.data_ptr()
    for images in (plain[:1], plain[..., 1:], plain[:, :, ::2]):
        assert torch.equal(layout.memory(images), images.movedim(2, -1))
        assert torch.equal(layout.in_format(layout.memory(images), plain), images)
    assert copied[2:] == [(6, 208, 65)]  # the only one that was both, once it was copied


@pytest.mark.parametrize("sample", forwards("plain", "lengths-hx", "gate-bias", "strided"), ids=str)
def test_formats_of_small_images_changed_by_transposing(sample, monkeypatch):
    monkeypatch.setattr(layout, "LARGE", 1)
    check(sample)


def test_gradients_share_no_memory():
    """Those of both biases are the same sum."""
    (sample,) = forwards("plain", variants=["gru-rcn"])
    *tensors, variant, reverse = sample.arguments(torch.float32)
    output, gates = ops.TRITON.forward(*tensors, variant, reverse, False, True)
    mask = [tensor is not None for tensor in tensors[:7]]
    grad_output = sample.grad_output(torch.float32)
    gradients = ops.TRITON.backward(grad_output, *tensors, output, gates, variant, reverse, False, mask)
    assert torch.equal(gradients[4], gradients[5])
    places = [g.data_ptr() for g in gradients if g.numel()]
    assert len(places) == len(set(places))


def test_no_steps():
    (sample,) = forwards("plain", variants=["gru-rcn"])
    sample = replace(sample, T=0)
    output, gradients = run("triton", sample, torch.float32)
    assert output.shape == (0, sample.N, sample.K, sample.H, sample.W)
    assert all(not g.any() for g in gradients if g is not None)


def test_modules(monkeypatch):
    """Through the public interface, a state that begins at an odd address among it."""
    model, cell = ConvGRU(3, 4, num_layers=2, bidirectional=True), ConvGRUCell(3, 4)
    x, h = torch.randn(2, 1, 3, 4, 5), torch.randn(81)[1:].view(1, 4, 5, 4).movedim(-1, 1)
    with use_backend("eager"):
        expected = model(x)[0], cell(x[0], h)
    with use_backend("triton"):
        actual = model(x)[0], cell(x[0], h)
        with pytest.raises(ValueError, match="supports float32, float16, got float64"):
            model.double()(x.double())
    for a, e in zip(actual, expected, strict=True):
        assert_close_to_reference(a, e)


@pytest.mark.parametrize("sample", forwards("no-bias-hx", "gate-bias-1x1"), ids=str)
def test_operators(sample):
    sample = replace(sample, T=2, H=3, W=4)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*sample.arguments(torch.float32, requires_grad=True), False, True)
    opcheck(ops.TRITON.forward, arguments, test_utils=tests)
    output, gates = ops.TRITON.forward(*sample.arguments(torch.float32), False, True)
    *tensors, variant, reverse = sample.arguments(torch.float32)
    mask = [t is not None for t in tensors[:7]]
    grad = sample.grad_output(torch.float32)
    opcheck(
        ops.TRITON.backward, (grad, *tensors, output, gates, variant, reverse, False, mask), test_utils=tests
    )


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Tiles are measured, the later the faster; some do not run."""
    asked = []

    def seconds(call):
        asked.append(call)
        if len(asked) % 20 == 1:
            call()
        if len(asked) == 2:
            raise RuntimeError("out of everything")
        return 1 / len(asked)

    monkeypatch.setenv(tuning.SWITCH, "1")
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    monkeypatch.setattr(launch, "measured", seconds)
    yield asked
    tuning._found.clear()


def test_tuning_is_remembered(tuned, tmp_path):
    (sample,) = forwards("lengths-hx", variants=["gru-rcn"])  # states are overwritten: measuring must not
    sample = replace(sample, T=2, lengths=(1, 2, 0))
    check(sample)
    file = tmp_path / "triton_tiles.json"
    tiles_found = json.loads(file.read_text())
    assert {key.split(", ")[2] for key in tiles_found} == {
        "reset_update_kernel",
        "candidate_kernel",
        "candidate_backward_kernel",
        "reset_update_backward_kernel",
        "add_kernel",
    }
    count = len(tuned)
    assert count > 5
    check(replace(sample, N=1, lengths=(2,)))  # the batch size does not count
    tuning._found.clear()
    check(sample)
    assert len(tuned) == count
    check(replace(sample, H=4))
    assert len(tuned) > count


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"pixels": 3}}'])
def test_a_broken_file_is_replaced(tuned, tmp_path, text):
    file = tmp_path / "triton_tiles.json"
    file.write_text(text)
    with pytest.warns(UserWarning, match="triton_tiles.json: tiles are measured again"):
        tile = tuning.best("key", [tiles.INTERPRETED], lambda tile: 1.0)
    assert tile == tiles.INTERPRETED
    assert list(json.loads(file.read_text())) == ["key"]


def test_nothing_is_remembered_of_what_does_not_run(tuned, tmp_path):
    assert tuning.best("key", [tiles.INTERPRETED], lambda tile: math.inf) == tiles.INTERPRETED
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tuned, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot remember tiles"):
        tuning.best("key", [tiles.INTERPRETED], lambda tile: 1.0)


def test_under_compile_and_functional_transforms():
    """The operators are opaque to both."""
    model, x = ConvGRU(3, 4), torch.randn(2, 2, 3, 4, 5)
    parameters = dict(model.named_parameters())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def loss(parameters, sample):
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(1),))[0].square().sum()

    gradients = {}
    for name in ("eager", "triton"):
        with use_backend(name):
            mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
            gradients[name] = {f"mapped {n}": gradient for n, gradient in mapped.items()}
            compiled(x)[0].square().sum().backward()
            gradients[name] |= {f"compiled {n}": p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
    assert_gradients_close(gradients["triton"], gradients["eager"])


def test_later_launches_go_by_position():
    """What a GPU's first launch gives back is launched with the same arguments, in the kernel's order."""
    calls = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *args: calls.append((grid, dict(zip(Kernel.arg_names, args, strict=True))))

    class Kernel:
        __name__ = "add_kernel"
        arg_names = kernels.add_kernel.arg_names

        def __getitem__(self, grid):
            def first(**arguments):
                assert arguments.pop("num_warps") == tiles.INTERPRETED.warps
                assert arguments.pop("num_stages") == tiles.INTERPRETED.stages
                calls.append((grid, arguments))
                return Compiled()

            return first

    tensors = {"images": torch.zeros(1, 3, 3, 24), "carry": torch.zeros(1, 3, 3, 8)}
    batch, weight = launch.Batch(1, 3, 3, fast=False), torch.zeros(8, 8, 3, 3)
    add = launch.Launcher(Kernel(), batch, weight, 24, tensors, {"C": 8, "STRIDE": 24, "K": 8})
    for _ in range(3):
        add(tensors["images"])
    first, *later = calls
    assert len(later) == 2 and set(first[1]) == set(Kernel.arg_names)
    for grid, arguments in later:
        assert grid == first[0]
        assert all(
            arguments[name] is first[1][name] or arguments[name] == first[1][name] for name in arguments
        )


BAD = {
    "hx": (1, torch.zeros(2, 7, 5, 9), "hx: expected .2, 8, 5, 9., got .2, 7, 5, 9."),
    "weight_ih": (2, torch.zeros(24, 3, 2, 3), r"weight_ih: expected .24, 3, 3, 3., got .24, 3, 2, 3."),
    "weight_hh": (3, torch.zeros(20, 8, 3, 3), "weight_hh: expected .24, 8, 3, 3., got .20, 8, 3, 3."),
    "bias": (
        5,
        torch.zeros(24, dtype=torch.float64),
        "bias_hh: expected torch.float32 on cpu, got torch.float64",
    ),
    "gate_bias": (6, torch.zeros(4, 2, 24, 5, 1), "gate_bias: expected .4, 2, 24, 5, 9. or"),
    "lengths": (7, torch.zeros(3, dtype=torch.int64), "lengths: expected 2 64-bit integers, got .3,."),
    "input": (0, torch.zeros(4, 2, 5, 9), "input, gate_bias: expected .T,N,C,H,W."),
}


@pytest.mark.parametrize(("index", "tensor", "words"), BAD.values(), ids=BAD)
def test_operators_refuse_what_does_not_fit(index, tensor, words):
    (sample,) = forwards("plain", variants=["gru-rcn"])
    arguments = [*sample.arguments(torch.float32), False, True]
    arguments[index] = tensor
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        ops.TRITON.forward(*arguments)


def test_the_gradient_refuses_gates_of_another_size():
    (sample,) = forwards("plain", variants=["gru-rcn"])
    *tensors, variant, reverse = sample.arguments(torch.float32)
    output, gates = ops.TRITON.forward(*tensors, variant, reverse, False, True)
    mask = [tensor is not None for tensor in tensors[:7]]
    with pytest.raises(ValueError, match="gates: expected .0,. or .4, 2, 5, 9, 24., got .3, 2, 5, 9, 24."):
        grad_output = sample.grad_output(torch.float32)
        ops.TRITON.backward(grad_output, *tensors, output, gates[1:], variant, reverse, False, mask)
