"""ConvGRU as functions: documentation, validation, choice of a backend, layers and directions. No maths.

Both functions take their arguments in the order of `torch.gru` and `torch.gru_cell`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import backends, ops
from .checks import check_choice, check_int, check_number
from .eager import VARIANTS

__all__ = ["conv_gru", "conv_gru_cell"]

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight_ih, weight_hh, bias_ih, bias_hh
PARAMETER_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def conv_gru(
    input: Tensor | None,
    hx: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    gate_bias: Tensor | None = None,
    variant: str = "gru-rcn",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""A ConvGRU over a sequence of images; `ConvGRU` without parameters of its own.

    With L layers, D directions (1 or 2), T steps, batch N, C input and K hidden channels, HxW pixels, for
    each layer and direction, ``*`` the zero-padded convolution that keeps HxW and ``.`` the elementwise
    product:

        r = sigmoid(W_r*x + b_ir + U_r*h + b_hr)        z = sigmoid(W_z*x + b_iz + U_z*h + b_hz)
        variant "gru-rcn":       n = tanh(W_n*x + b_in + U_n*(r.h) + b_hn)      h' = (1-z).h + z.n
        variant "gru-rcn-relu":  n = relu(W_n*x + b_in + U_n*(r.h) + b_hn)      h' = (1-z).h + z.n
        variant "cudnn":         n = tanh(W_n*x + b_in + r.(U_n*h + b_hn))      h' = (1-z).n + z.h

    "gru-rcn" is the cell of Ballas et al. 2016 (arXiv 1511.06432); "gru-rcn-relu" that of DGMR (Ravuri et al.
    2021, arXiv 2104.00954); "cudnn" that of `torch.nn.GRU`, which it equals for 1x1 kernels and 1x1 images.

    Args:
        input: (T,N,C,H,W), or (N,T,C,H,W) if batch_first, or unbatched (T,C,H,W). None if `gate_bias`
            replaces the input convolution of the first layer.
        hx: initial state (L*D,N,K,H,W), or (L*D,K,H,W) unbatched; None is zeros. Layer by layer, forward
            direction before reverse.
        params: for each layer and direction weight_ih (3K,C,kh,kw) (in layers above the first C is D*K),
            weight_hh (3K,K,kh,kw) and, if has_biases, bias_ih (3K,) and bias_hh (3K,). Gates are stacked
            r|z|n.
        has_biases: whether `params` contains biases.
        num_layers: L.
        dropout: probability of zeroing an element of the outputs of every layer but the last, if `train`.
        train: whether dropout is active.
        bidirectional: D = 2: the second direction runs from the last (valid) step to the first.
        batch_first: exchange T and N in input, gate_bias and output; not in the states.
        lengths: (N,) integers in 0..T: how many steps of each sample are valid. Outputs past them are zero,
            h_n is the state at the last valid step, and the reverse direction starts there.
        gate_bias: (T,N,D*3K,H,W) or (T,N,D*3K,1,1), unbatched without N: added to the pre-activations r|z|n
            of the first layer (forward direction's 3K channels first). With input=None it stands for W*x +
            b_ih (precomputed or hoisted); weight_ih and bias_ih of the first layer are then not used.
        variant: "gru-rcn", "gru-rcn-relu" or "cudnn".
        recompute: keep only the states for the backward pass and compute the gates again there.

    Returns:
        output (T,N,D*K,H,W) in the input's order, channels last in memory if the input is; h_n (L*D,N,K,H,W).

    Raises:
        TypeError: an argument of the wrong type. ValueError: a wrong shape, dtype, device or value, or a
            backend that was named and cannot run this. The message names the argument, what was expected and
            what came.

    Under autocast all tensors but float64 ones are computed in autocast's dtype, and the result has it.
    """
    check_int("num_layers", num_layers)
    check_choice("variant", variant, VARIANTS)
    check_number("dropout", dropout, 0, 1)
    D = 2 if bidirectional else 1
    layers = _split_params(params, bool(has_biases), num_layers * D)
    K = layers[0][1].size(1)

    first = _required(input, hx, gate_bias)
    name = "input" if input is not None else "gate_bias"
    if first.dim() not in (4, 5):
        raise ValueError(f"{name}: expected 5 dimensions (T,N,C,H,W), or 4 unbatched, got {_shape(first)}")
    batched = first.dim() == 5
    if not batched:
        input, gate_bias = _unsqueeze(input, 1), _unsqueeze(gate_bias, 1)
        if hx is not None:
            if hx.dim() != 4:
                raise ValueError(f"hx: expected (L*D,K,H,W) for unbatched input, got {_shape(hx)}")
            hx = hx.unsqueeze(1)
        if lengths is not None:
            raise ValueError("lengths: expected None for unbatched input, got lengths")
    elif batch_first:
        input = None if input is None else input.transpose(0, 1)
        if gate_bias is not None and gate_bias.dim() == 5:
            gate_bias = gate_bias.transpose(0, 1)

    T, N, H, W = _check_inputs(input, hx, gate_bias, layers, D, K)
    valid = None if lengths is None else _check_lengths(lengths, T, N, layers[0][1].device)

    backend = _choose_backend(layers[0][1], variant)
    x, states = input, []
    for layer in range(num_layers):
        outputs = []
        for direction in range(D):
            index = layer * D + direction
            extra = None
            if layer == 0 and gate_bias is not None:
                extra = gate_bias if D == 1 else gate_bias.narrow(2, direction * 3 * K, 3 * K)
            h0 = None if hx is None else hx[index]
            output = _run(backend, x, h0, layers[index], extra, valid, variant, direction == 1, recompute)
            outputs.append(output)
            states.append(_last_state(output, h0, valid, direction == 1))
        x = outputs[0] if D == 1 else _join(torch.cat, outputs, dim=2)
        if layer + 1 < num_layers and train and dropout > 0:
            x = F.dropout(x, dropout)
    assert x is not None
    h_n = _join(torch.stack, states, dim=0)
    if not batched:
        return x.squeeze(1), h_n.squeeze(1)
    return (x.transpose(0, 1) if batch_first else x), h_n


