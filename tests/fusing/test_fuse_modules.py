"""A fused module is still itself: to whoever trains, saves, copies, compiles, hooks or changes it."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
from cell_styles import CELLS, WRAPPERS, C, H, HiddenTermsAbsent, K, N, RaftOrder, StateKept, StateNone, W
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import convgru_fused
from convgru_fused import fuse, unfuse
from convgru_fused.fusing.forward import FusedForward


class Tower(nn.Module):
    """A model around a cell."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, C, 3, padding=1)
        self.cell = RaftOrder()
        self.head = nn.Conv2d(K, 1, 1)

    def forward(self, frames):
        h = frames.new_zeros(frames.size(1), K, *frames.shape[-2:])
        for frame in frames:
            h = self.cell(h, torch.relu(self.encoder(frame)))
        return self.head(h)


def frames(dtype=torch.float64, size=(H, W)):
    return torch.randn(3, N, 3, *size, dtype=dtype)


def is_fused(module):
    return isinstance(vars(module).get("forward"), FusedForward)


@pytest.fixture
def counted(monkeypatch):
    """Calls of the library's cell."""
    calls = []
    cell = convgru_fused.functional.conv_gru_cell

    def counting(*args, **kwargs):
        calls.append(args)
        return cell(*args, **kwargs)

    monkeypatch.setattr(convgru_fused.functional, "conv_gru_cell", counting)
    return calls


