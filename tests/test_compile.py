"""torch.compile and torch.export: one graph, dynamic sizes, no second compilation for a new T."""

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import RecompileError
from torch.export import Dim, ExportedProgram

from convgru_fused import ConvGRU, ConvGRUCell, functional, use_backend
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import assert_close_to_reference, assert_gradients_close

each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def _one_compilation():
    """Starts with nothing compiled; a second compilation of the same code raises."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def compiled_whole(function, backend="aot_eager", **options):
    """The compiled function; raises where it would break into several graphs."""
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def inputs(T=4, N=2, H=5, W=9, **options):
    return torch.randn(T, N, 3, H, W, dtype=torch.float64, **options)


def training_step(model, x, *args):
    """Output, h_n and the gradients of a function of both, for a model that may be compiled."""
    leaves = {"x": x.detach().requires_grad_(), **dict(model.named_parameters())}
    output, h_n = model(leaves["x"], *args)
    value = output.sin().sum() + h_n.cos().sum()
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return (
        output,
        h_n,
        {name.removeprefix("_orig_mod."): g for name, g in zip(leaves, gradients, strict=True)},
    )


def assert_same_step(actual, expected):
    assert_close_to_reference(actual[0], expected[0])
    assert_close_to_reference(actual[1], expected[1], "h_n")
    assert_gradients_close(actual[2], expected[2])


MANY = dict(num_layers=2, bidirectional=True, recompute=True)


# Eager once only: its loop over T is unrolled, which takes the compiler seconds.
@pytest.mark.parametrize(
    ("name", "variant", "options"),
    [("cpu", "gru-rcn", {}), ("cpu", "gru-rcn", MANY), ("cpu", "cudnn", MANY), ("eager", "cudnn", {})],
    ids=["cpu-gru-rcn", "cpu-gru-rcn-many", "cpu-cudnn-many", "eager-cudnn"],
)
def test_training_with_static_shapes(name, variant, options):
    model = ConvGRU(3, 4, variant=variant, dtype=torch.float64, **options)
    compiled = compiled_whole(model, dynamic=False)
    x = inputs()
    with use_backend(name):
        for _ in range(2):
            assert_same_step(training_step(compiled, x), training_step(model, x))


@each_variant
def test_training_with_dynamic_shapes(variant):
    """On the native backend: the operator hides the loop over T, so one graph serves all T, N, H and W."""
    model = ConvGRU(3, 4, bidirectional=True, variant=variant, dtype=torch.float64)
    compiled = compiled_whole(model, dynamic=True)
    for sizes in (dict(), dict(T=7), dict(T=2, N=5, H=8, W=3)):
        x = inputs(**sizes)
        assert_same_step(training_step(compiled, x), training_step(model, x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_with_dynamic_shapes_and_lengths(mode):
    model = ConvGRU(3, 4, bidirectional=True, dtype=torch.float64).eval()
    compiled = compiled_whole(model, dynamic=True)
    with mode():
        for T, N in ((7, 6), (4, 6), (8, 2)):  # sizes that are equal at first would be taken for one size
            x, hx = inputs(T, N), torch.randn(2, N, 4, 5, 9, dtype=torch.float64)
            lengths = torch.arange(N) % (T + 1)
            output, h_n = compiled(x, hx, lengths)
            expected_output, expected_h_n = model(x, hx, lengths)
            assert_close_to_reference(output, expected_output)
            assert_close_to_reference(h_n, expected_h_n, "h_n")


def test_training_with_lengths():
    model = ConvGRU(3, 4, bidirectional=True, dtype=torch.float64)
    compiled = compiled_whole(model, dynamic=True)
    for T, lengths in ((4, [4, 0]), (6, [3, 6]), (5, [1, 5])):
        x, lengths = inputs(T), torch.tensor(lengths)
        assert_same_step(training_step(compiled, x, None, lengths), training_step(model, x, None, lengths))


def test_a_marked_time_axis_compiles_once():
    """mark_dynamic is how one names the axis; it raises if anything in the graph makes T a constant."""
    model = ConvGRU(3, 4, dtype=torch.float64)
    compiled = compiled_whole(model)
    for T in (4, 5, 17):
        x = inputs(T)
        torch._dynamo.mark_dynamic(x, 0)
        assert_close_to_reference(compiled(x)[0], model(x)[0])


def test_a_new_length_compiles_once_more_where_nothing_is_said():
    """By default torch compiles for the first T and then once for any; with static sizes, for each."""
    model = ConvGRU(3, 4, dtype=torch.float64)
    compiled = compiled_whole(model)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for T in (4, 5):
            compiled(inputs(T))
    for T in (6, 9, 33):
        x = inputs(T)
        assert_close_to_reference(compiled(x)[0], model(x)[0])
    torch._dynamo.reset()
    compiled = compiled_whole(model, dynamic=False)
    compiled(inputs(4))
    with pytest.raises(RecompileError):  # so these tests would notice
        compiled(inputs(5))


@each_variant
def test_cell_in_a_compiled_loop(backend, variant):
    class Decoder(nn.Module):
        """The input of a step is the state of the last: what only the cell can do."""

        def __init__(self):
            super().__init__()
            self.cell = ConvGRUCell(4, 4, variant=variant, dtype=torch.float64)

        def forward(self, h, gate_bias):
            states = []
            for _ in range(3):
                h = self.cell(h, h, gate_bias)
                states.append(h)
            return torch.stack(states), h[None]

    model = Decoder()
    compiled = compiled_whole(model)
    h, gate_bias = (torch.randn(2, c, 5, 9, dtype=torch.float64) for c in (4, 12))
    assert_same_step(training_step(compiled, h, gate_bias), training_step(model, h, gate_bias))


def test_module_within_a_bigger_graph():
    """Operations before and after are in the same graph, and views of the output are no obstacle."""
    gru = ConvGRU(3, 4, batch_first=True, dtype=torch.float64)
    head = nn.Conv2d(4, 2, 1, dtype=torch.float64)

    def model(video):
        output, h_n = gru(video.relu().movedim(-1, 2))
        return head(output[:, -1]) + head(h_n[0]).exp()

    compiled = compiled_whole(model)
    video = torch.randn(2, 4, 5, 9, 3, dtype=torch.float64)  # channels last, as frames are decoded
    assert_close_to_reference(compiled(video), model(video))


def test_autocast_is_compiled_in(backend):
    model, x = ConvGRU(3, 4), torch.randn(4, 2, 3, 5, 9)

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    compiled = compiled_whole(forward)
    output, h_n = compiled(x)
    assert output.dtype == h_n.dtype == torch.bfloat16
    assert torch.equal(output, forward(x)[0])


def test_inductor():
    """Code is generated around the operator, forward and backward, with a dynamic T."""
    model = ConvGRU(3, 4, num_layers=2, dtype=torch.float64)
    compiled = compiled_whole(model, "inductor", dynamic=True)
    for T in (4, 6):
        x = inputs(T)
        assert_same_step(training_step(compiled, x), training_step(model, x))


def test_functional_form_compiles():
    params = [torch.randn(*shape, dtype=torch.float64) for shape in ((12, 3, 3, 3), (12, 4, 3, 3))]

    def forward(x):
        return functional.conv_gru(x, None, params, has_biases=False, variant="cudnn")

    compiled = compiled_whole(forward)
    x = inputs()
    assert_close_to_reference(compiled(x)[0], forward(x)[0])


def exported(model, *args, dynamic_shapes):
    return torch.export.export(model, args, dynamic_shapes=dynamic_shapes)


@each_variant
def test_export_with_dynamic_time_and_batch(variant):
    model = ConvGRU(3, 4, bidirectional=True, variant=variant, dtype=torch.float64).eval()
    T, N = Dim("T", min=2, max=64), Dim("N", min=2, max=64)
    program = exported(model, inputs(), dynamic_shapes={"input": {0: T, 1: N}})
    assert isinstance(program, ExportedProgram)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.convgru_fused.conv_gru.default) == 2  # one a direction, whatever T
    for sizes in (dict(), dict(T=9), dict(T=2, N=5)):
        x = inputs(**sizes)
        for actual, expected in zip(program.module()(x), model(x), strict=True):
            assert_close_to_reference(actual, expected)


def test_export_with_all_arguments():
    model = ConvGRU(3, 4, dtype=torch.float64).eval()
    T = Dim("T", min=2, max=64)
    hx, gate_bias = (torch.randn(*s, dtype=torch.float64) for s in ((1, 2, 4, 5, 9), (4, 2, 12, 1, 1)))
    args = inputs(), hx, torch.tensor([4, 1]), gate_bias
    program = exported(
        model,
        *args,
        dynamic_shapes={"input": {0: T}, "hx": None, "lengths": None, "gate_bias": {0: T}},
    )
    args = inputs(6), hx, torch.tensor([0, 6]), torch.randn(6, 2, 12, 1, 1, dtype=torch.float64)
    for actual, expected in zip(program.module()(*args), model(*args), strict=True):
        assert_close_to_reference(actual, expected)


def test_exported_program_survives_a_file(tmp_path):
    model = ConvGRU(3, 4, dtype=torch.float64).eval()
    program = exported(model, inputs(), dynamic_shapes={"input": {0: Dim("T", min=2, max=64)}})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    x = inputs(7)
    for actual, expected in zip(loaded(x), model(x), strict=True):
        assert torch.equal(actual, expected)


FRESH = """
import torch
from convgru_fused import ConvGRU, ConvGRUCell
compiled = lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
x = torch.randn(3, 2, 3, 5, 9)
"""


@pytest.mark.parametrize(
    "code",
    [
        "compiled(ConvGRU(3, 4))(x)",
        "compiled(ConvGRUCell(3, 4))(x[0])",
        "compiled(ConvGRU(3, 4, bidirectional=True))(x, lengths=[3, 2])[0].sum().backward()",
        "compiled(ConvGRU(3, 4, device='meta'))(x.to('meta'))",
        "torch.export.export(ConvGRU(3, 4), (x,), strict=True)",
    ],
)
def test_as_the_first_thing_in_a_process(run_python, code):
    """Nothing is found out or made at the first call that a compiler could not follow."""
    result = run_python(FRESH + code)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*is deprecated")
@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace(grad, tmp_path):
    """What is traced serves other sizes, and has gradients."""
    model = ConvGRU(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.jit.save(torch.jit.trace(model, (inputs(),)), tmp_path / "model.pt")
    traced = torch.jit.load(tmp_path / "model.pt")
    x = inputs(T=4, N=3, H=7, W=6)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in traced.named_parameters()] == names
    assert_same_step(training_step(traced, x), training_step(model, x))
