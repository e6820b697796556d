"""ConvGRU cells as people write them, and what is nearly one: names, order, blends and interfaces all differ.

`CELLS`, `WRAPPERS` and `OTHERS` map a name to a maker of a module and of arguments for it. Each style is
written anew from its description (how gates are convolved, ordered, blended, what the call looks like).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K, C = 8, 6
N, H, W = 2, 7, 9
T = 4

Case = tuple[nn.Module, tuple[object, ...]]

CELLS: dict[str, Callable[[], Case]] = {}
WRAPPERS: dict[str, Callable[[], Case]] = {}
OTHERS: dict[str, Callable[[], Case]] = {}


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        padding="same" if "padding" not in options else options.pop("padding"),
        **options,
    )


def x(channels: int = C, size: tuple[int, int] = (H, W)) -> Tensor:
    return torch.randn(N, channels, *size)


def h() -> Tensor:
    return torch.randn(N, K, H, W).tanh()


def clip(channels: int = C, batch_first: bool = True) -> Tensor:
    return torch.randn(*((N, T) if batch_first else (T, N)), channels, H, W)


def case(table: dict[str, Callable[[], Case]], *arguments: Callable[[], object]) -> Callable[[type], type]:
    """Registers a class; `arguments` make what its forward is called with."""

    def register(kind: type) -> type:
        table[kind.__name__] = lambda: (kind(), tuple(make() for make in arguments))
        return kind

    return register


# Separate convolutions on the concatenation.


@case(CELLS, x, h)
class ReluCandidate(nn.Module):
    """A candidate of ReLU, and a gate that keeps the state."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.update, self.output = (conv(C + K, K) for _ in range(3))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, state], dim=1)
        read, update = self.read(both).sigmoid(), self.update(both).sigmoid()
        new = self.output(torch.cat([x, read * state], dim=1)).relu()
        state = update * state + (1.0 - update) * new
        return state, state


@case(CELLS, h, x)
class RaftOrder(nn.Module):
    """Three convolutions on [h,x]; arguments (h, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.to_z, self.to_r, self.to_n = (conv(K + C, K) for _ in range(3))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        both = torch.cat((h, x), dim=1)
        update, reset = torch.sigmoid(self.to_z(both)), torch.sigmoid(self.to_r(both))
        new = torch.tanh(self.to_n(torch.cat((reset * h, x), dim=1)))
        return (1 - update) * h + update * new


@case(CELLS, h, x)
class Separable(nn.Module):
    """A row kernel, then a column kernel, each a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = nn.ModuleList(
            nn.ModuleDict({gate: conv(K + C, K, kernel) for gate in "zrn"}) for kernel in ((1, 5), (5, 1))
        )

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        for convs in self.passes:
            z, r = (convs[gate](torch.cat([h, x], 1)).sigmoid() for gate in "zr")
            h = h - z * h + z * convs["n"](torch.cat([r * h, x], 1)).tanh()
        return h


@case(CELLS, h, h, h, h, x, lambda: x(3))
class GateMaps(nn.Module):
    """The context's contribution to each gate is an argument, and inputs come in any number."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.r, self.n = (conv(K + C + 3, K) for _ in range(3))

    def forward(
        self, state: Tensor, for_z: Tensor, for_r: Tensor, for_n: Tensor, *features: Tensor
    ) -> Tensor:
        z = (for_z + self.z(torch.cat([state, *features], 1))).sigmoid()
        r = (for_r + self.r(torch.cat([state, *features], 1))).sigmoid()
        n = (for_n + self.n(torch.cat([r * state, *features], 1))).tanh()
        return state * (1 - z) + n * z


@case(CELLS, h, x, lambda: x(3))
class PooledGates(nn.Module):
    """A gated mean of the state over all pixels is added to each gate."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({gate: conv(K + C + 3, K) for gate in "zrn"})
        self.pooled = nn.ModuleDict({gate: conv(K, K, 1) for gate in "zrn"})
        self.attention = conv(K, K, 1)

    def forward(self, state: Tensor, *features: Tensor) -> Tensor:
        count, channels, height, width = state.shape
        gated = (state * self.attention(state).sigmoid()).reshape(count, channels, height * width)
        mean = gated.mean(2).reshape(count, channels, 1, 1)
        both = torch.cat((state, *features), 1)
        z, r = ((self.convs[gate](both) + self.pooled[gate](mean)).sigmoid() for gate in "zr")
        n = self.convs["n"](torch.cat((r * state, *features), 1)) + self.pooled["n"](mean)
        return z * n.tanh() + (1 - z) * state