@pytest.fixture
def pair():
    """A model, and the same fused."""
    model = Tower().double()
    fused = copy.deepcopy(model)
    report = fuse(fused, frames())
    assert [r.path for r in report.replaced] == ["cell"]
    return model, fused


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_identity_stays():
    model = Tower()
    cell, keys = model.cell, list(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    fuse(model, frames(torch.float32))
    assert model.cell is cell and type(cell) is RaftOrder and is_fused(cell)
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters


def test_training_goes_on_as_before(pair):
    losses = []
    for model in pair:
        torch.manual_seed(1)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(4):
            optimiser.zero_grad()
            loss = model(frames()).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    assert_equal(losses[:4], losses[4:])
    assert losses[0] != losses[3]


@pytest.mark.parametrize("change", ["add_", "data", "assigned", "loaded"])
def test_changed_weights_are_used(pair, change):
    """However a parameter is changed: what cannot be seen by a version counter as well."""
    x = frames()
    before = pair[1](x)
    with torch.no_grad():
        for model in pair:
            weight = model.cell.to_z.weight
            if change == "add_":
                weight.add_(0.1)
            elif change == "data":
                weight.data.mul_(2)
            elif change == "assigned":
                model.cell.to_z.weight = nn.Parameter(weight * 2)
            else:
                model.load_state_dict({name: 1.5 * p for name, p in model.state_dict().items()})
    assert_equal(pair[1](x), pair[0](x))
    assert not torch.allclose(pair[1](x), before)


def test_other_shapes(pair, counted):
    for size in ((H, W), (11, 5), (H, W), (3, 3)):
        counted.clear()
        x = frames(size=size)
        assert_equal(pair[1](x), pair[0](x))
        assert len(counted) >= 3, "the cell was not fused for these sizes"


def test_batch_of_none(pair):
    x = frames()[:, :0]
    assert_equal(pair[1](x), pair[0](x))


def test_state_absent_after_state_given(counted):
    """Another formula, verified when it is met."""
    cell = StateNone().double()
    x, h = torch.randn(N, C, H, W, dtype=torch.float64), torch.randn(N, K, H, W, dtype=torch.float64)
    expected = cell(x), cell(x, h)
    fuse(cell, (x, h))
    assert_equal((cell(x), cell(x, h)), expected)
    counted.clear()
    cell(x)
    assert len(counted) == 1


def test_hidden_terms_absent_without_a_state():
    """A cell that leaves out the hidden convolutions, biases included, when there is no state."""

    cell = HiddenTermsAbsent().double()
    x, h = torch.randn(N, C, H, W, dtype=torch.float64), torch.randn(N, K, H, W, dtype=torch.float64)
    expected = cell(x), cell(x, h)
    assert fuse(cell, (x, h)).replaced
    assert_equal((cell(x), cell(x, h)), expected)


def test_stateful_cell_step_by_step():
    plain = StateKept().double()
    fused = copy.deepcopy(plain)
    assert fuse(fused, torch.randn(N, C, H, W, dtype=torch.float64)).replaced
    for _ in range(2):
        for _ in range(3):
            x = torch.randn(N, C, H, W, dtype=torch.float64)
            assert_equal(fused(x), plain(x))
            assert_equal(fused.hidden, plain.hidden)
            assert not fused.hidden.requires_grad
        plain.reset(), fused.reset()


def test_hooks_of_the_cell_run(pair):
    seen = []
    pair[1].cell.register_forward_pre_hook(lambda module, args: seen.append("before"))
    pair[1].cell.register_forward_hook(lambda module, args, result: seen.append("after"))
    pair[1].cell.register_full_backward_hook(lambda module, *grads: seen.append("backward"))
    x = frames()[:1]
    assert_equal(pair[1](x.requires_grad_()), pair[0](x))
    pair[1](x).sum().backward()
    assert seen == ["before", "after"] * 2 + ["backward"]


def test_hooks_are_not_copied(pair, counted):
    """Looking at a new kind of call copies the module, and not whose method a hook is."""

    class Watcher:
        def __init__(self, model):
            self.model, self.kept = model, []
            model.cell.register_forward_hook(self.keep)

        def keep(self, module, args, result):
            self.kept.append(result)  # of a graph: it cannot be copied

        def __deepcopy__(self, memo):
            raise AssertionError

    watcher = Watcher(pair[1])
    for size in ((H, W), (6, 5)):
        x = frames(size=size)
        assert_equal(pair[1](x), pair[0](x))
        assert len(watcher.kept) == len(counted) == 3
        watcher.kept.clear(), counted.clear()


def test_a_hook_inside_brings_the_own_code_back(pair, counted):
    seen = []
    x = frames()
    handle = pair[1].cell.to_n.register_forward_hook(lambda *args: seen.append(1))
    assert_equal(pair[1](x), pair[0](x))
    assert len(seen) == 3 and not counted
    handle.remove()
    pair[1](x)
    assert len(seen) == 3 and len(counted) == 3


def test_hooks_inside_are_a_reason():
    cell = RaftOrder()
    cell.to_n.register_forward_hook(lambda *args: None)
    report = fuse(cell, (torch.randn(N, K, H, W), torch.randn(N, C, H, W)))
    assert not report.replaced
    assert report.skipped[0].reason == "a hook on its submodule 'to_n', which would not be called"


@pytest.mark.parametrize("how", ["exchanged", "in place"])
def test_a_state_that_is_a_buffer(how):
    """Exchanged or overwritten in the forward: left alone, and said."""

    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = RaftOrder()
            self.register_buffer("hidden", torch.zeros(N, K, H, W))

        def forward(self, x):
            h = self.cell(self.hidden, x)
            if how == "exchanged":
                self.hidden = h.detach()
            else:
                self.hidden.copy_(h.detach())
            return h

    model = Buffered()
    plain = copy.deepcopy(model)
    x = torch.randn(N, C, H, W)
    report = fuse(model, (x,))
    assert [r.path for r in report.replaced] == ["cell"]
    for _ in range(3):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.hidden, plain.hidden, rtol=1e-4, atol=1e-5)


def test_an_exchanged_submodule_brings_the_own_code_back(pair):
    x = frames()
    for model in pair:
        torch.manual_seed(0)
        model.cell.to_n = nn.Conv2d(K + C, K, 5, padding=2).double()
    assert_equal(pair[1](x), pair[0](x))


def test_parametrisation_added_later(pair):
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    x = frames()
    for model in pair:
        parametrize.register_parametrization(model.cell.to_r, "weight", Halved())
    assert_equal(pair[1](x), pair[0](x))


def test_deepcopy_has_weights_of_its_own(pair):
    x = frames()
    twin = copy.deepcopy(pair[1])
    with torch.no_grad():
        pair[1].cell.to_z.weight.zero_()
    assert is_fused(twin.cell)
    assert twin.cell.forward.module is twin.cell
    assert_equal(twin(x), pair[0](x))


def test_pickle(pair):
    x = frames()
    twin = pickle.loads(pickle.dumps(pair[1]))
    assert is_fused(twin.cell)
    assert_equal(twin(x), pair[0](x))
    file = io.BytesIO()
    torch.save(pair[1], file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=False)(x), pair[0](x))


def test_state_dict_goes_either_way(pair):
    other = Tower().double()
    other.load_state_dict(pair[1].state_dict())
    x = frames()
    assert_equal(other(x), pair[1](x))