def conv_gru_cell(
    input: Tensor | None,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    gate_bias: Tensor | None = None,
    variant: str = "gru-rcn",
    recompute: bool = False,
) -> Tensor:
    """One step of `conv_gru`; `ConvGRUCell` without parameters of its own.

    Args:
        input: (N,C,H,W) or unbatched (C,H,W); None if `gate_bias` replaces the input convolution.
        hx: state (N,K,H,W) or (K,H,W); None is zeros.
        weight_ih: (3K,C,kh,kw). weight_hh: (3K,K,kh,kw). bias_ih, bias_hh: (3K,) or None. Gates are stacked
            r|z|n.
        gate_bias: (N,3K,H,W) or (N,3K,1,1), unbatched without N; as in `conv_gru`.
        variant, recompute: as in `conv_gru`.

    Returns:
        The next state, (N,K,H,W) or (K,H,W).

    Raises:
        TypeError, ValueError: as `conv_gru`.
    """
    check_choice("variant", variant, VARIANTS)
    layer = (weight_ih, weight_hh, bias_ih, bias_hh)
    backend, batched = _checked_cell(input, hx, layer, gate_bias, variant)
    if not batched:
        input, hx, gate_bias = _unsqueeze(input, 0), _unsqueeze(hx, 0), _unsqueeze(gate_bias, 0)
    steps, biases = _unsqueeze(input, 0), _unsqueeze(gate_bias, 0)
    h = _run(backend, steps, hx, layer, biases, None, variant, False, recompute).squeeze(0)
    return h if batched else h.squeeze(0)


def _check_cell(
    input: Tensor | None, hx: Tensor | None, layer: Layer, gate_bias: Tensor | None, variant: str
) -> tuple[backends.Backend, bool]:
    """Checks what a cell gets; returns who runs it and whether the images are batched."""
    _check_layer(layer, PARAMETER_NAMES)
    weight_hh = layer[1]
    first = _required(input, hx, gate_bias)
    name = "input" if input is not None else "gate_bias"
    if first.dim() not in (3, 4):
        raise ValueError(f"{name}: expected 4 dimensions (N,C,H,W), or 3 unbatched, got {_shape(first)}")
    batched = first.dim() == 4
    if input is not None and hx is not None:
        expected = (*input.shape[:-3], weight_hh.size(1), *input.shape[-2:])
        if hx.shape != expected:
            names = "(N,K,H,W)" if batched else "(K,H,W)"
            raise ValueError(f"hx: expected {names} = {expected}, got {_shape(hx)}")
    if not batched:
        input, hx, gate_bias = _unsqueeze(input, 0), _unsqueeze(hx, 0), _unsqueeze(gate_bias, 0)
    input, hx, gate_bias = _unsqueeze(input, 0), _unsqueeze(hx, 0), _unsqueeze(gate_bias, 0)
    _check_inputs(input, hx, gate_bias, [layer], 1, weight_hh.size(1))
    return _choose_backend(weight_hh, variant), batched


