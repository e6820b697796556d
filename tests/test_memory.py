"""Bytes kept for the backward pass, counted as autograd saves them, against a hand-written ConvGRU."""

import pytest
import torch
from torch import nn

from convgru_fused import ConvGRU, use_backend
from convgru_fused.eager import VARIANTS

T, N, C, K, H, W = 10, 2, 64, 32, 28, 28  # C = 2K as in GRU-RCN


class HandWritten(nn.Module):
    """Concatenation, joint gate convolution, candidate convolution: the most common form."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Conv2d(C + K, 2 * K, 3, padding=1)
        self.candidate = nn.Conv2d(C + K, K, 3, padding=1)

    def forward(self, x):
        h = x.new_zeros(N, K, H, W)
        outputs = []
        for x_t in x:
            r, z = torch.sigmoid(self.gates(torch.cat((x_t, h), dim=1))).chunk(2, dim=1)
            n = torch.tanh(self.candidate(torch.cat((x_t, r * h), dim=1)))
            h = (1 - z) * h + z * n
            outputs.append(h)
        return torch.stack(outputs), h


def bytes_saved(model, x):
    """Of every storage that autograd keeps, once; but parameters and input are the caller's anyway."""
    own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = model(x)  # alive while storages are told apart by their address
    assert results[0].requires_grad
    return sum(saved.values())


@pytest.fixture
def x():
    return torch.randn(T, N, C, H, W)


PLANE = T * N * K * H * W * 4  # bytes of one state for every step


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("recompute", "most"), [(False, 0.55), (True, 0.30)], ids=["kept", "recompute"])
def test_the_native_backend_keeps_a_fraction(x, variant, recompute, most):
    with use_backend("cpu"):
        ours = bytes_saved(ConvGRU(C, K, variant=variant, recompute=recompute), x)
    assert ours <= most * bytes_saved(HandWritten(), x)


@pytest.mark.parametrize(("variant", "gates"), [("gru-rcn", 3), ("cudnn", 4)])
def test_what_is_kept_is_the_states_and_the_gates(x, variant, gates):
    """To the byte; with recompute the states alone, which the caller holds anyway."""
    with use_backend("cpu"):
        assert bytes_saved(ConvGRU(C, K, variant=variant), x) == (1 + gates) * PLANE
        assert bytes_saved(ConvGRU(C, K, variant=variant, recompute=True), x) == PLANE


def test_the_count_is_right_for_what_is_known():
    """The measure measured: a product saves both factors, a sum nothing, each storage counts once."""

    class Product(nn.Module):
        def forward(self, x):
            a, b = x + 1, x + 2
            return (a * b).mul(a), None

    x = torch.zeros(1000, requires_grad=True)
    assert bytes_saved(Product(), x) == 3 * 4000  # a, b and a*b


def test_nothing_is_kept_for_inference(x):
    model = ConvGRU(C, K).requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor), use_backend("cpu"):
        output, _ = model(x)
    assert not saved and not output.requires_grad


def test_the_graph_dies_with_the_results(x):
    """No reference cycle keeps a sequence's memory until the garbage collector comes by."""
    import gc
    import weakref

    model = ConvGRU(C, K)
    gc.collect()
    gc.disable()
    try:
        output, h_n = model(x)
        storage = weakref.ref(output)
        node = weakref.ref(output.grad_fn) if output.grad_fn is not None else None
        (output.sum() + h_n.sum()).backward()
        del output, h_n
        assert storage() is None
        assert node is None or node() is None
    finally:
        gc.enable()
