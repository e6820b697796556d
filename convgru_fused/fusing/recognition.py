"""Is an image a step of a ConvGRU? And of which inputs, weights and biases?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .channels import (
    ONE,
    ZERO,
    Activation,
    Atom,
    Channels,
    Convolution,
    Frame,
    Leaf,
    Monomial,
    Name,
    Poly,
    Ref,
    Vector,
)
from .layout import Layout

RESET, UPDATE, CANDIDATE = "reset gate", "update gate", "candidate"

# Variants that reset the state before the candidate's convolution, by the activation of the candidate.
_VARIANTS = {"tanh": "gru-rcn", "relu": "gru-rcn-relu"}

# Operators by the names of the modules that people know them by.
_NAMES = {
    "native_group_norm": "GroupNorm",
    "native_layer_norm": "LayerNorm",
    "native_batch_norm": "BatchNorm",
    "_native_batch_norm_legit": "BatchNorm",
    "_native_batch_norm_legit_no_training": "BatchNorm",
    "cudnn_batch_norm": "BatchNorm",
    "native_dropout": "Dropout",
    "replication_pad2d": "replicate padding",
    "reflection_pad2d": "reflect padding",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "gelu": "GELU",
    "elu": "ELU",
}


class NoCell(Exception):
    """Why an image that looks like a step is none."""


@dataclass(frozen=True)
class Piece:
    """Channels [start, start+count) of a tensor."""

    tensor: Name
    start: int
    count: int


@dataclass(frozen=True)
class Weight:
    """The part of a convolution's weight that belongs to one gate and one input, and by what it counts."""

    name: str
    out: int  # of the first output channel
    first: int  # of the first input channel
    count: int  # of input channels
    whole: tuple[int, int]  # output and input channels of the convolution
    kernel: tuple[int, ...]
    factor: float


@dataclass(frozen=True)
class Bias:
    """K elements of a parameter from `start` on, and by what they count."""

    name: str
    start: int
    factor: float


@dataclass(frozen=True)
class Map:
    """K channels of an image from `start` on, and by what they count."""

    tensor: Name
    start: int
    factor: float