@case(CELLS, x, h)
class InvertedReset(nn.Module):
    """The reset gate says what to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.update, self.forget, self.new = (conv(C + K, K) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xh = torch.cat([x, h], 1)
        forget = self.forget(xh).sigmoid()
        new = self.new(torch.cat([x, (1 - forget) * h], 1)).tanh()
        update = self.update(xh).sigmoid()
        return h * (1 - update) + new * update


@case(CELLS, x, h)
class KernelsByGate(nn.Module):
    """Each gate has a kernel of its own, one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.r, self.n = conv(C + K, K, (1, 5)), conv(C + K, K, 3), conv(C + K, K, 1, bias=False)

    def forward(self, feature: Tensor, state: Tensor) -> tuple[Tensor, tuple[Tensor, None]]:
        z = self.z(torch.cat([feature, state], 1)).sigmoid()
        r = self.r(torch.cat([state, feature], 1)).sigmoid()
        n = self.n(torch.cat([r * state, feature], 1)).tanh()
        out = z * state + (1 - z) * n
        return out, (out, None)


# Joint convolutions.


@case(CELLS, x, h)
class JointGatesRZ(nn.Module):
    """One convolution for r and z on [x,h], split; torch.lerp for the blend."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = conv(C + K, 2 * K), conv(C + K, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = torch.split(self.gates(torch.cat([x, h], 1)), K, 1)
        n = torch.tanh(self.candidate(torch.cat([x, torch.sigmoid(r) * h], 1)))
        return torch.lerp(h, n, torch.sigmoid(z))


@case(CELLS, x, h)
class JointGatesZR(nn.Module):
    """One convolution for z and r, activated together; z keeps the old state; modules for activations."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Sequential(conv(C + K, 2 * K), nn.Sigmoid())
        self.candidate = nn.Sequential(conv(C + K, K), nn.Tanh())

    def forward(self, input_tensor: Tensor, h_cur: Tensor) -> Tensor:
        gates = self.gates(torch.cat([input_tensor, h_cur], dim=1))
        z, r = gates[:, :K], gates[:, K:]
        n = self.candidate(torch.cat([input_tensor, r.mul(h_cur)], dim=1))
        return z * h_cur + (1.0 - z) * n


@case(CELLS, x, h)
class ThreeChunks(nn.Module):
    """3K on x, 2K on h, K on r.h: input and state convolved apart."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h, self.h2h, self.h2n = conv(C, 3 * K), conv(K, 2 * K, bias=False), conv(K, K, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xz, xr, xn = self.x2h(x).chunk(3, dim=1)
        hz, hr = self.h2h(h).chunk(2, dim=1)
        z, r = F.sigmoid(xz + hz), F.sigmoid(xr + hr)
        n = F.tanh(xn + self.h2n(r * h))
        return (1 - z) * h + z * n


@case(CELLS, x, h)
class SixConvolutions(nn.Module):
    """Six convolutions word for word, n + z (h - n)."""

    def __init__(self) -> None:
        super().__init__()
        for gate in "rzn":
            setattr(self, f"w_{gate}", conv(C, K))
            setattr(self, f"u_{gate}", conv(K, K, bias=False))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r = torch.sigmoid(self.w_r(x) + self.u_r(h))
        z = torch.sigmoid(self.w_z(x) + self.u_z(h))
        n = torch.tanh(self.w_n(x) + self.u_n(r * h))
        return n + z * (h - n)


@case(CELLS, x, h)
class ResetAfter(nn.Module):
    """3K on x and 3K on h, the reset gate after the convolution, as in torch.nn.GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh = conv(C, 3 * K), conv(K, 3 * K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        i_r, i_z, i_n = self.ih(x).chunk(3, 1)
        h_r, h_z, h_n = self.hh(h).chunk(3, 1)
        r = torch.sigmoid(i_r + h_r)
        z = torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + r * h_n)
        return (1 - z) * n + z * h