def test_compile_after_fuse(pair):
    """The whole graph, the library's operator in it, for several sizes."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(pair[1], backend=backend, fullgraph=True)
    for size in ((H, W), (9, 5), (5, 9)):
        x = frames(size=size)
        assert_equal(compiled(x), pair[0](x))
    assert all(any("convgru_fused.conv_gru" in target for target in graph) for graph in graphs)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_compiled_autocast(where):
    """Types are those of the own code. It is fused if fuse was called under autocast as well."""
    cell = RaftOrder()
    fused = copy.deepcopy(cell)
    h, x = torch.randn(N, K, H, W), torch.randn(N, C, H, W)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside"):
        assert fuse(fused, (h, x)).replaced
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.code))
        return graph

    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    for state in (h, h.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            expected, actual = cell(state, x), compiled(state, x)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.float(), expected.float(), rtol=0.03, atol=0.03)
    assert ("convgru_fused" in graphs[0]) == (where == "inside")


def test_compiled_training(pair):
    compiled = torch.compile(pair[1], backend="aot_eager", fullgraph=True)
    x = frames()
    compiled(x).square().sum().backward()
    pair[0](x).square().sum().backward()
    for a, b in zip(pair[1].parameters(), pair[0].parameters(), strict=True):
        assert_equal(a.grad, b.grad)


def test_export(pair):
    x = frames()
    program = torch.export.export(pair[1], (x,))
    assert "convgru_fused" in str(program.graph)
    assert_equal(program.module()(x), pair[0](x))


def test_export_of_the_cell_itself():
    cell = RaftOrder().double()
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    expected = cell(h, x)
    fuse(cell)
    for strict in (False, True):
        exported = torch.export.export(cell, (h, x), strict=strict)
        assert "convgru_fused" in str(exported.graph)
        assert_equal(exported.module()(h, x), expected)


def test_trace(pair):
    x = frames()
    traced = torch.jit.trace(pair[1], x, check_trace=False)
    assert_equal(traced(x), pair[0](x))


def test_functional_call(pair):
    x = frames()
    other = {name: 0.5 * p for name, p in pair[0].named_parameters()}
    assert_equal(torch.func.functional_call(pair[1], other, x), torch.func.functional_call(pair[0], other, x))


def test_per_sample_gradients(pair):
    """Under a transform of torch.func."""

    def gradients(model, x):
        parameters = dict(model.named_parameters())

        def loss(parameters, sample):
            return torch.func.functional_call(model, parameters, sample.unsqueeze(1)).square().mean()

        return torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)

    x = frames()
    assert_equal(gradients(pair[1], x), gradients(pair[0], x))


def test_autocast_keeps_types():
    """State and result have the types that the own code gives them, values are as close."""
    cell = RaftOrder()
    fused = copy.deepcopy(cell)
    h, x = torch.randn(N, K, H, W), torch.randn(N, C, H, W)
    exact = cell(h, x)
    fuse(fused, (h, x))
    for state in (h, h.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            expected, actual = cell(state, x), fused(state, x)
            again = fused(state, x)
        assert actual.dtype == again.dtype == expected.dtype
        torch.testing.assert_close(actual.float(), exact, rtol=0.03, atol=0.03)
        assert torch.equal(actual, again)


class FirstStep(RaftOrder):
    def forward(self, x):
        return super().forward(x.new_zeros(x.size(0), K, *x.shape[-2:]), x)


def test_autocast_keeps_the_type_of_a_state_that_is_absent(counted):
    cell = FirstStep()
    fused = copy.deepcopy(cell)
    x = torch.randn(N, C, H, W)
    fuse(fused)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = cell(x), fused(x)
    assert counted and actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.03, atol=0.03)


class WithoutAutocast(RaftOrder):
    def forward(self, h, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(h, x)


def test_autocast_switched_off_inside():
    cell = WithoutAutocast()
    h, x = torch.randn(N, K, H, W), torch.randn(N, C, H, W)
    expected = cell(h, x)
    assert fuse(cell).replaced
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cell(h, x), expected)


def test_autocast_is_fused(counted):
    cell = RaftOrder()
    h, x = torch.randn(N, K, H, W), torch.randn(N, C, H, W)
    fuse(cell, (h, x))
    with torch.autocast("cpu", torch.bfloat16):
        cell(h, x)
        counted.clear()
        cell(h, x)
    assert len(counted) == 1


def test_type_changed_after_fuse(pair, counted):
    """Another type is another kind of call; the weights go along."""
    model, fused = (m.float() for m in pair)
    x = frames(torch.float32)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    counted.clear()
    fused(x)
    assert len(counted) == 3


def test_channels_last(pair):
    x = frames()
    model, fused = (m.to(memory_format=torch.channels_last) for m in pair)
    x = torch.stack([f.contiguous(memory_format=torch.channels_last) for f in x])
    assert_equal(fused(x), model(x))


def test_inference_mode(pair, counted):
    x = frames(size=(5, 5))
    with torch.inference_mode():
        assert_equal(pair[1](x), pair[0](x))
        counted.clear()
        pair[1](x)
    assert len(counted) == 3


def test_checkpoint(pair):
    """The first call of a kind is computed as later ones are: a checkpoint computes it twice."""
    x = frames(size=(5, 4)).requires_grad_()
    gradients = []
    for model in pair:
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
        gradients.append(x.grad)
        x.grad = None
    assert_equal(*gradients)


def test_first_call_of_a_kind_is_like_later_ones(pair):
    x = frames(size=(6, 4))
    assert torch.equal(pair[1](x), pair[1](x))


def test_randomness_is_left_alone(pair):
    """Looking at a new kind of call draws no numbers of the caller's."""
    torch.manual_seed(3)
    x = frames(size=(4, 4))
    expected = torch.rand(2)
    torch.manual_seed(3)
    frames(size=(4, 4))
    pair[1](x)
    assert torch.equal(torch.rand(2), expected)