_checked_cells: dict[tuple[object, ...], tuple[backends.Backend, bool]] = {}
_MOST_CHECKED_CELLS = 1024


def _checked_cell(
    input: Tensor | None, hx: Tensor | None, layer: Layer, gate_bias: Tensor | None, variant: str
) -> tuple[backends.Backend, bool]:
    """`_check_cell`, whose answers are remembered: a loop calls a cell with the same shapes over and over,
    and for a small cell the checks take as long as the kernels."""
    if torch.compiler.is_compiling():
        return _check_cell(input, hx, layer, gate_bias, variant)
    try:
        device_type = layer[1].device.type
        signature = (
            variant,
            backends.selected(),
            ops.autocast_dtype(device_type),
            forward_ad._current_level,
            *[x if x is None else (x.shape, x.dtype, x.device) for x in (input, hx, gate_bias, *layer)],
        )
        answer = _checked_cells.get(signature)
    except (AttributeError, TypeError):  # not a Tensor, or symbolic sizes
        return _check_cell(input, hx, layer, gate_bias, variant)
    if answer is None:
        answer = _check_cell(input, hx, layer, gate_bias, variant)
        if len(_checked_cells) >= _MOST_CHECKED_CELLS:
            _checked_cells.clear()
        _checked_cells[signature] = answer
    return answer


def _choose_backend(weight: Tensor, variant: str) -> backends.Backend:
    device_type, dtype = weight.device.type, weight.dtype
    if dtype != torch.float64:
        dtype = ops.autocast_dtype(device_type) or dtype
    return backends.choose(backends.Problem(device_type, dtype, variant, forward_ad._current_level >= 0))


def _run(
    backend: backends.Backend,
    input: Tensor | None,
    hx: Tensor | None,
    layer: Layer,
    gate_bias: Tensor | None,
    lengths: Tensor | None,
    variant: str,
    reverse: bool,
    recompute: bool,
) -> Tensor:
    """One layer, one direction: all states (T,N,K,H,W)."""
    weight_ih, weight_hh, bias_ih, bias_hh = layer
    args: tuple[Tensor | None, ...] = (input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias)
    if input is None:
        args = (None, hx, None, weight_hh, None, bias_hh, gate_bias)
    needs_grad = torch.is_grad_enabled() and any(arg is not None and arg.requires_grad for arg in args)
    return backend.conv_gru(*args, lengths, variant, reverse, save_gates=needs_grad and not recompute)


def _join(how: Callable[..., Tensor], images: list[Tensor], dim: int) -> Tensor:
    """torch.cat or torch.stack of images (...,K,H,W) that keeps them channels last in memory."""
    if len(images) == 1 and how is torch.stack:
        return images[0].unsqueeze(dim).clone()  # on a GPU, memory copied at once
    if images[0].stride(-3) != 1:
        return how(images, dim=dim)
    # cat joins along K, which is last in memory; stack along an axis in front of the images.
    memory = [image.movedim(-3, -1) for image in images]
    return how(memory, dim=-1 if how is torch.cat else dim).movedim(-1, -3)


