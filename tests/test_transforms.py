"""torch.func: vmap, per-sample gradients, Jacobians, forward mode; against a loop or reverse mode."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

from convgru_fused import ConvGRU, ConvGRUCell, functional, use_backend
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import assert_close_to_reference, assert_gradients_close

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def double(*shape, requires_grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


@pytest.fixture
def model(request):
    variant = getattr(request, "param", "gru-rcn")
    return ConvGRU(2, 3, bidirectional=True, variant=variant, dtype=torch.float64)


each_model = pytest.mark.parametrize("model", VARIANTS, indirect=True)


def loss(model, parameters, x, *args):
    output, h_n = functional_call(model, parameters, (x, *args))
    return output.sin().sum() + h_n.square().sum()


@each_model
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
def test_per_sample_gradients_equal_a_loop(backend, model, recompute):
    model.recompute = recompute
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = double(4, 3, 1, 2, 5, 4)  # 4 samples of T=3, N=1

    def gradients(sample):
        return grad(lambda p: loss(model, p, sample))(parameters)

    mapped = vmap(gradients)(x)
    for i, sample in enumerate(x):
        assert_gradients_close({name: g[i] for name, g in mapped.items()}, gradients(sample))
    # Their sum is the gradient of the batch, which is what they are used to take apart.
    whole = grad(lambda p: loss(model, p, x.squeeze(2).transpose(0, 1)))(parameters)
    assert_gradients_close({name: g.sum(0) for name, g in mapped.items()}, whole)


@each_variant
@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
def test_vmap_over_the_input(backend, variant, in_dim):
    model = ConvGRU(2, 3, variant=variant, dtype=torch.float64)
    x = double(4, 3, 2, 2, 5, 6)
    output, h_n = vmap(model, in_dims=in_dim)(x.movedim(0, in_dim))
    for i in range(4):
        expected_output, expected_h_n = model(x[i])
        assert_close_to_reference(output[i], expected_output)
        assert_close_to_reference(h_n[i], expected_h_n)


@each_variant
def test_vmap_over_the_weights(backend, variant):
    """An ensemble: four models of one shape on the same input."""
    models = [ConvGRU(2, 3, variant=variant, dtype=torch.float64) for _ in range(4)]
    parameters, buffers = stack_module_state(models)
    x = double(3, 2, 2, 5, 4)

    def call(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (x,))[0]

    output = vmap(call)(parameters, buffers)
    for i, model in enumerate(models):
        assert_close_to_reference(output[i], model(x)[0])


@each_variant
@pytest.mark.parametrize("mapped", ["hx", "gate_bias", "weight_hh", "bias_hh", "lengths"])
def test_vmap_over_one_other_argument(backend, variant, mapped):
    shapes = {
        "hx": (1, 2, 3, 5, 4),
        "gate_bias": (3, 2, 9, 1, 1),
        "weight_ih": (9, 2, 3, 3),
        "weight_hh": (9, 3, 3, 3),
        "bias_ih": (9,),
        "bias_hh": (9,),
    }
    fixed = {name: double(*shape) for name, shape in shapes.items()}
    fixed["lengths"] = torch.tensor([3, 1])
    x = double(3, 2, 2, 5, 4)

    def call(value):
        given = {**fixed, mapped: value}
        params = [given[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return functional.conv_gru(
            x, given["hx"], params, lengths=given["lengths"], gate_bias=given["gate_bias"], variant=variant
        )[0]

    values = torch.tensor([[3, 1], [0, 2]]) if mapped == "lengths" else double(2, *shapes[mapped])
    output = vmap(call)(values)
    for i in range(2):
        assert_close_to_reference(output[i], call(values[i]))


@each_variant
def test_vmap_without_an_input(backend, variant):
    weight_hh = double(9, 3, 3, 3)
    weight_ih = double(9, 2, 3, 3)
    gate_bias = double(4, 3, 2, 9, 5, 4)

    def call(gate_bias):
        return functional.conv_gru(
            None, None, [weight_ih, weight_hh], has_biases=False, gate_bias=gate_bias, variant=variant
        )[0]

    output = vmap(call)(gate_bias)
    for i in range(4):
        assert_close_to_reference(output[i], call(gate_bias[i]))


def test_nested_vmap(backend, model):
    x = double(2, 3, 4, 1, 2, 5, 4)
    output = vmap(vmap(lambda x: model(x)[0]))(x)
    for i in range(2):
        for j in range(3):
            assert_close_to_reference(output[i, j], model(x[i, j])[0])


def test_vmap_of_an_empty_batch(backend, model):
    """N=0 within each mapped problem."""
    assert vmap(lambda x: model(x)[0])(double(4, 3, 0, 2, 5, 4)).shape == (4, 3, 0, 6, 5, 4)


@each_variant
def test_jacobian_equals_a_loop_over_outputs(backend, variant):
    cell = ConvGRUCell(2, 3, variant=variant, dtype=torch.float64)
    x, h = double(1, 2, 2, 3), double(1, 3, 2, 3)
    jacobian = jacrev(cell, argnums=1)(x, h)
    h.requires_grad_()
    output = cell(x, h)
    for index in range(output.numel()):
        (row,) = torch.autograd.grad(output.flatten()[index], h, retain_graph=True)
        assert_close_to_reference(jacobian.flatten(0, 3)[index], row)


@each_model
def test_vjp_equals_backward(backend, model):
    x = double(3, 2, 2, 5, 4)
    output, pull_back = vjp(lambda x: model(x)[0], x)
    cotangent = torch.randn_like(output)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[0], x, cotangent)
    assert_gradients_close({"x": pull_back(cotangent)[0]}, {"x": expected})


@each_model
def test_forward_mode_is_the_transpose_of_reverse_mode(model):
    """<J v, u> = <v, J^T u> for all arguments at once; the library chooses a backend that can."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    primals = (double(3, 2, 2, 5, 4), double(2, 2, 3, 5, 4), *parameters.values())
    tangents = tuple(torch.randn_like(p) for p in primals)

    def call(x, hx, *values):
        return functional_call(
            model, dict(zip(parameters, values, strict=True)), (x, hx, torch.tensor([3, 1]))
        )[0]

    output, tangent = jvp(call, primals, tangents)
    assert_close_to_reference(output, call(*primals))
    cotangent = torch.randn_like(output)
    gradients = vjp(call, *primals)[1](cotangent)
    reverse = sum((g * v).sum() for g, v in zip(gradients, tangents, strict=True))
    assert abs(reverse) > 1e-2
    assert_close_to_reference((tangent * cotangent).sum(), reverse, "<J v, u>")


