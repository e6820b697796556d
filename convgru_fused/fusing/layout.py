"""Weights and biases r|z|n out of a module's own, in differentiable operations.

Nothing is kept from call to call: whoever changes a parameter, in whatever way, finds it changed. The native
operators keep packed weights and compare them with what they are given bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .recognition import Bias, Cell, Piece, Weight

ReadOwn = Callable[[str], Tensor]


@dataclass(frozen=True)
class Block:
    """A part of a convolution's weight: which of the parts that the weight is split into."""

    name: str
    index: int
    padding: tuple[int, int, int, int] | None  # to the common kernel
    factor: float


@dataclass(frozen=True)
class Split:
    """A weight (O,I,kh,kw) and the sizes that it is cut into, first by output and then by input channels."""

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def parts(self, weight: Tensor) -> list[Tensor]:
        rows = [weight] if len(self.rows) == 1 else weight.split(self.rows)
        if len(self.columns) == 1:
            return list(rows)
        return [part for row in rows for part in row.split(self.columns, 1)]


Row = tuple[tuple[int, tuple[Block, ...]], ...]  # of one gate: input channels, and the blocks that are summed


@dataclass(frozen=True)
class Biases:
    """Of the three gates, the elements that are summed and the numbers that are added."""

    gates: tuple[tuple[Bias, ...], ...]
    constants: tuple[float, ...] = (0.0, 0.0, 0.0)

    def make(self, K: int, own: ReadOwn, like: Tensor) -> Tensor | None:
        """(3K,), or None if there are none."""
        if not any(self.gates) and not any(self.constants):
            return None
        sums = [sum_of([elements(own, b, K) for b in biases]) for biases in self.gates]
        filled = [like.new_zeros(K) if total is None else total for total in sums]
        return torch.cat([t + c if c else t for t, c in zip(filled, self.constants, strict=True)])


@dataclass(frozen=True)
class Layout:
    """Where the parameters of a cell come from."""

    K: int
    kernel: tuple[int, ...]
    pieces: tuple[Piece, ...]
    splits: tuple[Split, ...]
    weight_ih: tuple[Row, ...]
    weight_hh: tuple[Row, ...]
    bias_ih: Biases
    bias_hh: Biases
    bias_in_maps: bool  # whether the candidate's bias is added to its map

    @staticmethod
    def of(cell: Cell) -> Layout:
        """Raises ValueError if a weight is used in parts that overlap."""
        weights, pieces, gates = cell.weights(), cell.pieces(), cell.gates
        kernel = tuple(max(w.kernel[axis] for w in weights) for axis in (0, 1))
        cuts = {w.name: (_cuts(weights, w, 0, cell.K), _cuts(weights, w, 1, cell.K)) for w in weights}

        def block(w: Weight) -> Block:
            rows, columns = cuts[w.name]
            if (
                rows[rows.index(w.out) + 1] != w.out + cell.K
                or columns[columns.index(w.first) + 1] != w.first + w.count
            ):
                raise ValueError(f"{w.name} is used in parts that overlap")
            index = rows.index(w.out) * (len(columns) - 1) + columns.index(w.first)
            top, left = ((size - its) // 2 for size, its in zip(kernel, w.kernel, strict=True))
            padding = None if w.kernel == kernel else (left, left, top, top)
            return Block(w.name, index, padding, w.factor)

        def row(parts: list[tuple[int, list[Weight]]]) -> Row:
            return tuple((count, tuple(map(block, summed))) for count, summed in parts)

        # Without an input, weight_ih and bias_ih are not used: biases are hidden ones then. In "gru-rcn" that
        # is the same; in "cudnn" the candidate's would be multiplied by the reset gate.
        apart = not pieces and cell.variant == "cudnn"
        biases = [gate.biases for gate in gates]
        constants = [gate.constant for gate in gates]
        hidden = [gate.hidden_biases for gate in gates]
        if apart:
            biases[2], constants[2] = hidden[2], 0.0
        own = Biases(tuple(biases), tuple(constants))
        return Layout(
            cell.K,
            kernel,
            pieces,
            tuple(Split(name, *map(_sizes, both)) for name, both in cuts.items()),
            tuple(
                row([(p.count, [w for piece, w in gate.inputs if piece == p]) for p in pieces])
                for gate in gates
            ),
            tuple(row([(cell.K, list(gate.hidden))]) for gate in gates),
            own if pieces else Biases(((), (), ())),
            Biases(tuple(hidden)) if pieces else own,
            apart,
        )

    def parameters(self, own: ReadOwn) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """weight_ih (3K,C,kh,kw), weight_hh (3K,K,kh,kw), bias_ih and bias_hh (3K,)."""
        parts = {split.name: split.parts(own(split.name)) for split in self.splits}
        weight_hh = self._weight(self.weight_hh, parts)
        weight_ih = self._weight(self.weight_ih, parts) if self.pieces else weight_hh  # not used
        biases = (b.make(self.K, own, weight_hh) for b in (self.bias_ih, self.bias_hh))
        return (weight_ih, weight_hh, *biases)  # type: ignore[return-value]

    def _weight(self, rows: tuple[Row, ...], parts: dict[str, list[Tensor]]) -> Tensor:
        gates = []
        for row in rows:
            columns = []
            for count, blocks in row:
                total = None
                for block in blocks:
                    part = parts[block.name][block.index]
                    if block.padding is not None:
                        part = F.pad(part, block.padding)
                    part = scaled(part, block.factor)
                    total = part if total is None else total + part
                if total is None:
                    like = next(iter(parts.values()))[0]
                    total = like.new_zeros((self.K, count, *self.kernel))
                columns.append(total)
            gates.append(columns[0] if len(columns) == 1 else torch.cat(columns, 1))
        return torch.cat(gates)


def _cuts(weights: list[Weight], of: Weight, axis: int, K: int) -> list[int]:
    """Where the channels of a weight are cut along an axis, both ends included."""
    edges = {0, of.whole[axis]}
    for w in weights:
        if w.name == of.name:
            start, count = (w.out, K) if axis == 0 else (w.first, w.count)
            edges |= {start, start + count}
    return sorted(edges)


def _sizes(cuts: list[int]) -> tuple[int, ...]:
    return tuple(b - a for a, b in zip(cuts, cuts[1:], strict=False))


def elements(own: ReadOwn, bias: Bias, K: int) -> Tensor:
    """(K,)"""
    parameter = own(bias.name)
    if parameter.shape != (K,):
        parameter = parameter.reshape(-1)[bias.start : bias.start + K]
    return scaled(parameter, bias.factor)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


def sum_of(tensors: Iterable[Tensor]) -> Tensor | None:
    """Their sum; None if there are none."""
    total = None
    for tensor in tensors:
        total = tensor if total is None else total + tensor
    return total