def _last_state(output: Tensor, hx: Tensor | None, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The state (N,K,H,W) after a sample's last step, of outputs (T,N,K,H,W)."""
    if output.size(0) == 0:
        return output.new_zeros(output.shape[1:]) if hx is None else hx.to(output.dtype)
    if lengths is None:
        return output[0 if reverse else -1]
    last = torch.zeros_like(lengths) if reverse else (lengths - 1).clamp(min=0)
    state = output[last, torch.arange(output.size(1), device=output.device)]
    return state if hx is None else torch.where((lengths > 0).view(-1, 1, 1, 1), state, hx.to(state.dtype))


# Checks. Each message names the argument, what was expected and what came.


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def _required(input: Tensor | None, hx: Tensor | None, gate_bias: Tensor | None) -> Tensor:
    """What tells the sizes: the input or, without one, gate_bias."""
    for name, value in (("input", input), ("hx", hx), ("gate_bias", gate_bias)):
        if value is not None:
            _check_tensor(name, value)
    if input is not None:
        return input
    if gate_bias is None:
        raise ValueError("input: expected a Tensor, or None together with gate_bias; got None for both")
    return gate_bias


def _unsqueeze(tensor: Tensor | None, dim: int) -> Tensor | None:
    """A tensor of too low a rank is left as it is, for the check of shapes to report."""
    return tensor if tensor is None or tensor.dim() < dim else tensor.unsqueeze(dim)


def _split_params(params: Sequence[Tensor], has_biases: bool, count: int) -> list[Layer]:
    """The flat list of parameters as one tuple for each of `count` layers and directions."""
    per_layer = 4 if has_biases else 2
    if not isinstance(params, Sequence):
        raise TypeError(f"params: expected a sequence of Tensors, got {type(params).__name__}")
    if len(params) != count * per_layer:
        raise ValueError(
            f"params: expected {count * per_layer} tensors ({per_layer} for each of {count} layers and "
            f"directions), got {len(params)}"
        )
    layers: list[Layer] = []
    for index in range(count):
        given = params[index * per_layer : (index + 1) * per_layer]
        for i, tensor in enumerate(given):
            _check_tensor(f"params[{index * per_layer + i}] ({PARAMETER_NAMES[i]})", tensor)
        weight_ih, weight_hh, *biases = given
        layer = (weight_ih, weight_hh, *(biases or (None, None)))
        _check_layer(
            layer, tuple(f"params[{index * per_layer + i}] ({n})" for i, n in enumerate(PARAMETER_NAMES))
        )
        layers.append(layer)
    return layers


def _check_layer(layer: Layer, names: tuple[str, ...]) -> None:
    """Types, shapes and dtypes of one layer's parameters among themselves."""
    weight_ih, weight_hh, bias_ih, bias_hh = layer
    for name, tensor in zip(names, layer, strict=True):
        if tensor is not None or "weight" in name:
            _check_tensor(name, tensor)
    if not weight_hh.dtype.is_floating_point:
        raise TypeError(f"{names[1]}: expected a floating-point dtype, got {weight_hh.dtype}")
    if weight_hh.dim() != 4 or weight_hh.size(0) != 3 * weight_hh.size(1):
        raise ValueError(f"{names[1]}: expected (3K,K,kh,kw), got {_shape(weight_hh)}")
    three_k, _, kh, kw = weight_hh.shape
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"{names[1]}: expected an odd kernel, got {kh}x{kw}")
    if weight_ih.dim() != 4 or weight_ih.size(0) != three_k or weight_ih.shape[2:] != weight_hh.shape[2:]:
        raise ValueError(f"{names[0]}: expected ({three_k},C,{kh},{kw}), got {_shape(weight_ih)}")
    for name, bias in ((names[2], bias_ih), (names[3], bias_hh)):
        if bias is not None and bias.shape != (three_k,):
            raise ValueError(f"{name}: expected ({three_k},), got {_shape(bias)}")
    for name, tensor in zip(names, layer, strict=True):
        if tensor is not None:
            _check_same(name, tensor, weight_hh)