def test_a_module_under_two_names():
    cell = RaftOrder()
    model = nn.ModuleDict({"a": cell, "b": cell})
    report = fuse(model)
    assert [r.path for r in report.replaced] == ["a"]
    assert is_fused(model["b"])
    assert unfuse(model) == 1


def test_cells_in_a_plain_list():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = [RaftOrder(), RaftOrder()]

        def forward(self, h, x):
            for cell in self.cells:
                h = cell(h, x)
            return h

    model = Listed()
    h, x = torch.randn(N, K, H, W), torch.randn(N, C, H, W)
    expected = model(h, x)
    report = fuse(model, (h, x))
    assert [r.path for r in report.replaced] == ["cells[0]", "cells[1]"]
    torch.testing.assert_close(model(h, x), expected, rtol=1e-4, atol=1e-5)


def test_sequence_of_any_length():
    module, _ = WRAPPERS["BatchFirstLayers"]()
    module.double()
    fused = copy.deepcopy(module)
    fuse(fused, torch.randn(N, 4, C, H, W, dtype=torch.float64))
    for steps in (1, 2, 3, 7):
        x = torch.randn(N, steps, C, 5, 6, dtype=torch.float64)
        assert_equal(fused(x), module(x))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("steps", [2, 3])
def test_short_sequences(steps, verify):
    """Two steps from a given state are a sequence as well, and the right one without being verified."""
    module, _ = WRAPPERS["EitherRank"]()
    fused = copy.deepcopy(module.double())
    clip, h = (torch.randn(*shape, H, W, dtype=torch.float64) for shape in ((N, steps, C), (N, K)))
    report = fuse(fused, (clip, h), verify=verify)
    assert "sequence" in report.replaced[0].recognised
    assert_equal(fused(clip, h), module(clip, h))


def test_frames_and_sequences():
    """One module for both; the sequence from no state and from one."""
    module, _ = WRAPPERS["EitherRank"]()
    fused = copy.deepcopy(module.double())
    clip, h = (torch.randn(*shape, H, W, dtype=torch.float64) for shape in ((N, 5, C), (N, K)))
    assert [r.path for r in fuse(fused).replaced] == [""]
    for args in ((clip[:, 0], None), (clip[:, 0], h), (clip, None), (clip, h), (clip[:, :2], None)):
        assert_equal(fused(*args), module(*args))
    formulas = fused.forward.plans.values()
    assert len([f for f in formulas if f is not None]) == len(formulas) >= 5


