"""What a recording says of a tensor is what it is: polynomials are evaluated, and compared with what ran."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convgru_fused.fusing.channels import (
    Activation,
    Channels,
    Convolution,
    Frame,
    Leaf,
    Own,
    Poly,
    Ref,
    TooManyTerms,
    Vector,
)
from convgru_fused.fusing.recording import Recorder, SeeDetach
from convgru_fused.fusing.values import Clip, Image, Stack, Unknown

N, C, H, W, T = 2, 6, 5, 4, 3


class Holder(nn.Module):
    """Parameters to use in expressions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, 2 * C, 3, padding=1)
        self.valid = nn.Conv2d(C, C, 3)
        self.vector, self.image_vector = (
            nn.Parameter(torch.randn(C, 1, 1)),
            nn.Parameter(torch.randn(1, C, 1, 1)),
        )
        self.flat = nn.Parameter(torch.randn(2 * C))
        self.picture = nn.Parameter(torch.randn(1, C, H, W))
        self.double()


def evaluated(channels, tensors, module):
    """The image that the channels describe."""
    return torch.cat(
        [_poly(r.poly, r.count, tensors, module).expand(N, -1, H, W) for r in channels.ranges], 1
    )


def _poly(poly, count, tensors, module):
    total = torch.zeros(1, count, 1, 1, dtype=torch.float64)
    for monomial, factor in poly.terms.items():
        product = torch.full((1, count, 1, 1), factor, dtype=torch.float64)
        for atom, power in monomial:
            product = product * _atom(atom, count, tensors, module) ** power
        total = total + product
    return total


def _atom(atom, count, tensors, module):
    part = slice(atom.start, atom.start + count) if not isinstance(atom, Activation) else None
    if isinstance(atom, Leaf):
        name = atom.tensor
        if isinstance(name, Frame):
            return tensors[name.clip.name].select(name.axis, name.index)[:, part]
        found = module.get_parameter(name.name) if isinstance(name, Own) else tensors[name.name]
        return found[:, part]
    if isinstance(atom, Vector):
        return module.get_parameter(atom.parameter).flatten()[part].view(1, -1, 1, 1)
    if isinstance(atom, Convolution):
        image = evaluated(atom.image, tensors, module)
        weight = module.get_parameter(atom.weight)[part, atom.first : atom.first + image.shape[1]]
        g = atom.geometry
        return F.conv2d(image, weight, None, g.stride, g.padding, g.dilation, g.groups)
    name, _, options = atom.function.partition("(")
    function = getattr(torch, name, None) or getattr(F, name)
    argument = _poly(atom.argument, count, tensors, module)
    numbers = [eval(o, {"inf": torch.inf}) for o in options.rstrip(")").split(",")] if options else []
    return getattr(torch.ops.aten, name)(argument, *numbers) if numbers else function(argument)


def recorded(function, *args):
    """What a recording says of the result, the result, the named tensors, and the module."""
    module = Holder()
    tensors = {f"args[{i}]": arg for i, arg in enumerate(args)}
    recorder = Recorder(lambda *_: None)
    for name, parameter in module.named_parameters():
        recorder.add_parameter(name, parameter)
    for name, tensor in tensors.items():
        recorder.add_leaf(name, tensor)
    with SeeDetach(recorder), recorder:
        result = function(module, *args)
    return recorder.get(result), result, tensors, module


def images(count=2):
    return [torch.randn(N, C, H, W, dtype=torch.float64) for _ in range(count)]