@case(CELLS, lambda: x(3 * K), h)
class MapsOnly(nn.Module):
    """The input's convolution is made outside: one map of 3K channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = conv(K, 2 * K), conv(K, K)

    def forward(self, m: Tensor, h: Tensor) -> Tensor:
        mz, mr, mn = m.split(K, dim=1)
        z, r = self.gates(h).split(K, dim=1)
        z, r = (z + mz).sigmoid(), (r + mr).sigmoid()
        return (1 - z) * h + z * (self.candidate(r * h) + mn).tanh()


@case(CELLS, x, h)
class RawParameters(nn.Module):
    """Parameters of its own and F.conv2d; a bias added by hand, a constant on the update gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * K, C + K, 3, 3) * 0.1)
        self.bias = nn.Parameter(torch.randn(3 * K, 1, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        wz, wr, wn = self.weight.chunk(3)
        xh = torch.cat((x, h), 1)
        gates = F.conv2d(F.pad(xh, (1, 1, 1, 1)), self.weight[: 2 * K]) + self.bias[: 2 * K]
        z, r = torch.sigmoid(gates[:, :K] - 1), torch.sigmoid(gates[:, K:])
        n = F.conv2d(torch.cat((x, r * h), 1), wn, padding=1) + self.bias[2 * K :]
        return (1 - z) * h + z * torch.tanh(n)


# States.


@case(CELLS, x)
class StateNone(JointGatesRZ):
    """No state is zeros."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = x.new_zeros(x.size(0), K, *x.shape[-2:])
        return super().forward(x, h)


@case(CELLS, x, lambda: (h(),))
class StateTuple(nn.Module):
    """The state comes and goes in a tuple, the result twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = JointGatesZR()

    def forward(self, x: Tensor, states: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        (h,) = states
        h = self.cell(x, h)
        return h, (h,)


@case(CELLS, x)
class StateKept(nn.Module):
    """The state is an attribute, detached from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = RaftOrder()
        self.hidden: Tensor | None = None

    def reset(self) -> None:
        self.hidden = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), K, *x.shape[-2:], dtype=x.dtype) if self.hidden is None else self.hidden
        h = self.cell(h, x)
        self.hidden = h.detach()
        return h


@case(CELLS, x)
class StateLearned(nn.Module):
    """The first state is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = conv(C + K, 2 * K), conv(C + K, K)
        self.h0 = nn.Parameter(torch.randn(1, K, 1, 1))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = self.h0.expand(x.size(0), -1, *x.shape[-2:])
        z, r = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        return (1 - z) * h + z * self.candidate(torch.cat([x, r * h], 1)).tanh()


@case(CELLS, lambda: {"x": x(), "h": h()})
class DictOfTensors(nn.Module):
    """A dict in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = ThreeChunks()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h = self.cell(batch["x"], batch["h"])
        return {"h": h, "x": batch["x"]}


@case(CELLS, x, h)
class HiddenTermsAbsent(nn.Module):
    """Without a state there are no hidden convolutions, their biases included: not the same as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = conv(C, 3 * K), conv(K, 3 * K)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        xr, xz, xn = self.x(x).chunk(3, 1)
        if h is None:
            return xz.sigmoid() * xn.tanh()
        hr, hz, hn = self.h(h).chunk(3, 1)
        z = (xz + hz).sigmoid()
        return (1 - z) * h + z * (xn + (xr + hr).sigmoid() * hn).tanh()


# Weights that are computed.


@case(CELLS, h, x)
class SpectralNorm(RaftOrder):
    def __init__(self) -> None:
        super().__init__()
        for name in ("to_z", "to_r", "to_n"):
            setattr(self, name, nn.utils.parametrizations.spectral_norm(getattr(self, name)))


@case(CELLS, h, x)
class WeightNorm(RaftOrder):
    def __init__(self) -> None:
        super().__init__()
        for name in ("to_z", "to_r", "to_n"):
            setattr(self, name, nn.utils.parametrizations.weight_norm(getattr(self, name)))


@case(CELLS, h, x)
class HookedNorms(RaftOrder):
    """The older norms, which are hooks before the convolution's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.to_z = nn.utils.spectral_norm(self.to_z)
        self.to_r = nn.utils.spectral_norm(self.to_r)


# Around the step.


@case(CELLS, lambda: x(C, (2 * H - 1, 2 * W - 1)), h)
class StridedInput(nn.Module):
    """The input is larger, its convolution strided; only the state's is as the step's."""

    def __init__(self) -> None:
        super().__init__()
        self.x_conv = conv(C, 3 * K, 3, stride=2, padding=1)
        self.gates, self.candidate = conv(K, 2 * K, bias=False), conv(K, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xz, xr, xn = self.x_conv(x).chunk(3, 1)
        hz, hr = self.gates(h).chunk(2, 1)
        z, r = torch.sigmoid(xz + hz), torch.sigmoid(xr + hr)
        return (1 - z) * h + z * torch.tanh(xn + self.candidate(r * h))


@case(CELLS, x, h)
class GroupedDilatedInput(nn.Module):
    """Grouped and dilated convolutions of the input, a ReLU before them, padding by replication."""

    def __init__(self) -> None:
        super().__init__()
        self.x_gates = nn.Conv2d(C, 2 * K, 3, padding=2, dilation=2, groups=2)
        self.x_new = nn.Conv2d(C, K, 3, padding=1, padding_mode="replicate")
        self.gates, self.new = conv(K, 2 * K), conv(K, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x = F.relu(x)
        z, r = (self.x_gates(x) + self.gates(h)).chunk(2, 1)
        z, r = z.sigmoid(), r.sigmoid()
        return (1 - z) * h + z * (self.x_new(x) + self.new(r * h)).tanh()


@case(CELLS, x, h)
class NormAfter(nn.Module):
    """The state is normalised after the step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = ResetAfter(), nn.GroupNorm(2, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.norm(self.cell(x, h))


@case(CELLS, h, x)
class TwoHiddenConvolutions(nn.Module):
    """Two convolutions of the state are summed in the gates, one of them dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = conv(C, 3 * K), conv(K, 2 * K)
        self.wide = nn.Conv2d(K, 2 * K, 3, padding=4, dilation=4)
        self.n = conv(K, K)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        xn, xg = self.x(x).split([K, 2 * K], 1)
        z, r = (xg + self.h(h) + self.wide(h)).chunk(2, 1)
        z, r = z.sigmoid(), r.sigmoid()
        return (1 - z) * h + z * (xn + self.n(r * h)).tanh()


# Sequences.


@case(WRAPPERS, clip)
class BatchFirstLayers(nn.Module):
    """Layer by layer over (N,T,C,H,W); all outputs and a list of last states."""

    def __init__(self) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList([JointGatesRZ(), CellOf(K)])

    def forward(self, x: Tensor, states: list[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        if states is None:
            states = [torch.zeros(x.size(0), K, *x.shape[-2:], dtype=x.dtype) for _ in self.cell_list]
        outputs, last = [], []
        for cell, h in zip(self.cell_list, states, strict=True):
            steps = []
            for t in range(x.size(1)):
                h = cell(x[:, t, :, :, :], h)
                steps.append(h)
            x = torch.stack(steps, dim=1)
            outputs.append(x)
            last.append(h)
        return outputs, last


class CellOf(nn.Module):
    """A cell for other sizes of input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.z, self.r, self.n = (conv(inputs + K, K) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xh = torch.cat([x, h], 1)
        z, r = self.z(xh).sigmoid(), self.r(xh).sigmoid()
        return (1 - z) * h + z * self.n(torch.cat([x, r * h], 1)).tanh()


@case(WRAPPERS, lambda: clip(batch_first=False), lambda: torch.randn(2, N, K, H, W))
class LayersWithinStep(nn.Module):
    """All layers within a step over (T,N,C,H,W); a stacked state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ThreeChunks(), CellOf(K)

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        a, b = h0[0], h0[1]
        outputs = []
        for frame in x:
            a = self.first(frame, a)
            b = self.second(a, b)
            outputs.append(b)
        return torch.stack(outputs), torch.stack([a, b])


@case(WRAPPERS, lambda: clip(batch_first=False))
class Bidirectional(nn.Module):
    """One cell forwards, another backwards, joined along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards = RaftOrder(), ResetAfter()

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(1), K, *x.shape[-2:])
        there, back = [], []
        for t in range(x.size(0)):
            h = self.forwards(h, x[t])
            there.append(h)
        h = x.new_zeros(x.size(1), K, *x.shape[-2:])
        for t in reversed(range(x.size(0))):
            h = self.backwards(x[t], h)
            back.insert(0, h)
        return torch.cat([torch.stack(there), torch.stack(back)], dim=2)


@case(WRAPPERS, x, h)
class SameInput(nn.Module):
    """The same input at every step; only the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = RaftOrder()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        for _ in range(5):
            h = self.cell(h, x)
        return h


@case(WRAPPERS, clip, h)
class HoistedByHand(nn.Module):
    """The input's convolution of all steps at once, by the author; time unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.x_conv, self.gates, self.new = conv(C, 3 * K), conv(K, 2 * K), conv(K, K)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        n, steps = x.shape[:2]
        maps = self.x_conv(x.reshape(n * steps, *x.shape[2:]))
        outputs = []
        for m in maps.view(n, steps, 3 * K, H, W).unbind(1):
            mz, mr, mn = m.chunk(3, 1)
            z, r = self.gates(h).chunk(2, 1)
            z, r = (z + mz).sigmoid(), (r + mr).sigmoid()
            h = (1 - z) * h + z * (mn + self.new(r * h)).tanh()
            outputs.append(h.unsqueeze(1))
        return torch.cat(outputs, 1), h


@case(WRAPPERS, clip, lambda: None)
class EitherRank(nn.Module):
    """A frame or a sequence, told apart by the number of axes; the state may be absent."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = conv(C + K, 2 * K), conv(C + K, K)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        reset, update = self.gates(torch.cat((x, h), 1)).sigmoid().tensor_split(2, dim=1)
        return h + update * (self.candidate(torch.cat((x, h * reset), 1)).tanh() - h)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        if h is None:
            h = x.new_zeros((len(x), K, *x.shape[-2:]))
        states = [h]
        for frame in [x] if x.dim() == 4 else x.unbind(dim=1):
            states.append(self.step(frame, states[-1]))
        return states[1] if x.dim() == 4 else torch.stack(states[1:], dim=1), states[-1]


# Not a ConvGRU, or not one that the kernels have.


@case(OTHERS, x, lambda: (h(), h()))
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(C + K, 4 * K)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@case(OTHERS, x, h)
class MinGru(nn.Module):
    """Gates see the input only."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.n = conv(C, K), conv(C, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = self.z(x).sigmoid()
        return (1 - z) * h + z * self.n(x).tanh()


@case(OTHERS, x)
class Attention(nn.Module):
    """A sigmoid gate on features."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.gate = conv(C, K), conv(K, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return y + y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()


@case(OTHERS, x)
class GatedConvolution(nn.Module):
    """sigmoid times tanh, as in WaveNet: what a step from no state would be."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = conv(C, K), conv(C, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid() * self.value(x).tanh()


class Almost(nn.Module):
    """A ConvGRU with one thing changed."""

    def __init__(self) -> None:
        super().__init__()
        self.to_z, self.to_r, self.to_n = (conv(K + C, K) for _ in range(3))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        z, r = (torch.sigmoid(c(torch.cat([h, x], 1))) for c in (self.to_z, self.to_r))
        return self.blend(h, z, self.candidate(self.to_n(torch.cat([self.reset(r, h), x], 1))))

    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        return r * h

    def candidate(self, a: Tensor) -> Tensor:
        return torch.tanh(a)

    def blend(self, h: Tensor, z: Tensor, n: Tensor) -> Tensor:
        return (1 - z) * h + z * n


@case(OTHERS, h, x)
class SignOfGate(Almost):
    def blend(self, h: Tensor, z: Tensor, n: Tensor) -> Tensor:
        return (1 + z) * h + z * n


@case(OTHERS, h, x)
class SignOfCandidate(Almost):
    def blend(self, h: Tensor, z: Tensor, n: Tensor) -> Tensor:
        return (1 - z) * h - z * n


@case(OTHERS, h, x)
class SignOfState(Almost):
    def blend(self, h: Tensor, z: Tensor, n: Tensor) -> Tensor:
        return (z - 1) * h + z * n


@case(OTHERS, h, x)
class SignOfReset(Almost):
    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        return (1 + r) * h


@case(OTHERS, h, x)
class BothKept(Almost):
    def blend(self, h: Tensor, z: Tensor, n: Tensor) -> Tensor:
        return h + z * n


@case(OTHERS, h, x)
class ResetTwice(Almost):
    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        return r * r * h


@case(OTHERS, h, x)
class LeakyCandidate(Almost):
    def candidate(self, a: Tensor) -> Tensor:
        return F.leaky_relu(a, 0.2)


@case(OTHERS, h, x)
class ReluBehindReset(Almost):
    """A ReLU where the reset gate comes after the convolution."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        z, r = (c(torch.cat([h, x], 1)).sigmoid() for c in (self.to_z, self.to_r))
        zeros = torch.zeros_like
        n = F.relu(self.to_n(torch.cat([zeros(h), x], 1)) + r * self.to_n(torch.cat([h, zeros(x)], 1)))
        return (1 - z) * h + z * n


@case(OTHERS, h, x)
class LinearCandidate(Almost):
    def candidate(self, a: Tensor) -> Tensor:
        return a


@case(OTHERS, h, x)
class HardGates(Almost):
    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        z, r = (F.hardsigmoid(c(torch.cat([h, x], 1))) for c in (self.to_z, self.to_r))
        return (1 - z) * h + z * torch.tanh(self.to_n(torch.cat([r * h, x], 1)))


@case(OTHERS, x, h)
class NormInGates(nn.Module):
    """GroupNorm between convolution and sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.norm, self.n = conv(C + K, 2 * K), nn.GroupNorm(2, 2 * K), conv(C + K, K)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = x.new_zeros(x.shape[0], K, *x.shape[2:]) if h is None else h
        z, r = self.norm(self.gates(torch.cat([x, h], 1))).sigmoid().chunk(2, 1)
        return (1 - z) * h + z * self.n(torch.cat([x, r * h], 1)).tanh()


@case(OTHERS, clip)
class LoopOfNormInGates(nn.Module):
    """Without a state at the first step, which alone would be one of a ConvGRU with a map for a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = NormInGates()

    def forward(self, clip: Tensor) -> Tensor:
        h = None
        for x in clip.unbind(1):
            h = self.cell(x, h)
        return h


@case(OTHERS, x, h)
class ReflectPadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.n = (
            nn.Conv2d(C + K, channels, 3, padding=1, padding_mode="reflect") for channels in (2 * K, K)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        return (1 - z) * h + z * self.n(torch.cat([x, r * h], 1)).tanh()


@case(OTHERS, x, h)
class NormInCandidate(nn.Module):
    """BatchNorm between convolution and tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.norm, self.n = conv(C + K, 2 * K), nn.BatchNorm2d(K), conv(C + K, K)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        return (1 - z) * h + z * self.norm(self.n(torch.cat([x, r * h], 1))).tanh()


@case(OTHERS, h, x)
class DilatedState(Almost):
    """Dilated convolutions of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.to_z, self.to_r, self.to_n = (nn.Conv2d(K + C, K, 3, padding=2, dilation=2) for _ in range(3))


@case(OTHERS, x, h)
class Raises(Almost):
    """Its forward raises."""

    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        raise RuntimeError("no reset today")


@case(OTHERS, h, x)
class LooksAtValues(Almost):
    """Its control flow depends on values."""

    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        return r * h if r.mean() > 0.5 else h


@case(OTHERS, h, x)
class DropsInTraining(Almost):
    """Dropout between the steps while training."""

    def reset(self, r: Tensor, h: Tensor) -> Tensor:
        return F.dropout(r * h, 0.5, self.training)
