"""The same recurrence as other people write it: the modules that ours is measured against.

Every module is built from `CellWeights` and stores them as its formulation wants them (that is done once,
outside any timing); `gradients()` gives the gradients back in the package's layout, so that results can be
compared.

A cell maps x (N,C,H,W), h (N,K,H,W) to the next state; a layer maps x (T,N,C,H,W), h (N,K,H,W) to all states
(T,N,K,H,W). `variant` is "gru-rcn" (reset before the candidate's convolution, h' = (1-z).h + z.n) or "cudnn"
(reset after it, h' = (1-z).n + z.h), as everywhere in the package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .workloads import CellWeights


class Peer(nn.Module):
    """A cell or layer that can say what its parameters' gradients are in the package's layout."""

    def gradients(self) -> CellWeights:
        raise NotImplementedError


def _conv(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """An ordinary "same" convolution with these parameters."""
    O, I, kh, kw = weight.shape  # noqa: E741
    conv = nn.Conv2d(I, O, (kh, kw), padding=(kh // 2, kw // 2), bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight.clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.clone())
    return conv


def gradient(parameter: Tensor | nn.Module | None) -> Tensor:
    """What a backward left in a parameter (annotated as nn.Module types its attributes)."""
    assert isinstance(parameter, Tensor) and parameter.grad is not None
    return parameter.grad


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _weights_channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = _channels_last(parameter.data)


class NaiveCell(Peer):
    """The paper's formulas word for word: six convolutions a step."""

    def __init__(self, weights: CellWeights, variant: str) -> None:
        super().__init__()
        self.variant = variant
        weight_ih, weight_hh = weights.weight_ih.chunk(3), weights.weight_hh.chunk(3)
        bias_ih, bias_hh = weights.bias_ih.chunk(3), weights.bias_hh.chunk(3)
        self.W = nn.ModuleDict({gate: _conv(weight_ih[i], bias_ih[i]) for i, gate in enumerate("rzn")})
        self.U = nn.ModuleDict({gate: _conv(weight_hh[i], bias_hh[i]) for i, gate in enumerate("rzn")})

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        W, U = self.W, self.U
        r = torch.sigmoid(W["r"](x) + U["r"](h))
        z = torch.sigmoid(W["z"](x) + U["z"](h))
        if self.variant == "gru-rcn":
            n = torch.tanh(W["n"](x) + U["n"](r * h))
            return (1 - z) * h + z * n
        n = torch.tanh(W["n"](x) + r * U["n"](h))
        return (1 - z) * n + z * h

    def gradients(self) -> CellWeights:
        return CellWeights(
            torch.cat([gradient(self.W[gate].weight) for gate in "rzn"]),
            torch.cat([gradient(self.U[gate].weight) for gate in "rzn"]),
            torch.cat([gradient(self.W[gate].bias) for gate in "rzn"]),
            torch.cat([gradient(self.U[gate].bias) for gate in "rzn"]),
        )


