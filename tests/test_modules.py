"""ConvGRU and ConvGRUCell as modules: parameters, state, copies, dropout; beside torch.nn.GRU."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from convgru_fused import ConvGRU, ConvGRUCell, functional
from convgru_fused.testing import assert_close_to_reference

OPTIONS = [
    {},
    dict(bias=False),
    dict(num_layers=3),
    dict(bidirectional=True),
    dict(num_layers=2, bidirectional=True, bias=False, batch_first=True, dropout=0.5),
]
each_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@each_options
def test_parameters_are_those_of_torch_gru(options):
    """Names, order and, but for the kernel, shapes."""
    conv, gru = ConvGRU(3, 4, (3, 5), **options), nn.GRU(3, 4, **options)
    for (name, parameter), (gru_name, gru_parameter) in zip(
        conv.named_parameters(), gru.named_parameters(), strict=True
    ):
        assert name == gru_name
        assert parameter.shape == gru_parameter.shape + ((3, 5) if parameter.dim() == 4 else ())
    assert list(conv.state_dict()) == list(gru.state_dict())


def test_arguments_are_those_of_torch_gru():
    """In its order, with a kernel size after the sizes; what nn.GRU does not have is by keyword."""
    names = list(inspect.signature(ConvGRU).parameters)
    gru_names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    assert [name for name in names if name != "kernel_size"][: len(gru_names)] == gru_names
    gru = nn.GRU(*[3, 4, 2, False, True, 0.25, True])
    conv = ConvGRU(3, 4, 3, 2, False, True, 0.25, True)
    for name in gru_names:
        assert getattr(conv, name) == getattr(gru, name), name
    assert list(inspect.signature(conv.forward).parameters)[:2] == ["input", "hx"]


def test_cell_parameters():
    assert {name: tuple(p.shape) for name, p in ConvGRUCell(3, 4, (1, 5)).named_parameters()} == {
        "weight_ih": (12, 3, 1, 5),
        "weight_hh": (12, 4, 1, 5),
        "bias_ih": (12,),
        "bias_hh": (12,),
    }
    assert [name for name, _ in nn.GRUCell(3, 4).named_parameters()] == list(ConvGRUCell(3, 4).state_dict())
    assert list(ConvGRUCell(3, 4, bias=False).state_dict()) == ["weight_ih", "weight_hh"]


@pytest.mark.parametrize("kernel_size", [1, 3, (1, 5)], ids=str)
def test_reset_parameters_is_uniform_within_the_bound(kernel_size):
    conv = ConvGRU(8, 16, kernel_size, num_layers=2, bidirectional=True)
    bound = 1 / math.sqrt(16 * math.prod(conv.kernel_size))
    before = conv.weight_hh_l0.detach().clone()
    conv.reset_parameters()
    assert not torch.equal(before, conv.weight_hh_l0)
    for name, parameter in conv.named_parameters():
        values = parameter.detach().flatten()
        assert values.abs().max() <= bound, name
        # A uniform sample of n values misses the outer 10/n of the interval once in e^10 times.
        assert values.max() > bound * (1 - 20 / values.numel()), name
        assert values.min() < -bound * (1 - 20 / values.numel()), name


def test_initialisation_is_that_of_torch_gru_for_a_1x1_kernel():
    torch.manual_seed(3)
    gru = nn.GRU(3, 4, 2, bidirectional=True)
    torch.manual_seed(3)
    conv = ConvGRU(3, 4, 1, 2, bidirectional=True)
    for parameter, expected in zip(conv.parameters(), gru.parameters(), strict=True):
        assert torch.equal(parameter.view_as(expected), expected)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (ConvGRU(3, 4), "ConvGRU(3, 4, kernel_size=3)"),
        (
            ConvGRU(3, 4, (1, 5), 2, False, True, 0.5, True, variant="cudnn", recompute=True),
            "ConvGRU(3, 4, kernel_size=(1, 5), bias=False, variant='cudnn', num_layers=2, batch_first=True, "
            "dropout=0.5, bidirectional=True, recompute=True)",
        ),
        (ConvGRUCell(3, 4), "ConvGRUCell(3, 4, kernel_size=3)"),
        (ConvGRUCell(3, 4, 5, variant="cudnn"), "ConvGRUCell(3, 4, kernel_size=5, variant='cudnn')"),
    ],
    ids=["gru", "gru-all", "cell", "cell-variant"],
)
def test_repr(module, text):
    assert repr(module) == text


@pytest.mark.parametrize("make", [ConvGRU, ConvGRUCell])
def test_device_and_dtype(make):
    module = make(3, 4, device="cpu", dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in module.parameters())
    meta = make(3, 4, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in meta.parameters())
    materialised = meta.to_empty(device="cpu")
    materialised.reset_parameters()
    assert all(p.device.type == "cpu" and p.isfinite().all() for p in materialised.parameters())
    assert all(p.dtype == torch.float64 for p in make(3, 4).double().parameters())
    assert all(p.is_meta for p in make(3, 4).to("meta").parameters())


def test_meta_tensors_give_shapes():
    """Without computing anything: for planning memory and for deferred initialisation."""
    model = ConvGRU(3, 4, num_layers=2, bidirectional=True, device="meta")
    output, h_n = model(torch.empty(5, 2, 3, 6, 7, device="meta"))
    assert output.is_meta and h_n.is_meta
    assert output.shape == (5, 2, 8, 6, 7)
    assert h_n.shape == (4, 2, 4, 6, 7)


def copies(module, tmp_path):
    yield "deepcopy", copy.deepcopy(module)
    yield "pickle", pickle.loads(pickle.dumps(module))
    torch.save(module, tmp_path / "module.pt")
    yield "save", torch.load(tmp_path / "module.pt", weights_only=False)


@each_options
def test_copies_are_equal_and_independent(backend, options, tmp_path):
    model = ConvGRU(3, 4, **options, dtype=torch.float64).eval()
    x = torch.randn(5, 5, 3, 6, 7, dtype=torch.float64)
    expected = [t.detach() for t in model(x)]
    for how, twin in copies(model, tmp_path):
        assert repr(twin) == repr(model), how
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert all(torch.equal(a, e) for a, e in zip(twin(x), expected, strict=True)), how
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(1)
        model.load_state_dict(twin.state_dict())


def test_state_dict_round_trip(backend, tmp_path):
    options = dict(num_layers=2, bidirectional=True, dtype=torch.float64)
    model, other = ConvGRU(3, 4, **options), ConvGRU(3, 4, **options)
    x = torch.randn(5, 2, 3, 6, 7, dtype=torch.float64)
    assert not torch.equal(model(x)[0], other(x)[0])
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(model(x)[0], other(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        ConvGRU(5, 4, **options).load_state_dict(model.state_dict())


def test_replaced_parameters_are_used(backend):
    """No copy of the weights is kept: parametrisations, pruning and assignment work."""
    model = ConvGRU(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, 6, 7, dtype=torch.float64)
    before, _ = model(x)
    model.weight_hh_l0 = nn.Parameter(torch.zeros_like(model.weight_hh_l0))
    assert not torch.equal(model(x)[0], before)
    plain = model(x)[0].detach()
    nn.utils.parametrizations.weight_norm(model, "weight_ih_l0")
    assert_close_to_reference(model(x)[0], plain)
    with torch.no_grad():
        model.parametrizations.weight_ih_l0.original0.mul_(2)
    assert not torch.allclose(model(x)[0], plain)


def test_requires_grad_of_some_parameters(backend):
    model = ConvGRU(3, 4, num_layers=2)
    model.weight_hh_l0.requires_grad_(False)
    model.bias_ih_l1.requires_grad_(False)
    model(torch.randn(5, 2, 3, 6, 7))[0].sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"weight_hh_l0", "bias_ih_l1"}
    assert all(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_gradients_accumulate(backend):
    model, x = ConvGRU(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, 6, 7, dtype=torch.float64)
    model(x)[0].sum().backward()
    once = [p.grad.clone() for p in model.parameters()]
    model(x)[0].sum().backward()
    for parameter, gradient in zip(model.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_shapes_and_orders(backend, batch_first):
    """batch_first is a transposition of input, gate_bias and output; the states stay; unbatched has no N."""
    model = ConvGRU(3, 4, num_layers=2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    x, gate_bias = (torch.randn(5, 2, c, 6, 7, dtype=torch.float64) for c in (3, 24))
    hx = torch.randn(4, 2, 4, 6, 7, dtype=torch.float64)
    swap = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    output, h_n = model(swap(x), hx, torch.tensor([5, 3]), swap(gate_bias))
    assert output.shape == ((2, 5, 8, 6, 7) if batch_first else (5, 2, 8, 6, 7))
    assert h_n.shape == (4, 2, 4, 6, 7)
    time_first = ConvGRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    time_first.load_state_dict(model.state_dict())
    expected_output, expected_h_n = time_first(x, hx, torch.tensor([5, 3]), gate_bias)
    assert torch.equal(swap(output), expected_output)
    assert torch.equal(h_n, expected_h_n)
    one_output, one_h_n = model(x[:, 0], hx[:, 0], gate_bias=gate_bias[:, 0])
    assert_close_to_reference(one_output, expected_output[:, 0])
    assert_close_to_reference(one_h_n, expected_h_n[:, 0])


def test_h_n_is_the_last_state_of_each_direction(backend):
    model = ConvGRU(3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 3, 3, 6, 7, dtype=torch.float64)
    output, h_n = model(x)
    assert torch.equal(h_n[0], output[-1, :, :4])
    assert torch.equal(h_n[1], output[0, :, 4:])
    hx = torch.randn(2, 3, 4, 6, 7, dtype=torch.float64)
    lengths = [5, 2, 0]
    output, h_n = model(x, hx, torch.tensor(lengths))
    for n, length in enumerate(lengths):
        assert not output[length:, n].any()
        assert torch.equal(h_n[0, n], output[length - 1, n, :4] if length else hx[0, n])
        assert torch.equal(h_n[1, n], output[0, n, 4:] if length else hx[1, n])


def test_lengths_of_inference_mode_in_training(backend):
    with torch.inference_mode():
        lengths = torch.tensor([4, 2])
    model = ConvGRU(3, 4)
    model(torch.randn(4, 2, 3, 5, 6), lengths=lengths)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None


def test_lengths_may_be_a_list(backend):
    model, x = ConvGRU(3, 4), torch.randn(5, 2, 3, 6, 7)
    expected, _ = model(x, lengths=torch.tensor([5, 3]))
    integers = (torch.int8, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    tensors = [torch.tensor([5, 3], dtype=dtype) for dtype in integers]
    for lengths in ([5, 3], (5, 3), torch.tensor([5, 9, 3])[::2], *tensors):
        assert torch.equal(model(x, lengths=lengths)[0], expected)
    with torch.device("meta"):  # where new tensors go
        assert torch.equal(model(x, lengths=[5, 3])[0], expected)


def test_a_sequence_may_be_split(backend):
    """The state carries over: streaming a video in pieces gives what all of it at once gives."""
    model, x = (
        ConvGRU(3, 4, num_layers=2, dtype=torch.float64),
        torch.randn(7, 2, 3, 6, 5, dtype=torch.float64),
    )
    expected, expected_h_n = model(x)
    first, h = model(x[:3])
    second, h = model(x[3:], h)
    assert_close_to_reference(torch.cat((first, second)), expected)
    assert_close_to_reference(h, expected_h_n)


def test_gate_bias_replaces_the_input_convolution(backend):
    """Hoisted: W*x + b_ih computed by the caller."""
    model = ConvGRU(3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 2, 3, 6, 7, dtype=torch.float64)
    directions = [
        (model.weight_ih_l0, model.bias_ih_l0),
        (model.weight_ih_l0_reverse, model.bias_ih_l0_reverse),
    ]
    hoisted = [
        nn.functional.conv2d(x.flatten(0, 1), w, b, padding=1).unflatten(0, (5, 2)) for w, b in directions
    ]
    expected, _ = model(x)
    output, _ = model(None, gate_bias=torch.cat(hoisted, dim=2))
    assert_close_to_reference(output, expected)
    split, _ = model(x, gate_bias=torch.cat([0.5 * h for h in hoisted], dim=2))
    halved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in halved.named_parameters():
            if "_ih_" in name:
                parameter.mul_(1.5)
    assert_close_to_reference(split, halved(x)[0])


def test_cell_is_one_step_of_the_sequence(backend):
    model = ConvGRU(3, 4, dtype=torch.float64)
    cell = ConvGRUCell(3, 4, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in model.state_dict().items()})
    x = torch.randn(3, 2, 3, 6, 7, dtype=torch.float64)
    gate_bias = torch.randn(3, 2, 12, 1, 1, dtype=torch.float64)
    output, _ = model(x, gate_bias=gate_bias)
    h = None
    for t in range(3):
        h = cell(x[t], h, gate_bias[t])
        assert_close_to_reference(h, output[t])
    unbatched = cell(x[0, 0], None, gate_bias[0, 0])
    assert unbatched.shape == (4, 6, 7)
    assert_close_to_reference(unbatched, output[0, 0])
    no_input = cell(None, output[0], gate_bias[0])
    assert no_input.shape == (2, 4, 6, 7)


def test_functional_takes_the_arguments_of_torch_gru(backend):
    model = ConvGRU(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x, hx = torch.randn(2, 5, 3, 6, 7), torch.randn(4, 2, 4, 6, 7)
    output, h_n = functional.conv_gru(x, hx, list(model.parameters()), True, 2, 0.0, False, True, True)
    expected_output, expected_h_n = model(x, hx)
    assert torch.equal(output, expected_output)
    assert torch.equal(h_n, expected_h_n)


class TestDropout:
    """Between layers, in training, from torch's generator: as in torch.nn.GRU."""

    x = torch.ones(5, 2, 3, 6, 7)

    def test_is_active_in_training_only(self, backend):
        model = ConvGRU(3, 4, num_layers=2, dropout=0.5)
        without = copy.deepcopy(model)
        without.dropout = 0.0
        assert not torch.equal(model(self.x)[0], without(self.x)[0])
        assert torch.equal(model.eval()(self.x)[0], without(self.x)[0])

    def test_is_between_layers_only(self, backend):
        """First layer's state and last layer's output have no zeros; a single layer has no dropout at all."""
        model = ConvGRU(3, 4, num_layers=2, dropout=0.9)
        output, h_n = model(self.x)
        assert output.all() and h_n.all()
        single = ConvGRU(3, 4, dropout=0.9)
        expected, _ = single.eval()(self.x)
        assert torch.equal(single.train()(self.x)[0], expected)

    def test_of_everything_leaves_the_biases(self, backend):
        model = ConvGRU(3, 4, num_layers=2, dropout=1.0, dtype=torch.float64)
        x = self.x.double()
        nothing = torch.zeros(5, 2, 4, 6, 7, dtype=torch.float64)
        upper = [getattr(model, f"{name}_l1") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        assert_close_to_reference(model(x)[0], functional.conv_gru(nothing, None, upper)[0])

    def test_is_reproducible_by_seed(self, backend):
        model = ConvGRU(3, 4, num_layers=3, dropout=0.5)
        torch.manual_seed(1)
        first, second = model(self.x)[0], model(self.x)[0]
        torch.manual_seed(1)
        again = model(self.x)[0]
        assert torch.equal(first, again)
        assert not torch.equal(first, second)

    def test_gradients_flow_through_what_is_kept(self, backend):
        model = ConvGRU(3, 4, num_layers=2, dropout=0.5)
        model(self.x)[0].sum().backward()
        assert all(p.grad.any() for p in model.parameters())


def test_activation_checkpoint(backend):
    """A checkpoint hands out what it recomputes once only."""
    gru = ConvGRU(3, 4).double()
    x = torch.randn(3, 2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    gradients = []
    for forward in (gru, lambda x: checkpoint(gru, x, use_reentrant=False)):
        output, _ = forward(x)
        gradients.append(torch.autograd.grad(output.square().sum(), [x, *gru.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_output_of_a_single_step_may_be_changed_in_place(backend, recompute):
    """As a cell's often is, by a ReLU. No gradient needs it: a state that steps share would be needed."""
    gru = ConvGRU(3, 4, recompute=recompute, dtype=torch.float64)
    x, h = torch.randn(1, 2, 3, 5, 6, dtype=torch.float64), torch.randn(1, 2, 4, 5, 6, dtype=torch.float64)
    found = []
    for change in (torch.Tensor.relu, torch.Tensor.relu_):
        gru.zero_grad()
        change(gru(x, h)[0]).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in gru.parameters()])
    for gradient, expected in zip(*reversed(found), strict=True):
        assert torch.equal(gradient, expected)
    cell = ConvGRUCell(3, 4)
    cell(torch.randn(2, 3, 5, 6), torch.randn(2, 4, 5, 6)).relu_().sum().backward()


def test_h_n_of_one_valid_step(backend):
    model = ConvGRU(3, 4, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(5, 3, 3, 6, 7).double(), torch.randn(2, 3, 4, 6, 7).double()
    lengths = [5, 1, 0]
    output, h_n = model(x, hx, torch.tensor(lengths))
    for n, length in enumerate(lengths):
        assert torch.equal(h_n[0, n], output[length - 1, n, :4] if length else hx[0, n])
        assert torch.equal(h_n[1, n], output[0, n, 4:] if length else hx[1, n])
