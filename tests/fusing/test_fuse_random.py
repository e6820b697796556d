"""Cells drawn at random: what is fused is within tolerance, always; and a ConvGRU is always fused."""

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
        n = torch.relu(n) if s["flaw"] == "relu" else torch.tanh(n)
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
        "C": sizes,
        "K": sizes,
        "kernels": st.tuples(kernels, kernels, kernels),
        "flaw": st.sampled_from([None, None, None, "reset", "relu", "blend"]),
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
    assert len(report.replaced) + len(report.skipped) == 1
    actual = outcome(cell, args)
    tolerance = TOLERANCES[torch.float64, "gradients"]
    assert_close_to_reference(actual[0], expected[0], tolerance=tolerance)
    assert_gradients_close(actual[1], expected[1], tolerance=tolerance)