def test_compiled_sequences():
    """The same graph for any length: one operator for each layer."""
    module, _ = WRAPPERS["BatchFirstLayers"]()
    fused = copy.deepcopy(module.double())
    fuse(fused, torch.randn(N, 4, C, H, W, dtype=torch.float64))
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    for steps in (4, 6, 9):
        x = torch.randn(N, steps, C, H, W, dtype=torch.float64)
        assert_equal(compiled(x), module(x))
    for graph in graphs:
        assert len([target for target in graph if "convgru_fused.conv_gru" in target]) == 2


@pytest.mark.parametrize("name", ["RaftOrder", "PooledGates", "StateKept", "SpectralNorm", "HookedNorms"])
def test_unfuse_gives_the_own_code_back(name):
    module, args = CELLS[name]()
    module.eval()
    before, result = dict(vars(module)), module(*args)
    fuse(module, args)
    assert unfuse(module) > 0
    assert unfuse(module) == 0
    if name == "StateKept":
        module.reset()
    assert dict(vars(module)).keys() == before.keys()
    torch.testing.assert_close(module(*args), result, rtol=0, atol=0)


def test_context_manager():
    module, args = CELLS["RaftOrder"]()
    with fuse(module, args) as report:
        assert report.replaced and is_fused(module)
    assert not is_fused(module)


def test_a_forward_of_the_instance():
    """Replaced by the user before: it is what is fused, and what is given back."""
    module, args = CELLS["RaftOrder"]()

    def swapped(x, h):
        return RaftOrder.forward(module, h, x)

    module.forward = swapped
    expected = module(args[1], args[0])
    report = fuse(module, (args[1], args[0]))
    result = module(args[1], args[0])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert not report.replaced  # its copy would be run with the original's weights
    unfuse(module)
    assert module.forward is swapped


def test_fuse_twice(pair):
    report = fuse(pair[1], frames())
    assert [r.path for r in report.replaced] == ["cell"]
    x = frames()
    assert_equal(pair[1](x), pair[0](x))


def test_nothing_of_the_model_changes_while_looking():
    """Buffers, attributes, mode, gradients: fuse works on copies."""
    model = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
    model.append(CELLS["SpectralNorm"]()[0])
    model[2].marks = []

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, h, x):
            self.parts[2].marks.append(1)
            return self.parts[2](h, self.parts[:2](x))

    whole = Whole()
    before = {name: t.clone() for name, t in whole.state_dict().items()}
    fuse(whole, (torch.randn(N, K, H, W), torch.randn(N, C, H, W)))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model[2].marks == [] and whole.training
    assert all(p.grad is None for p in whole.parameters())


def test_exchanged_gates_bring_the_own_code_back(pair):
    x = frames()
    for model in pair:
        model.cell.to_z, model.cell.to_r = model.cell.to_r, model.cell.to_z
    assert_equal(pair[1](x), pair[0](x))