class EagerCell(Peer):
    """What people ship: concatenate x and h, one convolution for both gates, one for the candidate.

    With channels_last it is the same in that memory format, with elementwise work in place: what a careful
    user would make of a cell in a loop.
    """

    def __init__(self, weights: CellWeights, variant: str, channels_last: bool = False) -> None:
        super().__init__()
        self.variant, self.channels_last = variant, channels_last
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        K = self.hidden_size = weight_hh.size(1)
        self.gates = _conv(
            torch.cat((weight_ih[: 2 * K], weight_hh[: 2 * K]), 1), (bias_ih + bias_hh)[: 2 * K]
        )
        W_n, U_n, b_in, b_hn = weight_ih[2 * K :], weight_hh[2 * K :], bias_ih[2 * K :], bias_hh[2 * K :]
        if variant == "gru-rcn":
            self.candidate = _conv(torch.cat((W_n, U_n), 1), b_in + b_hn)
        else:  # r multiplies the hidden half alone, so the halves cannot share a convolution
            self.candidate_x, self.candidate_h = _conv(W_n, b_in), _conv(U_n, b_hn)
        if channels_last:
            _weights_channels_last(self)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.channels_last:
            return self._forward_channels_last(_channels_last(x), _channels_last(h))
        r, z = torch.sigmoid(self.gates(torch.cat((x, h), 1))).chunk(2, 1)
        if self.variant == "gru-rcn":
            n = torch.tanh(self.candidate(torch.cat((x, r * h), 1)))
            return (1 - z) * h + z * n
        n = torch.tanh(self.candidate_x(x) + r * self.candidate_h(h))
        return (1 - z) * n + z * h

    def _forward_channels_last(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = self.gates(torch.cat((x, h), 1)).sigmoid_().chunk(2, 1)
        if self.variant == "gru-rcn":
            n = self.candidate(torch.cat((x, r * h), 1)).tanh_()
            return torch.lerp(h, n, z)
        n = torch.addcmul(self.candidate_x(x), r, self.candidate_h(h)).tanh_()
        return torch.lerp(n, h, z)

    def gradients(self) -> CellWeights:
        gates, bias = gradient(self.gates.weight), gradient(self.gates.bias)
        C = gates.size(1) - self.hidden_size
        if self.variant == "gru-rcn":
            n, b_n = gradient(self.candidate.weight), gradient(self.candidate.bias)
            W_n, U_n, b_in, b_hn = n[:, :C], n[:, C:], b_n, b_n
        else:
            W_n, U_n = gradient(self.candidate_x.weight), gradient(self.candidate_h.weight)
            b_in, b_hn = gradient(self.candidate_x.bias), gradient(self.candidate_h.bias)
        return CellWeights(
            torch.cat((gates[:, :C], W_n)),
            torch.cat((gates[:, C:], U_n)),
            torch.cat((bias, b_in)),
            torch.cat((bias, b_hn)),
        )


class Unrolled(Peer):
    """A layer from a cell: the loop over time that everybody writes."""

    step: Peer

    def __init__(self, cell: Peer) -> None:
        super().__init__()
        self.step = cell

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        states = []
        for x_t in x.unbind():  # indexing x[t] would make the backward quadratic in T
            h = self.step(x_t, h)
            states.append(h)
        return torch.stack(states)

    def gradients(self) -> CellWeights:
        return self.step.gradients()


class TunedStep(nn.Module):
    """One step behind a hoisted input convolution: a (N,3K,H,W) = W*x + b, h (N,K,H,W) -> the next state."""

    def __init__(self, weights: CellWeights, variant: str) -> None:
        super().__init__()
        self.variant = variant
        K = self.hidden_size = weights.weight_hh.size(1)
        if variant == "gru-rcn":  # b_hh is added to the input convolution's bias, once for all steps
            self.U_rz, self.U_n = (
                _conv(weights.weight_hh[: 2 * K], None),
                _conv(weights.weight_hh[2 * K :], None),
            )
        else:
            self.U = _conv(weights.weight_hh, weights.bias_hh)

    def forward(self, a: Tensor, h: Tensor) -> Tensor:
        K = self.hidden_size
        a_rz, a_n = a.split((2 * K, K), 1)
        if self.variant == "gru-rcn":
            r, z = self.U_rz(h).add_(a_rz).sigmoid_().chunk(2, 1)
            n = self.U_n(r * h).add_(a_n).tanh_()
            return torch.lerp(h, n, z)
        c_rz, c_n = self.U(h).split((2 * K, K), 1)
        r, z = torch.add(c_rz, a_rz).sigmoid_().chunk(2, 1)
        n = torch.addcmul(a_n, r, c_n).tanh_()
        return torch.lerp(n, h, z)

    def weight_gradient(self) -> Tensor:
        """(3K,K,kh,kw)"""
        if self.variant == "gru-rcn":
            return torch.cat((gradient(self.U_rz.weight), gradient(self.U_n.weight)))
        return gradient(self.U.weight)


class TunedCell(Peer):
    """A cell without concatenation: one convolution of all gates on x, the hidden ones joined as far as the
    equations allow, channels last, elementwise work in place."""

    def __init__(self, weights: CellWeights, variant: str) -> None:
        super().__init__()
        self.variant = variant
        bias = weights.bias_ih + weights.bias_hh if variant == "gru-rcn" else weights.bias_ih
        self.W = _conv(weights.weight_ih, bias)
        self.step = TunedStep(weights, variant)
        _weights_channels_last(self)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self.W(_channels_last(x)), _channels_last(h))

    def gradients(self) -> CellWeights:
        bias_ih = gradient(self.W.bias)
        bias_hh = bias_ih if self.variant == "gru-rcn" else gradient(self.step.U.bias)
        return CellWeights(gradient(self.W.weight), self.step.weight_gradient(), bias_ih, bias_hh)