@dataclass(frozen=True)
class Gate:
    """A pre-activation. In "cudnn" the candidate's hidden weights and hidden biases are those that the reset
    gate multiplies."""

    inputs: tuple[tuple[Piece, Weight], ...] = ()
    hidden: tuple[Weight, ...] = ()
    biases: tuple[Bias, ...] = ()
    maps: tuple[Map, ...] = ()
    constant: float = 0.0
    hidden_biases: tuple[Bias, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One step: what a ConvGRU needs to compute it."""

    variant: str  # as in functional.conv_gru
    K: int
    state: Piece | None  # None: zero
    gates: tuple[Gate, Gate, Gate]  # reset, update, candidate

    def pieces(self) -> tuple[Piece, ...]:
        """What W is convolved with, in the order of channels."""
        return tuple(dict.fromkeys(piece for gate in self.gates for piece, _ in gate.inputs))

    @cached_property
    def layout(self) -> Layout:
        """How its weights are put together."""
        return Layout.of(self)

    def weights(self) -> list[Weight]:
        return [w for gate in self.gates for w in (*gate.hidden, *(w for _, w in gate.inputs))]

    def __str__(self) -> str:
        C = sum(piece.count for piece in self.pieces())
        kernels = sorted({w.kernel for w in self.weights()})
        return f"{self.variant}, {C}->{self.K}, {' '.join('x'.join(map(str, kernel)) for kernel in kernels)}"


@dataclass(frozen=True)
class Context:
    """What is known beside the image itself."""

    names: Mapping[Poly, list[tuple[Name, int]]]  # of images that some tensor has been; and their channels
    operators: Mapping[Ref, str]  # what made the tensors that are not looked into
    shapes: Mapping[Name, tuple[int, ...]]

    def size(self, name: Name) -> tuple[int, ...]:
        """N, H and W of an image."""
        if isinstance(name, Frame):
            batch, (_, height, width) = self.shapes[name.clip][:2], self.shapes[name.clip][2:]
            return (batch[1 - name.axis], height, width)
        N, _, height, width = self.shapes[name]
        return (N, height, width)

    def find(self, poly: Poly, count: int, sizes: tuple[tuple[int, ...], ...]) -> tuple[Name, int] | None:
        """A tensor that has these channels, and from which on. sizes: which N, H and W it may have."""
        starts = {getattr(atom, "start", 0) for atom in poly.atoms()}
        for start in sorted({0, *(starts if len(starts) == 1 else ())}):
            for name, channels in self.names.get(poly.shifted(-start), []):
                if channels >= start + count and self.size(name) in sizes:
                    return name, start
        return None


def recognise(image: Channels, size: tuple[int, ...], context: Context, at_end: bool = False) -> Cell | None:
    """The cell whose next state the image is, of that N, H and W; None if it is nothing like one.

    at_end: whether the image is a result of the module. There z.n is a step from no state at all; elsewhere
    only if the gates have been given zeros in the place of the state, since z.n is part of any blend.

    Raises:
        NoCell: it is a blend of a state and something else by a sigmoid, but not a ConvGRU.
    """
    if len(image.ranges) != 1:
        return None
    K, poly = image.ranges[0].count, image.ranges[0].poly
    failure: NoCell | None = None
    for z in sorted((a for a in poly.atoms() if _is_sigmoid(a)), key=repr):
        assert isinstance(z, Activation)
        parts = poly.by_powers(z)
        if set(parts) - {0, 1}:
            continue
        # (1-z) start + z end
        start = parts.get(0, ZERO)
        end = start + parts.get(1, ZERO)
        for state, candidate, keeps in ((start, end, False), (end, start, True)):
            h = state.single()
            if candidate.atoms() <= state.atoms():
                continue  # a gate on the state, and nothing that is let in
            if isinstance(h, Leaf) or state.is_zero():
                try:
                    return _Reader(K, size, h if isinstance(h, Leaf) else None, context, at_end).cell(
                        z, candidate, keeps
                    )
                except NoCell as error:
                    if isinstance(h, Leaf):
                        failure = failure or error
    if failure is not None:
        raise failure
    return None


def _is_sigmoid(atom: Atom) -> bool:
    return isinstance(atom, Activation) and atom.function == "sigmoid"


@dataclass
class _Reader:
    """Reads the gates of a cell whose state is h, or zero."""

    K: int
    size: tuple[int, ...]
    h: Leaf | None
    context: Context
    at_end: bool

    def cell(self, z: Activation, candidate: Poly, keeps: bool) -> Cell:
        """keeps: whether z multiplies the state."""
        if self.h is not None and self.context.size(self.h.tensor) != self.size:
            raise NoCell("its state has another size than its result")
        n = candidate.single()
        if not isinstance(n, Activation) or n.function not in _VARIANTS:
            raise NoCell(f"{self._described(candidate)} in the place of the candidate's tanh")
        variant = _VARIANTS[n.function]
        factor = -1 if keeps else 1  # 1-sigmoid(a) = sigmoid(-a)
        r = self._reset_gate(n.argument)
        state = None if self.h is None else Piece(self.h.tensor, self.h.start, self.K)
        if r is None:
            if self.h is not None:
                self._gate(CANDIDATE, n.argument)
                raise NoCell("no reset gate")
            update = self._gate(UPDATE, z.argument.scaled(factor))
            gates = (Gate(), update, self._gate(CANDIDATE, n.argument))
            if not self.at_end and not all(gate.hidden for gate in gates[1:]):
                raise NoCell("no state")
            # Without a state the reset gate does nothing.
            return Cell(variant, self.K, None, gates)
        powers = n.argument.by_powers(r)
        if set(powers) == {0, 1}:
            if variant != "gru-rcn":
                raise NoCell(f"a reset gate behind the convolution, and {self._name(n)} as candidate")
            # n = tanh(rest + r.(U*h + b)); that formula's z counts the state.
            rest = self._gate(CANDIDATE, powers[0], has_state=False)
            after = self._gate(f"{CANDIDATE}'s product with the reset gate", powers[1])
            if after.inputs or after.maps or after.constant:
                raise NoCell("the reset gate multiplies more than the state's convolution")
            gates = (
                self._gate(RESET, r.argument),
                self._gate(UPDATE, z.argument.scaled(-factor)),
                Gate(rest.inputs, after.hidden, rest.biases, rest.maps, rest.constant, after.biases),
            )
            return Cell("cudnn", self.K, state, gates)
        assert self.h is not None
        h = Poly.of(self.h)
        gated = Poly.of(r) * h
        inverted = self._contains(n.argument, h - gated)
        gates = (
            self._gate(RESET, r.argument.scaled(-1 if inverted else 1)),
            self._gate(UPDATE, z.argument.scaled(factor)),
            self._gate(CANDIDATE, n.argument, h - gated if inverted else gated),
        )
        return Cell(variant, self.K, state, gates)

    def _reset_gate(self, argument: Poly) -> Activation | None:
        """The sigmoid that multiplies something in the argument of the candidate."""
        found: set[Activation] = set()
        for monomial in argument.terms:
            for atom, _ in monomial:
                if len(monomial) > 1 and isinstance(atom, Activation):
                    found.add(atom)
                if isinstance(atom, Convolution) and self.h is not None:
                    for part in atom.image.ranges:
                        if self.h in part.poly.atoms():
                            found.update(a for a in part.poly.atoms() if isinstance(a, Activation))
        if len(found) > 1 or not all(_is_sigmoid(a) for a in found):
            raise NoCell(
                f"candidate: it sees the state through {' and '.join(sorted(map(self._name, found)))}"
            )
        return found.pop() if found else None

    def _contains(self, argument: Poly, image: Poly) -> bool:
        return any(
            part.poly == image
            for atom in argument.atoms()
            if isinstance(atom, Convolution)
            for part in atom.image.ranges
        )

    def _gate(self, gate: str, poly: Poly, gated: Poly | None = None, has_state: bool = True) -> Gate:
        """A sum of convolutions, biases and images. gated: what the candidate sees of the state."""
        inputs: list[tuple[Piece, Weight]] = []
        hidden: list[Weight] = []
        biases: list[Bias] = []
        maps: list[Map] = []
        others: list[tuple[Monomial, float]] = []
        constant = 0.0
        failure = ""
        for monomial, factor in poly.terms.items():
            atom = _single(monomial)
            if monomial == ONE:
                constant = factor
            elif isinstance(atom, Vector):
                biases.append(Bias(atom.parameter, atom.start, factor))
            elif isinstance(atom, Leaf):
                if self.context.size(atom.tensor) not in self._map_sizes():
                    raise NoCell(f"{gate}: an addition of another size than the state")
                maps.append(Map(atom.tensor, atom.start, factor))
            elif isinstance(atom, Convolution):
                try:
                    x, u = self._convolution(atom, factor, gated)
                except NoCell as error:
                    failure = failure or str(error)
                    others.append((monomial, factor))
                else:
                    inputs += x
                    hidden += u
            else:
                failure = failure or " times ".join(sorted(self._name(a) for a, _ in monomial))
                others.append((monomial, factor))
        # What is no convolution of ours is added as it is, if there is a tensor of it.
        for monomial, factor in others:
            found = (
                None
                if gated is not None and self._sees(monomial, gated)
                else self._tensor(monomial, biases, factor)
            )
            if found is None:
                raise NoCell(f"{gate}: {failure}")
            maps.append(found)
        needs = has_state and (self.h is not None or not self.at_end)
        if needs and not hidden:
            tensors = {m.tensor for m in maps} | {piece.tensor for piece, _ in inputs}
            made = {
                _known_as(self.context.operators[tensor])
                for tensor in tensors
                if isinstance(tensor, Ref)
                and tensor.name.startswith("value ")
                and tensor in self.context.operators
            }
            instead = f", but {' and '.join(sorted(made))}" if made else ""
            raise NoCell(f"{gate}: {failure or 'no convolution of the state' + instead}")
        if hidden and not has_state:
            raise NoCell(f"{gate}: it sees the state beside the reset gate")
        return Gate(_sorted(inputs), _sorted(hidden), _sorted(biases), _sorted(maps), constant)

    def _sees(self, monomial: Monomial, gated: Poly) -> bool:
        """Whether what the candidate sees of the state is in it."""
        return any(isinstance(a, Convolution) and self._contains(Poly.of(a), gated) for a, _ in monomial)

    def _map_sizes(self) -> tuple[tuple[int, ...], ...]:
        return self.size, (self.size[0], 1, 1)

    def _tensor(self, monomial: Monomial, biases: list[Bias], factor: float) -> Map | None:
        """A tensor that is the monomial, or it with one of the biases, which then is taken from the list."""
        poly = Poly({monomial: 1.0})
        sizes = self._map_sizes()
        found = self.context.find(poly, self.K, sizes)
        if found is not None:
            return Map(*found, factor)
        for bias in biases:
            with_bias = poly + Poly.of(Vector(bias.name, bias.start))
            found = self.context.find(with_bias, self.K, sizes) if bias.factor == factor else None
            if found is not None:
                biases.remove(bias)
                return Map(*found, factor)
        return None

    def _convolution(
        self, atom: Convolution, factor: float, gated: Poly | None
    ) -> tuple[list[tuple[Piece, Weight]], list[Weight]]:
        """Its parts that see inputs and that see the state."""
        unsupported = atom.geometry.unsupported()
        if unsupported:
            leaves = (part.poly.single() for part in atom.image.ranges)
            padded = sorted({name for leaf in leaves if leaf and "pad" in (name := self._name(leaf))})
            raise NoCell(" of ".join([f"a convolution with {unsupported}", *padded]))
        wanted = ZERO if self.h is None else gated or Poly.of(self.h)
        inputs, hidden = [], []
        first = atom.first
        for part in atom.image.ranges:
            weight = Weight(
                atom.weight, atom.start, first, part.count, atom.whole, atom.geometry.kernel, factor
            )
            first += part.count
            if part.poly == wanted and part.count == self.K:
                hidden.append(weight)
                continue
            if part.poly.is_zero():
                continue
            leaf = part.poly.single()
            if self.h is not None and (self.h in part.poly.atoms() or (gated is None and leaf == self.h)):
                raise NoCell(f"a convolution of {self._described(part.poly)}")
            if isinstance(leaf, Leaf) and self.context.size(leaf.tensor) == self.size:
                inputs.append((Piece(leaf.tensor, leaf.start, part.count), weight))
                continue
            found = self.context.find(part.poly, part.count, (self.size,))
            if found is None:
                raise NoCell(f"a convolution of {self._described(part.poly)}")
            inputs.append((Piece(*found, part.count), weight))
        return inputs, hidden

    # For reasons.

    def _described(self, poly: Poly) -> str:
        atom = poly.single()
        if atom is not None:
            return self._name(atom)
        names = sorted({self._name(a) for a in poly.atoms()})
        return f"a formula of {', '.join(names)}" if names else "a constant"

    def _name(self, atom: Atom) -> str:
        if atom == self.h:
            return "the state"
        if isinstance(atom, Activation):
            return _known_as(atom.function)
        if isinstance(atom, Leaf):
            if isinstance(atom.tensor, Ref):
                return _known_as(self.context.operators.get(atom.tensor, atom.tensor.name))
            return atom.tensor.clip.name if not hasattr(atom.tensor, "name") else atom.tensor.name
        return "a convolution" if isinstance(atom, Convolution) else "a parameter"


def _single(monomial: Monomial) -> Atom | None:
    if len(monomial) != 1:
        return None
    ((atom, power),) = monomial
    return atom if power == 1 else None


def _known_as(operator: str) -> str:
    name, bracket, rest = operator.partition("(")
    return _NAMES.get(name, name) + bracket + rest


def _sorted(items: Iterable[object]) -> tuple:
    return tuple(sorted(items, key=repr))