@pytest.mark.parametrize("name", ["SpectralNorm", "HookedNorms"])
def test_weights_that_training_changes_at_every_step(name):
    """Verified in evaluation, then trained: the original has other weights at every step."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = CELLS[name]()[0]

        def forward(self, h, x):
            for _ in range(3):
                h = self.cell(h, x)
            return h

    plain = Loop().double().eval()
    fused = copy.deepcopy(plain)
    h, x = torch.randn(N, K, H, W, dtype=torch.float64), torch.randn(N, C, H, W, dtype=torch.float64)
    report = fuse(fused, (h, x))
    assert [r.path for r in report.replaced] == ["", "cell"]
    for _ in range(2):
        assert_equal(fused(h, x), plain(h, x))
        assert_equal(fused.train()(h, x), plain.train()(h, x))
        assert_equal(dict(fused.named_buffers()), dict(plain.named_buffers()))
        plain.eval(), fused.eval()


def test_a_part_of_the_module_in_another_mode():
    """Dropout inside is switched on by itself, after the whole was seen with it off."""

    class Dropping(RaftOrder):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout2d(0.5)

        def forward(self, h, x):
            return super().forward(h, self.drop(x))

    plain = Dropping().double()
    plain.drop.eval()
    fused = copy.deepcopy(plain)
    h, x = torch.randn(N, K, H, W, dtype=torch.float64), torch.randn(N, C, H, W, dtype=torch.float64)
    assert fuse(fused, (h, x)).replaced
    assert_equal(fused(h, x), plain(h, x))
    plain.drop.train(), fused.drop.train()
    results = []
    for module in (plain, fused):
        torch.manual_seed(5)
        results.append(module(h, x))
    assert_equal(*results)
    fused.drop.eval()
    assert not torch.allclose(fused(h, x), results[0])


def test_an_input_for_the_whole_batch():
    """x of batch 1 for states of any batch: broadcast by additions, which the fused cell does not do."""
    cell = CELLS["ThreeChunks"]()[0].double()
    x, h = torch.randn(1, C, H, W, dtype=torch.float64), torch.randn(N, K, H, W, dtype=torch.float64)
    expected = cell(x, h), cell(x.expand(N, -1, -1, -1), h)
    fuse(cell)
    assert_equal((cell(x, h), cell(x.expand(N, -1, -1, -1), h)), expected)


def test_many_kinds_of_calls(pair, monkeypatch):
    """Those that are too many run the own code, and are right as well."""
    monkeypatch.setattr("convgru_fused.fusing.forward.MOST_PLANS", 3)
    for size in range(3, 9):
        x = frames(size=(size, 4))
        assert_equal(pair[1](x), pair[0](x))
    assert len(pair[1].cell.forward.plans) == 3


class Scaled(RaftOrder):
    def forward(self, h, x, config):
        return super().forward(h, x * config.scale)


def test_an_argument_that_may_change_unseen():
    class Config:
        scale = 1.0

    cell = Scaled().double()
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    (refused,) = fuse(cell, (h, x, Config())).skipped
    assert refused.reason == "an argument is a Config, which may change unseen"


class ByType(RaftOrder):
    def forward(self, h, x, mode=True):
        y = super().forward(h, x)
        return y * 2 if mode is True else y * 3 if isinstance(mode, float) else y * 5


def test_equal_arguments_of_different_types():
    cell = ByType().double()
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    expected = [cell(h, x, mode) for mode in (True, 1, 1.0)]
    assert fuse(cell, (h, x)).replaced
    assert_equal([cell(h, x, mode) for mode in (True, 1, 1.0)], expected)


class Lucky(RaftOrder):
    def forward(self, h, x):
        return h if self.training and random.random() < 0.01 else super().forward(h, x)


def test_random_numbers_of_python():
    cell = Lucky().double()
    state = random.getstate()
    (refused,) = fuse(cell).skipped
    assert refused.reason == "it draws random numbers of Python's"
    assert random.getstate() == state


@pytest.mark.parametrize("example", [False, True])
def test_a_scripted_module_beside_a_cell(example):
    model = Tower()
    model.head = torch.jit.script(model.head)
    model.double()
    expected = model(x := frames())
    report = fuse(model, *([(x,)] if example else []))
    assert [r.path for r in report.replaced] == ["cell"]
    assert_equal(model(x), expected)


# Arguments that a forward changes.


class Remembers(RaftOrder):
    def __init__(self, remember):
        super().__init__()
        self.remember = remember

    def forward(self, h, x, memory=None):
        y = super().forward(h, x)
        if memory is not None:
            self.remember(memory, y)
        return y


MEMORIES = {
    "list": (lambda: [0], lambda memory, y: memory.__setitem__(0, y)),
    "appended": (list, list.append),
    "dict": (dict, lambda memory, y: memory.update(h=y)),
    "list in a tuple": (lambda: ([], 1), lambda memory, y: memory[0].append(y)),
}


@pytest.mark.parametrize("seen", ["at fuse", "later"])
@pytest.mark.parametrize("kind", MEMORIES)
def test_a_list_or_dict_that_it_is_given_and_changes(kind, seen):
    make, remember = MEMORIES[kind]
    plain = Remembers(remember).double()
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    if seen == "later":
        assert fuse(fused, (h, x)).replaced
    else:
        given = make()
        (refused,) = fuse(fused, (h, x, given)).skipped
        assert given == make()
        assert refused.reason == "its forward changes a list or dict that it is given"
    memories = make(), make()
    for _ in range(2):
        assert_equal(fused(h, x, memories[1]), plain(h, x, memories[0]))
        assert_equal(memories[1], memories[0])


def test_a_tensor_that_it_is_given_and_changes():
    class Overwrites(RaftOrder):
        def forward(self, h, x):
            return h.copy_(super().forward(h, x))

    cell = Overwrites().double()
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    before = h.clone()
    (refused,) = fuse(cell, (h, x)).skipped
    assert torch.equal(h, before)
    assert refused.reason == "aten.copy_ changes a tensor that is not its own"


class ListInAList(RaftOrder):
    def __init__(self):
        super().__init__()
        self.levels = [[torch.zeros(N, K, H, W, dtype=torch.float64)]]

    def forward(self, x):
        self.levels[0][0] = super().forward(self.levels[0][0], x).detach()
        return self.levels[0][0]


def test_a_state_in_a_list_in_a_list():
    plain = ListInAList().double()
    fused = copy.deepcopy(plain)
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    assert fuse(fused, (x,)).replaced
    for _ in range(3):
        assert_equal(fused(x), plain(x))
        assert_equal(fused.levels, plain.levels)


# Values that decide what is computed.


class Looks(RaftOrder):
    def __init__(self, look):
        super().__init__()
        self.look = look

    def forward(self, h, x, mask):
        return super().forward(h, x) * self.look(x, mask)


LOOKS = {
    "tolist": lambda x, mask: mask.tolist()[0] + 1,
    "numpy": lambda x, mask: float(mask.numpy().sum()) + 1,
    "array": lambda x, mask: float(np.asarray(mask).sum()) + 1,
    "dlpack": lambda x, mask: float(np.from_dlpack(mask).sum()) + 1,
    "equal": lambda x, mask: 2 if torch.equal(mask, torch.zeros_like(mask)) else 1,
    "allclose": lambda x, mask: 2 if torch.allclose(mask.double(), torch.zeros(N).double()) else 1,
    "split": lambda x, mask: len(x.flatten(1).split((mask + x[0].numel() // 2).tolist(), 1)[0][0]),
    "tensor_split": lambda x, mask: x.tensor_split(mask + 1, 1)[0].shape[1] + 1,
    "nonzero": lambda x, mask: len(mask.nonzero()) + 1,
    "where": lambda x, mask: len(torch.where(mask > 0)[0]) + 1,
    "index": lambda x, mask: len(x[mask > 0]) + 1,
    "masked_select": lambda x, mask: len(mask.masked_select(mask > 0)) + 1,
    "unique": lambda x, mask: len(mask.unique()),
    "repeat_interleave": lambda x, mask: len(x.repeat_interleave(mask, 0)) + 1,
    "packed": lambda x, mask: len(
        torch.nn.utils.rnn.pack_padded_sequence(x, mask + 1, True, enforce_sorted=False).data
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_values_that_decide_are_noticed(look):
    """However they are read, with an operator or without."""
    plain = Looks(LOOKS[look]).double()
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    if look == "split":
        masks = [torch.tensor([0, x[0].numel() - 2 * (x[0].numel() // 2)])] * 2
    else:
        masks = [torch.tensor([1, 0]), torch.tensor([0, 0])]
    (refused,) = fuse(fused, (h, x, masks[0])).skipped
    assert refused.reason == "its control flow depends on values of tensors"
    for mask in masks:
        assert_equal(fused(h, x, mask), plain(h, x, mask))


def test_a_mask_that_decides_no_shape(counted):
    """It is fused, and so is an index of integers: they are made again with the values of each call."""

    class Masked(RaftOrder):
        def forward(self, h, x, order, mask):
            return super().forward(h[order].masked_fill(mask.view(-1, 1, 1, 1), 0), x)

    plain = Masked().double()
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    assert fuse(fused, (h, x, torch.arange(N), torch.zeros(N, dtype=torch.bool))).replaced
    counted.clear()
    args = (h, x, torch.arange(N).flip(0), torch.arange(N) == 1)
    assert_equal(fused(*args), plain(*args))
    assert len(counted) == 1


# Weights that come, go, part or get another shape.


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_hooks_that_compute_a_weight_added_later(pair, norm, training):
    x = frames()
    losses = []
    for model in pair:
        torch.manual_seed(0)
        norm(model.cell.to_r)
        model.train(training)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    assert_equal(losses[:3], losses[3:])
    assert losses[0] != losses[2]


class Tied(RaftOrder):
    def __init__(self):
        super().__init__()
        self.to_z.weight = self.to_r.weight


def test_a_weight_of_two_gates_is_untied():
    plain = Tied().double()
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    assert fuse(fused, (h, x)).replaced
    assert_equal(fused(h, x), plain(h, x))
    state = {name: torch.randn_like(t) for name, t in plain.state_dict().items()}
    for model in (plain, fused):
        model.load_state_dict(state, assign=True)
    assert_equal(fused(h, x), plain(h, x))


def test_a_weight_becomes_that_of_two_gates(pair, counted):
    x = frames()
    for model in pair:
        model.cell.to_z.weight = model.cell.to_r.weight
        model(x).square().sum().backward()
    assert len(counted) == 3
    for a, b in zip(pair[1].parameters(), pair[0].parameters(), strict=True):
        assert_equal(a.grad, b.grad)


@pytest.mark.parametrize("change", ["no bias", "kernel", "kernel of the data"])
def test_parameters_that_come_and_go(pair, change):
    for size in ((H, W), (6, 5)):  # known, and a new kind of call
        x = frames(size=size)
        for model in pair:
            convolution = model.cell.to_r
            if change == "no bias":
                convolution.bias = None
                continue
            weight = torch.ones(K, K + C, 5, 5, dtype=torch.float64) / 9
            convolution.padding = (2, 2)
            if change == "kernel":
                convolution.weight = nn.Parameter(weight)
            else:
                convolution.weight.data = weight
        assert_equal(pair[1](x), pair[0](x))


def test_a_bias_added_where_there_was_none():
    plain = RaftOrder().double()
    plain.to_r.bias = None
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    assert fuse(fused, (h, x)).replaced
    before = fused(h, x)
    for model in (plain, fused):
        model.to_r.bias = nn.Parameter(torch.ones(K, dtype=torch.float64))
    for part in (slice(None), slice(3)):
        assert_equal(fused(h[..., part], x[..., part]), plain(h[..., part], x[..., part]))
    assert not torch.allclose(fused(h, x), before)
    fused.to_r.bias = None
    assert_equal(fused(h, x), before)


# Compiled in another mode than it was fused in.


@pytest.mark.parametrize("training", [False, True])
def test_compiled_in_the_other_mode(training):
    cell = RaftOrder().double().train(not training)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    expected = cell(h, x)
    assert fuse(cell).replaced
    exported = torch.export.export(cell.train(training), (h, x))
    assert "convgru_fused" in str(exported.graph)
    assert_equal(exported.module()(h, x), expected)


def test_compiled_in_a_mode_that_computes_something_else():
    class Dropping(RaftOrder):
        def forward(self, h, x):
            return super().forward(h, torch.nn.functional.dropout(x, 0.5, self.training))

    cell = Dropping().double().eval()
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    assert fuse(cell).replaced
    exported = torch.export.export(cell.train(), (h, x))
    assert "convgru_fused" not in str(exported.graph) and "dropout" in str(exported.graph)


# Memory of results.


class Twice(RaftOrder):
    """Tensors that are equal, and are not the same."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.last = torch.zeros(N, K, H, W, dtype=torch.float64)

    def forward(self, h, x):
        y = super().forward(h, x)
        if self.how == "kept":
            self.last = y.detach() * 1
        return y, y * 1 if self.how == "product" else h + 0