def test_dual_numbers_work_and_the_native_backend_refuses_them(model):
    x = double(3, 2, 2, 5, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(model(dual)[0]).tangent
        with (
            use_backend("cpu"),
            pytest.raises(ValueError, match="'cpu' cannot run.*no forward-mode derivative"),
        ):
            model(dual)
    expected = jvp(lambda x: model(x)[0], (x,), (torch.ones_like(x),))[1]
    assert_close_to_reference(tangent, expected)


@each_variant
def test_forward_over_reverse_hessian_equals_reverse_over_reverse(variant):
    weight = double(3, 1, 1, 1)
    hx = double(1, 1, 1, 1, 2)

    def value(x):
        return (
            functional.conv_gru(x, hx, [weight, weight], has_biases=False, variant=variant)[0].square().sum()
        )

    x = double(2, 1, 1, 1, 2)
    assert_close_to_reference(hessian(value)(x), jacrev(jacrev(value))(x))


@each_variant
def test_hessian_of_the_native_backend(variant):
    """Reverse over reverse under vmap: the operator's backward, its derivative and the rules for both."""
    cell = ConvGRUCell(1, 2, kernel_size=1, variant=variant, dtype=torch.float64)
    x, h = double(1, 1, 1, 2), double(1, 2, 1, 2)
    results = []
    for name in ("cpu", "eager"):
        with use_backend(name):
            results.append(
                jacrev(jacrev(lambda x, h: cell(x, h).sin().sum(), argnums=(0, 1)), argnums=1)(x, h)
            )
    for actual, expected in zip(*results, strict=True):
        assert expected.abs().max() > 1e-4
        assert_close_to_reference(actual, expected)


def test_gradients_under_autocast(backend):
    """grad, and vmap of it, of a layer that computes in bfloat16: as without torch.func."""
    model = ConvGRU(2, 3, num_layers=2)
    x = torch.randn(4, 3, 1, 2, 5, 4)

    def loss(sample):
        return model(sample)[0].float().sin().sum()

    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (expected,) = torch.autograd.grad(sum(loss(sample) for sample in leaf), leaf)
        one, all_at_once = grad(loss)(x[0]), vmap(grad(loss))(x)
    largest = expected.abs().max()
    assert (one - expected[0]).abs().max() <= 0.02 * largest  # bfloat16 has 8 bits
    assert (all_at_once - expected).abs().max() <= 0.02 * largest


@each_model
def test_tangents_of_the_gradient_of_the_output(model):
    """The backward pass is linear in it, so the tangent is the backward pass of the tangent."""
    x = double(3, 1, 2, 5, 4, requires_grad=True)
    output = model(x)[0]
    grad_output, tangent = torch.randn_like(output), torch.randn_like(output)
    inputs = [x, *model.parameters()]
    expected = torch.autograd.grad(output, inputs, tangent, retain_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad_output, tangent)
        gradients = torch.autograd.grad(output, inputs, dual)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert_close_to_reference(forward_ad.unpack_dual(gradient).tangent, wanted)


@each_model
def test_jvp_of_vjp(model):
    x = double(3, 1, 2, 5, 4)
    output, pullback = vjp(lambda x: model(x)[0], x)
    vector, tangent = torch.randn_like(output), torch.randn_like(output)
    _, (found,) = jvp(pullback, (vector,), (tangent,))
    assert_close_to_reference(found, pullback(tangent)[0])


def test_a_cell_that_was_called_before_has_a_forward_mode_derivative():
    cell = ConvGRUCell(2, 3, dtype=torch.float64)
    x, h = torch.randn(2, 2, 5, 4).double(), torch.randn(2, 3, 5, 4).double()
    expected = cell(x, h)
    output, tangent = jvp(cell, (x, h), (torch.ones_like(x), torch.ones_like(h)))
    assert_close_to_reference(output, expected)
    assert tangent.any()