FOLLOWED = {
    "sum": lambda m, x, y: x + y,
    "sum by a number": lambda m, x, y: torch.add(x, y, alpha=-3) + 2,
    "difference": lambda m, x, y: 1 - torch.sub(x, y, alpha=2),
    "product": lambda m, x, y: x * y * x * 0.5,
    "quotient by a number": lambda m, x, y: (x - y) / 4,
    "negative": lambda m, x, y: -x + y.neg(),
    "lerp": lambda m, x, y: torch.lerp(x, y, x.sigmoid()),
    "lerp by a number": lambda m, x, y: x.lerp(y, 0.3),
    "addcmul": lambda m, x, y: torch.addcmul(x, y, x, value=-2),
    "in place": lambda m, x, y: x.clone().mul_(y).add_(1).sigmoid_(),
    "rsub": lambda m, x, y: torch.rsub(x, y, alpha=3),
    "activations": lambda m, x, y: x.sigmoid() * y.tanh() + F.relu(x) * F.silu(y),
    "activations with numbers": lambda m, x, y: (
        F.leaky_relu(x, 0.3) + F.elu(y, 1.5) + F.hardtanh(x, -0.5, 0.25)
    ),
    "cat and chunk": lambda m, x, y: torch.cat(torch.cat([x, y], 1).chunk(4, 1)[::-1], 1),
    "split": lambda m, x, y: torch.cat([part * 2 for part in x.split([1, 3, 2], dim=-3)], 1) + y,
    "split of products": lambda m, x, y: torch.cat([x * y, y], 1).split(5, 1)[1],
    "slices": lambda m, x, y: torch.cat([x[:, 2:], y[:, :2], x[:, -3:-1], x[:]], 1),
    "narrow": lambda m, x, y: torch.cat([x, y], 1).narrow(1, 4, 5).sigmoid(),
    "constants": lambda m, x, y: (
        x * torch.zeros_like(x) + y * torch.ones_like(y) + torch.full_like(x, 0.5) + x.new_zeros(x.shape)
    ),
    "zeroed": lambda m, x, y: torch.cat(
        [x.clone().zero_(), y.new_ones(N, 1, H, W), x.new_full((N, 2, H, W), 3.0)], 1
    ),
    "convolution": lambda m, x, y: m.conv(x + y),
    "convolution in parts": lambda m, x, y: torch.tanh(m.conv(torch.cat([x[:, :2], y[:, :4]], 1))[:, 3:9]),
    "padded convolution": lambda m, x, y: m.valid(F.pad(x * y, (1, 1, 1, 1))),
    "convolution by rows of a weight": lambda m, x, y: F.conv2d(
        x, m.conv.weight[3:8], m.conv.bias[3:8], padding=1
    ),
    "convolution by columns of a weight": lambda m, x, y: F.conv2d(x[:, :4], m.conv.weight[:, 2:], padding=1),
    "convolution by chunks": lambda m, x, y: F.conv2d(y, m.conv.weight.chunk(2)[1], padding=(1, 1)),
    "dilated": lambda m, x, y: F.conv2d(x, m.conv.weight, padding=2, dilation=2),
    "vectors": lambda m, x, y: x * m.vector + m.image_vector - m.flat[C:].view(C, 1, 1),
    "vector in other shapes": lambda m, x, y: x + m.flat[None, :C, None, None] + m.vector.view(1, C, 1, 1),
    "part of a vector": lambda m, x, y: x[:, 1:3] * m.vector[1:3] + m.image_vector[:, 1:3],
    "picture": lambda m, x, y: x + m.picture,
    "copies": lambda m, x, y: x.clone().contiguous() + torch.empty_like(y).copy_(y),
    "views of the same shape": lambda m, x, y: x.view(N, C, H, W).reshape_as(y).expand(N, C, H, W) * 2,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_images(name):
    value, result, tensors, module = recorded(FOLLOWED[name], *images())
    assert isinstance(value, Image), value
    given = {Ref(name) for name in tensors} | {Own("picture")}
    assert all(leaf.tensor in given for leaf in _leaves(value.channels)), "not looked into"
    torch.testing.assert_close(evaluated(value.channels, tensors, module), result, rtol=1e-12, atol=1e-12)


def _leaves(channels):
    for part in channels.ranges:
        for atom in part.poly.atoms():
            if isinstance(atom, Leaf):
                yield atom


# (T,N,C,H,W) and (N,T,C,H,W)
CLIPS = {
    "index": lambda m, c: c[1],
    "index from the end": lambda m, c: c[-1] * 2,
    "unbound": lambda m, c: c.unbind(0)[2],
    "transposed": lambda m, c: c.transpose(0, 1)[:, 2],
    "permuted": lambda m, c: c.permute(1, 0, 2, 3, 4)[:, 0],
    "stacked": lambda m, c: torch.stack([c[0], c[1] * 2], 1)[:, 1],
    "stacked and turned": lambda m, c: torch.stack([c[0], c[1] * 2], 1).transpose(0, 1)[0],
    "joined": lambda m, c: torch.cat([c[1].unsqueeze(1), c[0][:, None]], 1)[:, 0],
    "joined clips": lambda m, c: torch.cat([c, c], 0)[4],
    "joined channels": lambda m, c: torch.cat([torch.stack([c[0], c[1]]), torch.stack([c[2], c[0]])], 2)[1],
    "channels of frames": lambda m, c: torch.stack([c[0], c[2]])[:, :, 1:3][1],
    "part": lambda m, c: c[1:][1],
    "flipped": lambda m, c: c.flip(0)[0],
    "split": lambda m, c: c.split(1)[2].squeeze(0),
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames(name):
    clip = torch.randn(T, N, C, H, W, dtype=torch.float64)
    value, result, tensors, module = recorded(CLIPS[name], clip)
    assert isinstance(value, Image), value
    torch.testing.assert_close(evaluated(value.channels, tensors, module), result, rtol=0, atol=0)


NOT_FOLLOWED = {
    "a quotient of images": lambda m, x, y: x / y,
    "one channel for many": lambda m, x, y: x * y[:, :1],
    "another type": lambda m, x, y: x.float(),
    "a transposed convolution": lambda m, x, y: F.conv_transpose2d(x, m.valid.weight),
    "a computed weight": lambda m, x, y: F.conv2d(x, m.valid.weight * 2),
    "a computed bias": lambda m, x, y: F.conv2d(x, m.valid.weight, m.flat[:C] + 1),
    "replicated padding": lambda m, x, y: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "uneven padding": lambda m, x, y: F.pad(x, (0, 1, 0, 1)),
    "rows": lambda m, x, y: torch.cat([x, y], 2),
    "every second channel": lambda m, x, y: x[:, ::2],
    "channels the other way": lambda m, x, y: x.flip(1),
    "a selection": lambda m, x, y: torch.where(x > 0, x, y),
    "a mean": lambda m, x, y: x.mean(1, keepdim=True),
    "axes exchanged": lambda m, x, y: x.transpose(2, 3),
    "written in part": lambda m, x, y: _written(x, y),
    "detached": lambda m, x, y: x.detach(),
}


def _written(x, y):
    image = x.clone()
    image[:, :2] = y[:, :2]
    return image


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_is_not_followed_is_an_unknown(name):
    """Not an image that is something else."""
    value, result, tensors, _ = recorded(NOT_FOLLOWED[name], *images())
    if isinstance(value, Unknown):
        return
    assert isinstance(value, Image)
    (part,) = value.channels.ranges
    leaf = part.poly.single()
    assert isinstance(leaf, Leaf) and leaf.tensor.name.startswith("value ")
    assert part.count == result.shape[1]


def test_a_clip_is_known_by_its_axes():
    clip = torch.randn(T, N, C, H, W, dtype=torch.float64)
    value, *_ = recorded(lambda m, c: c.transpose(0, 1), clip)
    assert isinstance(value, Clip) and value.axes == (1, 0)
    value, *_ = recorded(lambda m, c: torch.stack([c[0], c[1]], 1), clip)
    assert isinstance(value, Stack) and value.axis == 1 and len(value.frames) == 2


def test_writing_to_an_argument_is_noticed():
    for function in (lambda m, x, y: x.mul_(y), lambda m, x, y: m.vector.data.zero_() + x):
        module, recorder = Holder(), Recorder(lambda *_: None)
        x, y = images()
        recorder.add_leaf("x", x)
        recorder.add_parameter("vector", module.vector)
        with torch.no_grad(), SeeDetach(recorder), recorder:
            function(module, x, y)
        assert recorder.recording.refusal


def test_a_number_from_a_tensor_is_noticed():
    recorder = Recorder(lambda *_: None)
    with recorder:
        assert torch.ones(1).item() == 1
    assert recorder.recording.depends_on_values


def test_a_formula_that_grows():
    x = Poly.of(Leaf(Own("x")))
    many = x
    for i in range(20):
        many = many + Poly.of(Leaf(Own(f"y{i}")))
    with pytest.raises(TooManyTerms):
        many * many
    assert Channels.filled(x, 3).narrow(1, 1).ranges[0].poly == x.shifted(1) != x
