"""Cells drawn at random: what is fused is within tolerance, always; and a ConvGRU is always fused."""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from convgru_fused import fuse
from convgru_fused.testing import TOLERANCES, assert_close_to_reference, assert_gradients_close


class Drawn(nn.Module):
    """A cell with its style in `s`; `s["flaw"]` makes it something else."""

    def __init__(self, s):
        super().__init__()
        self.s, C, K = s, s["C"], s["K"]

        def conv(inputs, outputs, kernel):
            return nn.Conv2d(
                inputs,
                outputs,
                kernel,
                padding=tuple(k // 2 for k in kernel),
                bias=s["bias"],
                dtype=torch.float64,
            )

        k = s["kernels"]
        if s["split"]:
            self.x = conv(C, 3 * K, k[0])
            self.h_gates, self.h_new = conv(K, 2 * K, k[1]), conv(K, K, k[2])
        elif s["joint"]:
            self.gates, self.new = conv(C + K, 2 * K, k[0]), conv(C + K, K, k[1])
        else:
            self.a, self.b, self.new = (conv(C + K, K, kernel) for kernel in k)

    def cat(self, x, h):
        return torch.cat([x, h] if self.s["x_first"] else [h, x], 1)

    def pre_activations(self, x, h):
        if self.s["split"]:
            a, b, new = self.x(x).chunk(3, 1)
            ha, hb = self.h_gates(h).chunk(2, 1)
            return a + ha, b + hb, lambda gated: new + self.h_new(gated)
        xh = self.cat(x, h)
        a, b = self.gates(xh).chunk(2, 1) if self.s["joint"] else (self.a(xh), self.b(xh))
        return a, b, lambda gated: self.new(self.cat(x, gated))

    def forward(self, x, h, maps=None):
        s = self.s
        a, b, new = self.pre_activations(x, h)
        if maps is not None:
            a, b = a + maps[:, : s["K"]], b + maps[:, s["K"] :]
        r, z = (b, a) if s["z_first"] else (a, b)
        r, z = torch.sigmoid(r), z.sigmoid()
        if s["flaw"] == "reset":
            r = r + 1
        gated = h - r * h if s["inverted"] else r * h
        n = new(gated)
        n = torch.relu(n) if s["relu"] else torch.tanh(n)
        if s["flaw"] == "activation":
            n = n.sin()
        if s["flaw"] == "blend":
            z = -z
        old, young = (n, h) if s["z_keeps"] else (h, n)
        if s["lerp"]:
            return torch.lerp(old, young, z)
        return (1 - z) * old + z * young


sizes = st.sampled_from([1, 2, 3, 5, 8])
kernels = st.tuples(*[st.sampled_from([1, 3, 5])] * 2)
styles = st.fixed_dictionaries(
    {
        **{
            name: st.booleans()
            for name in ("split", "joint", "x_first", "z_first", "z_keeps", "inverted", "lerp", "bias")
        },
        "relu": st.booleans(),
        "C": sizes,
        "K": sizes,
        "kernels": st.tuples(kernels, kernels, kernels),
        "flaw": st.sampled_from([None, None, None, "reset", "activation", "blend"]),
        "maps": st.sampled_from([None, "image", "vector"]),
        "size": st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
        "examples": st.booleans(),
    }
)


def outcome(cell, args):
    args = [arg.clone().requires_grad_() for arg in args]
    result = cell(*args)
    weight = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)
    variables = {f"argument {i}": arg for i, arg in enumerate(args)} | dict(cell.named_parameters())
    gradients = torch.autograd.grad((result * weight).sum(), list(variables.values()))
    return result, dict(zip(variables, gradients, strict=True))


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(styles)
def test_random_cells(style):
    torch.manual_seed(0)
    cell, (N, H, W), K = Drawn(style), style["size"], style["K"]
    args = [torch.randn(N, c, H, W, dtype=torch.float64) for c in (style["C"], K)]
    if style["maps"] is not None:
        size = (H, W) if style["maps"] == "image" else (1, 1)
        args.append(torch.randn(N, 2 * K, *size, dtype=torch.float64))
    expected = outcome(cell, args)
    report = fuse(cell, args if style["examples"] or style["maps"] else None)
    assert bool(report.replaced) == (style["flaw"] is None), str(report)
    # Without a tanh, what is no cell for several reasons does not look like one.
    assert len(report.replaced) + len(report.skipped) == 1 or (style["relu"] and style["flaw"])
    actual = outcome(cell, args)
    tolerance = TOLERANCES[torch.float64, "gradients"]
    assert_close_to_reference(actual[0], expected[0], tolerance=tolerance)
    assert_gradients_close(actual[1], expected[1], tolerance=tolerance)