def _check_same(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Same device as the weights, and same dtype unless autocast will see to that."""
    if tensor.device != weight.device:
        raise ValueError(f"{name}: expected the weights' device {weight.device}, got {tensor.device}")
    if tensor.dtype != weight.dtype:
        both_cast = tensor.is_floating_point() and torch.float64 not in (tensor.dtype, weight.dtype)
        if not (both_cast and ops.autocast_enabled(weight.device.type)):
            raise ValueError(f"{name}: expected the weights' dtype {weight.dtype}, got {tensor.dtype}")


def _check_inputs(
    input: Tensor | None, hx: Tensor | None, gate_bias: Tensor | None, layers: list[Layer], D: int, K: int
) -> tuple[int, int, int, int]:
    """Checks input (T,N,C,H,W), hx (L*D,N,K,H,W) and gate_bias (T,N,D*3K,H,W) against each other and the
    parameters; returns T, N, H, W."""
    for index, (weight_ih, weight_hh, _, _) in enumerate(layers):
        if weight_hh.shape[:2] != (3 * K, K):
            raise ValueError(
                f"params: expected the same K={K} in every layer, got weight_hh {_shape(weight_hh)}"
            )
        if index < D and weight_ih.size(1) != layers[0][0].size(1):
            raise ValueError(
                f"params: expected the same C={layers[0][0].size(1)} in both directions of layer 0, got "
                f"weight_ih {_shape(weight_ih)}"
            )
        if index >= D and weight_ih.size(1) != D * K:
            raise ValueError(
                f"params: expected weight_ih (3K,{D * K},kh,kw) above layer 0, got {_shape(weight_ih)}"
            )
        _check_same("params", weight_hh, layers[0][1])
    if input is not None:
        T, N, C, H, W = input.shape
        expected = layers[0][0].size(1)
        if expected != C:
            raise ValueError(f"input: expected {expected} channels, got {C} in {_shape(input)}")
        if H == 0 or W == 0:
            raise ValueError(f"input: expected at least one pixel, got {_shape(input)}")
        _check_same("input", input, layers[0][1])
    else:
        assert gate_bias is not None
        T, N, _, H, W = gate_bias.shape
        if H == 0 or W == 0:
            raise ValueError(f"gate_bias: expected at least one pixel, got {_shape(gate_bias)}")
        if hx is not None and hx.dim() == 5 and (H, W) == (1, 1):
            H, W = hx.shape[3:]
    if gate_bias is not None:
        if (
            gate_bias.dim() != 5
            or gate_bias.shape[:3] != (T, N, D * 3 * K)
            or (gate_bias.shape[3:] != (H, W) and gate_bias.shape[3:] != (1, 1))
        ):
            raise ValueError(
                f"gate_bias: expected T={T}, N={N}, {D * 3 * K} channels and {H}x{W} or 1x1 pixels, got "
                f"{_shape(gate_bias)} (T, N, channels, H, W)"
            )
        _check_same("gate_bias", gate_bias, layers[0][1])
    if hx is not None:
        if hx.shape != (len(layers), N, K, H, W):
            raise ValueError(f"hx: expected (L*D,N,K,H,W) = {(len(layers), N, K, H, W)}, got {_shape(hx)}")
        _check_same("hx", hx, layers[0][1])
    return T, N, H, W


def _is_traced(tensor: Tensor) -> bool:
    """Whether its values cannot be read: those of a fake tensor, or where make_fx records what is done."""
    if type(tensor) is Tensor and not torch._C._len_torch_dispatch_stack():
        return False
    from torch._subclasses.fake_tensor import FakeTensor  # not at every start
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return isinstance(tensor, FakeTensor) or get_proxy_mode() is not None


def _check_lengths(lengths: Tensor | Sequence[int], T: int, N: int, device: torch.device) -> Tensor:
    if not isinstance(lengths, Tensor):
        try:
            # On the CPU, whatever the default device is: the values are read below.
            lengths = torch.tensor(lengths, dtype=None if N else torch.int64, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(
                f"lengths: expected a Tensor or a sequence of integers, got {lengths!r}"
            ) from None
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    lengths = lengths.to(torch.int64)
    if lengths.shape != (N,):
        raise ValueError(f"lengths: expected ({N},), got {_shape(lengths)}")
    # Values are read where that neither waits for a device nor breaks a graph; kernels are safe for any
    # value.
    readable = lengths.is_cpu and not torch.compiler.is_compiling() and not ops.under_transform()
    if readable and N and not _is_traced(lengths) and (lengths.min() < 0 or lengths.max() > T):
        raise ValueError(f"lengths: expected 0 to T={T}, got {lengths.tolist()}")
    lengths = lengths.to(device)
    if torch.compiler.is_compiling() or not lengths.is_inference() or torch.is_inference_mode_enabled():
        return lengths
    return lengths.clone()  # it is kept for the backward pass, which tensors of inference mode cannot be
