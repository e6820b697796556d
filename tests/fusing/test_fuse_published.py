"""Models as their packages ship them."""

import copy

import pytest
import torch

import convgru_fused
from convgru_fused import fuse
from convgru_fused.bench.published import dgmr_conv_gru, raft
from convgru_fused.testing import assert_close_to_reference, assert_gradients_close

CELLS = {
    True: ["update_block.recurrent_block.convgru1", "update_block.recurrent_block.convgru2"],
    False: ["update_block.recurrent_block.convgru1"],
}


def images():
    """Two images, the second a little moved, as large as the correlation pyramid needs."""
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 22) * 2 - 1, scale_factor=8, mode="bicubic")
    return scene[..., 4:132, 4:132].contiguous(), scene[..., 6:134, 9:137].contiguous()


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
@pytest.mark.parametrize("examples", [True, False], ids=["examples", "guessed"])
def test_raft_cells_are_replaced(large, examples):
    model = raft(large)
    keys = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = fuse(model, images() if examples else None)
    assert [r.path for r in report.replaced] == CELLS[large], str(report)
    assert not report.skipped
    assert model.state_dict().keys() == keys.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in keys.items())


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
@pytest.mark.parametrize("precision, limit", [("fast", 1e-3), ("strict", 1e-4)])
def test_raft_flow(large, precision, limit):
    """In pixels, after 12 updates."""
    model, pair = raft(large), images()
    with torch.inference_mode(), convgru_fused.precision(precision):
        expected = model(*pair)
        fuse(model, pair)
        flows = model(*pair)
    assert len(flows) == 12
    assert expected[-1].abs().max() > 0.1
    assert (flows[-1] - expected[-1]).abs().max() < limit


# Of RAFT's gradient, |difference| over |gradient|: with direct sums rounding alone, 1e-7 measured. Winograd's
# rounding moves flows across zero, where the loss has kinks; running the original channels last does so as
# well: 2.3e-4 both.
GRADIENTS = {"strict": 1e-5, "fast": 1e-3}


@pytest.mark.parametrize("precision", GRADIENTS)
def test_raft_training_step(precision):
    model, pair = raft().train(), images()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its running statistics would tell the two runs apart
    fused = copy.deepcopy(model)
    fuse(fused, pair)
    for each in (model, fused):
        with convgru_fused.precision(precision):
            flows = each(*pair, num_flow_updates=3)
            sum(flow.abs().mean() for flow in flows).backward()
    actual, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (fused, model))
    assert (actual - expected).norm() < GRADIENTS[precision] * expected.norm()


def test_raft_after_a_training_step():
    """It keeps tensors of a graph in an object among its attributes; copying must manage."""
    model, pair = raft(), images()
    model(*pair, num_flow_updates=1)[-1].sum().backward()
    assert [r.path for r in fuse(model, pair).replaced] == CELLS[True]


def gradients(module, result, grad):
    parameters = dict(module.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(result, [*parameters.values()], grad), strict=True))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_dgmr(training):
    """Spectral norm, which changes its estimates at every step of training, and a candidate of ReLU."""
    gru = dgmr_conv_gru(12, 8).double().train(training)
    original = copy.deepcopy(gru)
    x, h = torch.randn(4, 2, 4, 6, 6).double(), torch.randn(2, 8, 6, 6).double()
    report = fuse(gru, (x, h))
    cell, *loop = sorted(report.replaced, key=lambda record: record.path, reverse=True)
    assert (cell.path, cell.recognised) == ("cell", "gru-rcn-relu, 4->8, 3x3")
    assert [r.recognised for r in loop] == ([] if training else ["sequence of gru-rcn-relu, 4->8, 3x3"])
    assert not report.skipped
    for _ in range(2):
        expected, output = original(x, h), gru(x, h)
        assert_close_to_reference(output, expected)
        grad = torch.randn_like(output)
        assert_gradients_close(gradients(gru, output, grad), gradients(original, expected, grad))
    for name, buffer in original.state_dict().items():
        assert_close_to_reference(gru.state_dict()[name], buffer, name)