class DrawnLoop(nn.Module):
    """A loop over cells with its style in `s`."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        directions = 2 if s["both"] else 1
        style = {**PLAIN, "split": s["split"], "z_keeps": s["z_keeps"]}
        K = style["K"]
        self.cells = nn.ModuleList(
            nn.ModuleList(
                Drawn({**style, "C": s["C"] if layer == 0 else directions * K}) for _ in range(directions)
            )
            for layer in range(s["layers"])
        )

    def forward(self, x, states=None):
        s, K = self.s, PLAIN["K"]
        axis = 1 if s["batch_first"] else 0
        last = []
        for layer, cells in enumerate(self.cells):
            outputs = []
            for direction, cell in enumerate(cells):
                if states is not None:
                    h = states[layer][direction]
                else:
                    h = x.new_zeros(x.size(1 - axis), K, *x.shape[-2:])
                frames = x.unbind(axis) if s["unbind"] else [x.select(axis, t) for t in range(x.size(axis))]
                steps = []
                for frame in frames[::-1] if direction else frames:
                    h = cell(frame, h)
                    steps.append(h)
                last.append(h)
                steps = steps[::-1] if direction else steps
                stacked = [step.unsqueeze(axis) for step in steps]
                outputs.append(torch.cat(stacked, axis) if s["cat"] else torch.stack(steps, axis))
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return x, last if s["list"] else torch.stack(last)


PLAIN = {
    **dict.fromkeys(("joint", "x_first", "z_first", "bias"), True),
    **dict.fromkeys(("split", "z_keeps", "inverted", "lerp", "relu"), False),
    "K": 3,
    "kernels": (((3, 3),) * 3),
    "flaw": None,
}
loops = st.fixed_dictionaries(
    {
        **{
            n: st.booleans()
            for n in ("both", "split", "z_keeps", "batch_first", "unbind", "cat", "list", "states")
        },
        "C": st.sampled_from([1, 2, 4]),
        "layers": st.integers(1, 2),
        "T": st.integers(1, 4),
        "other T": st.integers(1, 5),
    }
)


def loop_arguments(style, T):
    size = (2, T) if style["batch_first"] else (T, 2)
    x = torch.randn(*size, style["C"], 4, 3, dtype=torch.float64)
    if not style["states"]:
        return (x,)
    directions = 2 if style["both"] else 1
    states = [
        [torch.randn(2, 3, 4, 3, dtype=torch.float64) for _ in range(directions)]
        for _ in range(style["layers"])
    ]
    return x, states


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(loops)
def test_random_loops(style):
    torch.manual_seed(0)
    module = DrawnLoop(style)
    fused = copy.deepcopy(module)
    report = fuse(fused, loop_arguments(style, style["T"]))
    assert not report.skipped
    paths = {record.path for record in report.replaced}
    assert len(paths - {""}) == style["layers"] * (2 if style["both"] else 1)
    if style["T"] > 2:
        assert "" in paths and "sequence" in report.replaced[0].recognised
    for T in (style["T"], style["T"], style["other T"], style["other T"]):
        args = loop_arguments(style, T)
        expected, actual = module(*args), fused(*args)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert actual[0].is_contiguous() == expected[0].is_contiguous()