class TunedLayer(TunedCell):
    """`TunedCell` with the input convolution of all time steps done as one batch before the loop."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        T, N = x.shape[:2]
        a = self.W(_channels_last(x.flatten(0, 1))).unflatten(0, (T, N))
        h = _channels_last(h)
        states = []
        for a_t in a.unbind():
            h = self.step(a_t, h)
            states.append(h)
        return torch.stack(states)


class TunedLinearLayer(Peer):
    """`TunedLayer` for a 1x1 kernel on 1x1 pixels: matrix products, which are far faster there than
    convolutions."""

    def __init__(self, weights: CellWeights, variant: str) -> None:
        super().__init__()
        self.variant = variant
        K = self.hidden_size = weights.weight_hh.size(1)
        bias = weights.bias_ih + weights.bias_hh if variant == "gru-rcn" else weights.bias_ih
        U = weights.weight_hh.flatten(1)
        self.W, self.b = nn.Parameter(weights.weight_ih.flatten(1).clone()), nn.Parameter(bias.clone())
        if variant == "gru-rcn":
            self.U_rz, self.U_n = nn.Parameter(U[: 2 * K].clone()), nn.Parameter(U[2 * K :].clone())
        else:
            self.U, self.b_hh = nn.Parameter(U.clone()), nn.Parameter(weights.bias_hh.clone())

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        K = self.hidden_size
        a = F.linear(x.flatten(2), self.W, self.b)
        h = h.flatten(1)
        states = []
        for a_t in a.unbind():
            a_rz, a_n = a_t.split((2 * K, K), 1)
            if self.variant == "gru-rcn":
                r, z = torch.addmm(a_rz, h, self.U_rz.t()).sigmoid_().chunk(2, 1)
                n = torch.addmm(a_n, r * h, self.U_n.t()).tanh_()
                h = torch.lerp(h, n, z)
            else:
                c_rz, c_n = F.linear(h, self.U, self.b_hh).split((2 * K, K), 1)
                r, z = torch.add(c_rz, a_rz).sigmoid_().chunk(2, 1)
                n = torch.addcmul(a_n, r, c_n).tanh_()
                h = torch.lerp(n, h, z)
            states.append(h)
        return torch.stack(states)[..., None, None]

    def gradients(self) -> CellWeights:
        bias_ih = gradient(self.b)
        if self.variant == "gru-rcn":
            weight_hh, bias_hh = torch.cat((gradient(self.U_rz), gradient(self.U_n))), bias_ih
        else:
            weight_hh, bias_hh = gradient(self.U), gradient(self.b_hh)
        return CellWeights(gradient(self.W)[..., None, None], weight_hh[..., None, None], bias_ih, bias_hh)


class GRULayer(Peer):
    """torch.nn.GRU: the same function for variant "cudnn", a 1x1 kernel and 1x1 pixels."""

    def __init__(self, weights: CellWeights) -> None:
        super().__init__()
        self.gru = nn.GRU(weights.weight_ih.size(1), weights.weight_hh.size(1), device="meta")
        for name, tensor in zip(CellWeights._fields, weights, strict=True):
            flat = tensor.flatten(1) if tensor.dim() == 4 else tensor
            setattr(self.gru, f"{name}_l0", nn.Parameter(flat.clone()))
        self.gru.flatten_parameters()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.gru(x.flatten(2), h.flatten(1)[None])[0][..., None, None]

    def gradients(self) -> CellWeights:
        weight_ih, weight_hh, bias_ih, bias_hh = (
            gradient(getattr(self.gru, f"{n}_l0")) for n in CellWeights._fields
        )
        return CellWeights(weight_ih[..., None, None], weight_hh[..., None, None], bias_ih, bias_hh)