@pytest.mark.parametrize("how", ["product", "sum", "kept"])
def test_results_share_no_more_memory_than_before(how):
    plain = Twice(how).double()
    fused = copy.deepcopy(plain)
    h, x = (torch.randn(N, channels, H, W, dtype=torch.float64) for channels in (K, C))
    assert fuse(fused, (h, x)).replaced
    outcomes = []
    with torch.no_grad():
        for model in (plain, fused):
            state = h.clone()
            y, other = model(state, x)
            y += 1
            outcomes.append([y, other.clone(), state.clone(), model.last])
            other += 1
            outcomes[-1] += [y, other, state]
    for a, b in zip(*outcomes, strict=True):
        assert_equal(a, b)


def test_distributed_data_parallel(run_python):
    """New kinds of calls too. In a process of its own, which need not end in order."""
    result = run_python(
        """
import copy, os, sys, tempfile, torch
sys.path.insert(0, "tests/fusing")
from test_fuse_modules import Tower, frames, fuse
model = Tower().double()
fused = copy.deepcopy(model)
assert fuse(fused, frames()).replaced
store = os.path.join(tempfile.mkdtemp(), "store")
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=0, world_size=1)
parallel = torch.nn.parallel.DistributedDataParallel(fused)
for size in ((7, 9), (5, 4)):
    x = frames(size=size)
    for each in (model, parallel):
        each.zero_grad()
        each(x).square().sum().backward()
    for a, b in zip(fused.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
print("same", flush=True)
os._exit(0)
"""
    )
    assert result.stdout == "same\n", result.stderr
