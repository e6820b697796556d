"""ConvGRU and ConvGRUCell as modules: parameters and their names, state, no maths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .checks import check_choice, check_int, check_number
from .eager import VARIANTS
from .functional import PARAMETER_NAMES


def _kernel_pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) for size in pair)
    ):
        raise TypeError(f"kernel_size: expected an int or a pair of ints, got {kernel_size!r}")
    if any(size < 1 or size % 2 == 0 for size in pair):
        raise ValueError(f"kernel_size: expected odd positive sizes, got {kernel_size!r}")
    return pair[0], pair[1]


class _ConvGRUBase(nn.Module):
    """What ConvGRU and ConvGRUCell share: the parameters of some layers, named as in torch.nn.GRU."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int | tuple[int, int],
        bias: bool,
        variant: str,
        suffixes: dict[str, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_int("input_size", input_size)
        check_int("hidden_size", hidden_size)
        check_choice("variant", variant, VARIANTS)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.kernel_size = _kernel_pair(kernel_size)
        self.bias = bool(bias)
        self.variant = variant
        self._parameter_names: list[str] = []
        for suffix, channels in suffixes.items():
            three_k = 3 * hidden_size
            shapes: list[tuple[int, ...]] = [
                (three_k, channels, *self.kernel_size),
                (three_k, hidden_size, *self.kernel_size),
            ]
            if self.bias:
                shapes += [(three_k,), (three_k,)]
            for name, shape in zip(PARAMETER_NAMES, shapes, strict=False):
                self.register_parameter(
                    name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                )
                self._parameter_names.append(name + suffix)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(K*kh*kw), one over the root of the hidden convolution's fan-in: for a 1x1
        kernel the initialisation of torch.nn.GRU."""
        bound = 1 / math.sqrt(self.hidden_size * self.kernel_size[0] * self.kernel_size[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _flat_weights(self) -> list[Tensor]:
        # getattr also finds those that are elsewhere (parametrized, sharded), but takes three times as long.
        here: Any = self._parameters
        return [here[name] if name in here else getattr(self, name) for name in self._parameter_names]

    def extra_repr(self) -> str:
        kh, kw = self.kernel_size
        parts = [f"{self.input_size}, {self.hidden_size}", f"kernel_size={kh if kh == kw else (kh, kw)}"]
        if not self.bias:
            parts.append("bias=False")
        if self.variant != "gru-rcn":
            parts.append(f"variant={self.variant!r}")
        return ", ".join(parts)


class ConvGRU(_ConvGRUBase):
    r"""A multi-layer convolutional GRU over a sequence of images, fused into one operator a layer and
    direction.

    The arguments are those of `torch.nn.GRU` with a kernel size; equations and shapes are those of
    `convgru_fused.functional.conv_gru`, by default the GRU-RCN cell of Ballas et al. 2016.

    Args:
        input_size: C, channels of the input.
        hidden_size: K, channels of the state.
        kernel_size: an odd int or a pair (kh, kw); padded with zeros to keep HxW.
        num_layers: layers stacked on each other.
        bias: whether there are bias_ih and bias_hh.
        batch_first: input and output are (N,T,C,H,W) instead of (T,N,C,H,W).
        dropout: probability of dropout on the outputs of every layer but the last, in training.
        bidirectional: a second direction reads the sequence backwards; outputs are concatenated along the
            channels.
        variant: "gru-rcn", "gru-rcn-relu" or "cudnn" (the cell of torch.nn.GRU).
        recompute: keep only the states for the backward pass and compute the gates again there.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l[k]: (3K,C,kh,kw), gates stacked r|z|n; (3K,D*K,kh,kw) for k > 0. weight_hh_l[k]:
            (3K,K,kh,kw).
        bias_ih_l[k], bias_hh_l[k]: (3K,). The reverse direction's end in _reverse.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int | tuple[int, int] = 3,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        variant: str = "gru-rcn",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_int("num_layers", num_layers)
        check_number("dropout", dropout, 0, 1)
        directions = ("", "_reverse") if bidirectional else ("",)
        suffixes = {
            f"_l{layer}{direction}": input_size if layer == 0 else len(directions) * hidden_size
            for layer in range(num_layers)
            for direction in directions
        }
        super().__init__(input_size, hidden_size, kernel_size, bias, variant, suffixes, device, dtype)
        self.num_layers = num_layers
        self.batch_first = bool(batch_first)
        self.dropout = float(dropout)
        self.bidirectional = bool(bidirectional)
        self.recompute = bool(recompute)

    def forward(
        self,
        input: Tensor | None,
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        gate_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(T,N,C,H,W) -> output (T,N,D*K,H,W), h_n (L*D,N,K,H,W); see `convgru_fused.functional.conv_gru`."""
        return functional.conv_gru(
            input,
            hx,
            self._flat_weights(),
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            lengths=lengths,
            gate_bias=gate_bias,
            variant=self.variant,
            recompute=self.recompute,
        )

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if self.batch_first:
            parts.append("batch_first=True")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        if self.bidirectional:
            parts.append("bidirectional=True")
        if self.recompute:
            parts.append("recompute=True")
        return ", ".join(parts)

    def flatten_parameters(self) -> None:
        """Does nothing. It is there for code that calls it of a torch.nn.GRU, whose parameters are to lie in
        one piece of memory; these need not."""

    @classmethod
    def from_gru(cls, gru: nn.GRU) -> ConvGRU:
        """A ConvGRU with 1x1 kernels and variant "cudnn" that computes what `gru` computes, at every pixel.

        Weights are copied; they have the same names and gate order r|z|n in both, so that
        ``conv.load_state_dict`` of ``gru.state_dict()`` needs only two trailing dimensions of size 1 on the
        weights.

        Raises:
            TypeError: `gru` is not a torch.nn.GRU.
        """
        if not isinstance(gru, nn.GRU):
            raise TypeError(f"gru: expected a torch.nn.GRU, got {type(gru).__name__}")
        parameter: Any = gru.weight_ih_l0
        conv = cls(
            gru.input_size,
            gru.hidden_size,
            kernel_size=1,
            num_layers=gru.num_layers,
            bias=gru.bias,
            batch_first=gru.batch_first,
            dropout=gru.dropout,
            bidirectional=gru.bidirectional,
            variant="cudnn",
            device=parameter.device,
            dtype=parameter.dtype,
        )
        with torch.no_grad():
            for name, target in conv.named_parameters():
                target.copy_(getattr(gru, name).view_as(target))  # a parameter, or parametrised
        return conv.train(gru.training)

    @classmethod
    def from_cell(cls, cell: ConvGRUCell, **options: object) -> ConvGRU:
        """A one-layer ConvGRU with copies of the parameters of `cell`; `options` go to the constructor."""
        if not isinstance(cell, ConvGRUCell):
            raise TypeError(f"cell: expected a ConvGRUCell, got {type(cell).__name__}")
        first: Any = cell.weight_ih
        conv = cls(
            cell.input_size,
            cell.hidden_size,
            cell.kernel_size,
            bias=cell.bias,
            variant=cell.variant,
            device=first.device,
            dtype=first.dtype,
            **options,  # type: ignore[arg-type]
        )
        if conv.num_layers > 1 or conv.bidirectional:
            raise ValueError(
                "options: expected one layer and direction, "
                f"got num_layers={conv.num_layers}, bidirectional={conv.bidirectional}"
            )
        # Of the cell each is a parameter, or parametrised.
        conv.load_state_dict({name: getattr(cell, name.removesuffix("_l0")) for name in conv.state_dict()})
        return conv.train(cell.training)


class ConvGRUCell(_ConvGRUBase):
    r"""One step of a convolutional GRU: for loops in which the input of a step depends on the state.

    Equations as in `convgru_fused.functional.conv_gru`.

    Args:
        input_size, hidden_size, kernel_size, bias, variant, device, dtype: as in `ConvGRU`.

    Attributes:
        weight_ih: (3K,C,kh,kw), gates stacked r|z|n. weight_hh: (3K,K,kh,kw). bias_ih, bias_hh: (3K,).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int | tuple[int, int] = 3,
        bias: bool = True,
        *,
        variant: str = "gru-rcn",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, kernel_size, bias, variant, {"": input_size}, device, dtype)

    def forward(
        self, input: Tensor | None, hx: Tensor | None = None, gate_bias: Tensor | None = None
    ) -> Tensor:
        """(N,C,H,W), (N,K,H,W) -> (N,K,H,W); see `convgru_fused.functional.conv_gru_cell`."""
        weights = self._flat_weights()  # without the biases, if there are none
        return functional.conv_gru_cell(input, hx, *weights, gate_bias=gate_bias, variant=self.variant)

    @classmethod
    def from_convs(
        cls,
        *,
        candidate: nn.Conv2d,
        gates: nn.Conv2d | None = None,
        gate_order: str | None = None,
        reset: nn.Conv2d | None = None,
        update: nn.Conv2d | None = None,
        concat: str,
        update_gate: str,
    ) -> ConvGRUCell:
        """A cell with the weights of a hand-written one that convolves concatenated [input, state].

        The hand-written cell computes r = sigmoid(reset([x,h])), z = sigmoid(update([x,h])),
        n = tanh(candidate([x, r.h])) and blends h and n by z: variant "gru-rcn" up to the order of channels
        and the meaning of z. Both have to be said, since cells that look alike differ in them.

        Args:
            candidate: convolution C+K -> K of the candidate, with an odd kernel and padding that keeps the
                size.
            gates: joint convolution C+K -> 2K of both gates; then `gate_order` is "rz" or "zr", the order of
                its halves.
            reset, update: separate convolutions C+K -> K, instead of `gates`.
            concat: "xh" if the cell concatenates [input, state], "hx" if [state, input].
            update_gate: "new" if h' = (1-z).h + z.n (z lets the candidate in), "old" if h' = z.h + (1-z).n.

        Returns:
            A cell whose bias_hh is zero; its parameters are copies.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        if concat not in ("xh", "hx"):
            raise ValueError(f"concat: expected 'xh' or 'hx', got {concat!r}")
        if update_gate not in ("new", "old"):
            raise ValueError(f"update_gate: expected 'new' or 'old', got {update_gate!r}")
        given = [conv is not None for conv in (gates, reset, update)]
        if given not in ([True, False, False], [False, True, True]):
            names = [name for name, there in zip(("gates", "reset", "update"), given, strict=True) if there]
            raise ValueError(
                f"gates: expected either gates, or reset and update; got {' and '.join(names) or 'none'}"
            )
        if gates is not None and gate_order not in ("rz", "zr"):
            raise ValueError(f"gate_order: expected 'rz' or 'zr' with gates, got {gate_order!r}")
        _check_type("candidate", candidate)
        K = candidate.out_channels
        C = candidate.in_channels - K
        if C < 1:
            raise ValueError(
                f"candidate: expected more in_channels than its {K} out_channels, got {candidate.in_channels}"
            )
        for name, conv, channels in (
            ("candidate", candidate, K),
            ("gates", gates, 2 * K),
            ("reset", reset, K),
            ("update", update, K),
        ):
            if conv is not None:
                _check_same_conv(name, conv, C + K, channels, candidate)

        def weight_and_bias(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
            bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
            return conv.weight.detach(), bias.detach()

        if gates is not None:
            halves = tuple(zip(*(part.chunk(2) for part in weight_and_bias(gates)), strict=True))
            (w_r, b_r), (w_z, b_z) = halves if gate_order == "rz" else halves[::-1]
        else:
            assert reset is not None and update is not None
            (w_r, b_r), (w_z, b_z) = weight_and_bias(reset), weight_and_bias(update)
        if update_gate == "old":  # 1 - sigmoid(a) = sigmoid(-a)
            w_z, b_z = -w_z, -b_z
        w_n, b_n = weight_and_bias(candidate)
        weight = torch.cat((w_r, w_z, w_n))
        has_bias = any(
            conv is not None and conv.bias is not None for conv in (candidate, gates, reset, update)
        )
        kernel_size = (weight.size(2), weight.size(3))
        cell = cls(C, K, kernel_size, bias=has_bias, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            x_first = concat == "xh"
            cell.get_parameter("weight_ih").copy_(weight[:, :C] if x_first else weight[:, K:])
            cell.get_parameter("weight_hh").copy_(weight[:, C:] if x_first else weight[:, :K])
            if has_bias:
                cell.get_parameter("bias_ih").copy_(torch.cat((b_r, b_z, b_n)))
                cell.get_parameter("bias_hh").zero_()
        return cell


def _check_type(name: str, conv: object) -> None:
    """A subclass may compute something else."""
    if type(conv) is not nn.Conv2d:
        raise TypeError(f"{name}: expected a torch.nn.Conv2d, got {type(conv).__name__}")


def _check_same_conv(
    name: str, conv: nn.Conv2d, in_channels: int, out_channels: int, like: nn.Conv2d
) -> None:
    """Only a plain convolution, stride 1, that keeps the size can become part of a cell."""
    _check_type(name, conv)
    expected = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": like.kernel_size,
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    for attribute, value in expected.items():
        if getattr(conv, attribute) != value:
            raise ValueError(f"{name}: expected {attribute}={value!r}, got {getattr(conv, attribute)!r}")
    for attribute in ("dtype", "device"):
        value, got = getattr(like.weight, attribute), getattr(conv.weight, attribute)
        if got != value:
            raise ValueError(f"{name}: expected {attribute}={value!r}, got {got!r}")
    same = tuple(size // 2 for size in conv.kernel_size)
    if any(size % 2 == 0 for size in conv.kernel_size):
        raise ValueError(f"{name}: expected an odd kernel_size, got {conv.kernel_size}")
    if conv.padding != "same" and conv.padding != same:
        raise ValueError(f"{name}: expected padding={same} or 'same', got {conv.padding!r}")
