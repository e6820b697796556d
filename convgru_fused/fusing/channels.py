"""What the channels of a tensor are, in terms of others: polynomials over atoms, range by range.

An image (N,C,H,W) is a sequence of ranges of channels, each a polynomial. Its atoms are ranges of channels
themselves: of an input, of a convolution's output, of an activation. Equal polynomials are equal functions,
so two cells that write the same formula differently (a blend as a lerp, gates convolved together or apart,
inputs concatenated in another order) come out alike, and a sign that differs comes out different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

MOST_TERMS = 64  # of a polynomial; a step of a ConvGRU has three


class TooManyTerms(Exception):
    """A polynomial has grown longer than any step of a ConvGRU."""


@dataclass(frozen=True)
class Ref:
    """A tensor, by its name in a recording."""

    name: str


@dataclass(frozen=True)
class Frame:
    """One image of a tensor (T,N,C,H,W), if `axis` is 0, or (N,T,C,H,W), if it is 1."""

    clip: Ref
    axis: int
    index: int


@dataclass(frozen=True)
class Own:
    """A parameter or buffer of the module, by its name."""

    name: str


Name = Ref | Frame | Own


class Atom:
    """A range of channels; how many is known from where it stands."""

    depth: int  # of the network that makes it, in convolutions and activations

    def shifted(self, offset: int) -> Atom:
        """The same from a later channel on."""
        return replace(self, start=self.start + offset)  # type: ignore[attr-defined, type-var]


@dataclass(frozen=True)
class Leaf(Atom):
    """Channels of a tensor that comes from outside, or that is not looked into."""

    tensor: Name
    start: int = 0

    depth = 0


@dataclass(frozen=True)
class Vector(Atom):
    """One value a channel, the same for all pixels: elements of a parameter."""

    parameter: str
    start: int = 0

    depth = 0


@dataclass(frozen=True)
class Geometry:
    """How a convolution goes over its image, zero padded."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def unsupported(self) -> str:
        """What keeps it from being a convolution of a ConvGRU; "" if nothing does."""
        if self.groups != 1:
            return f"{self.groups} groups"
        if any(d != 1 for d in self.dilation):
            return f"dilation {self.dilation}"
        if any(s != 1 for s in self.stride):
            return f"stride {self.stride}"
        if any(k % 2 == 0 for k in self.kernel):
            return f"kernel {self.kernel}"
        if any(p != k // 2 for p, k in zip(self.padding, self.kernel, strict=True)):
            return f"padding {self.padding} for kernel {self.kernel}"
        return ""


@dataclass(frozen=True)
class Convolution(Atom):
    """Output channels of a convolution, without bias, by a weight's input channels from `first` on."""

    weight: str  # (O,I,kh,kw)
    whole: tuple[int, int]  # O and I
    geometry: Geometry
    image: Channels
    first: int = 0
    start: int = 0

    @cached_property
    def depth(self) -> int:  # type: ignore[override]
        return 1 + self.image.depth

    @cached_property
    def _hash(self) -> int:
        return hash((self.weight, self.geometry, self.image, self.first, self.start))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Activation(Atom):
    """A function of each element."""

    function: str
    argument: Poly

    def shifted(self, offset: int) -> Activation:
        return Activation(self.function, self.argument.shifted(offset))

    @cached_property
    def depth(self) -> int:  # type: ignore[override]
        return 1 + self.argument.depth

    @cached_property
    def _hash(self) -> int:
        return hash((self.function, self.argument))

    def __hash__(self) -> int:
        return self._hash


Monomial = frozenset[tuple[Atom, int]]  # atoms and their powers
ONE: Monomial = frozenset()


class Poly:
    """A sum of products of atoms, each by a number."""

    def __init__(self, terms: dict[Monomial, float]) -> None:
        self.terms = {monomial: value for monomial, value in terms.items() if value != 0}
        if len(self.terms) > MOST_TERMS:
            raise TooManyTerms
        self._hash = hash(frozenset(self.terms.items()))

    @staticmethod
    def of(atom: Atom) -> Poly:
        return Poly({frozenset({(atom, 1)}): 1.0})

    @staticmethod
    def constant(value: float) -> Poly:
        return Poly({ONE: float(value)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for monomial, value in other.terms.items():
            terms[monomial] = terms.get(monomial, 0.0) + value
        return Poly(terms)

    def scaled(self, factor: float) -> Poly:
        return Poly({monomial: factor * value for monomial, value in self.terms.items()})

    def __sub__(self, other: Poly) -> Poly:
        return self + other.scaled(-1)

    def __mul__(self, other: Poly) -> Poly:
        if len(self.terms) * len(other.terms) > MOST_TERMS:
            raise TooManyTerms
        terms: dict[Monomial, float] = {}
        for a, x in self.terms.items():
            for b, y in other.terms.items():
                powers = dict(a)
                for atom, power in b:
                    powers[atom] = powers.get(atom, 0) + power
                monomial = frozenset(powers.items())
                terms[monomial] = terms.get(monomial, 0.0) + x * y
        return Poly(terms)

    def shifted(self, offset: int) -> Poly:
        if offset == 0:
            return self
        return Poly({frozenset((a.shifted(offset), p) for a, p in m): v for m, v in self.terms.items()})

    @cached_property
    def depth(self) -> int:
        return max((atom.depth for atom in self.atoms()), default=0)

    def atoms(self) -> set[Atom]:
        return {atom for monomial in self.terms for atom, _ in monomial}

    def single(self) -> Atom | None:
        """The atom that this is, if it is one."""
        if len(self.terms) != 1:
            return None
        ((monomial, value),) = self.terms.items()
        if value != 1 or len(monomial) != 1:
            return None
        ((atom, power),) = monomial
        return atom if power == 1 else None

    def by_powers(self, atom: Atom) -> dict[int, Poly]:
        """The factors of the powers of an atom."""
        parts: dict[int, dict[Monomial, float]] = {}
        for monomial, value in self.terms.items():
            powers = dict(monomial)
            power = powers.pop(atom, 0)
            parts.setdefault(power, {})[frozenset(powers.items())] = value
        return {power: Poly(terms) for power, terms in parts.items()}

    def is_zero(self) -> bool:
        return not self.terms


ZERO = Poly({})


@dataclass(frozen=True)
class Range:
    """Channels that follow each other."""

    count: int
    poly: Poly


@dataclass(frozen=True)
class Channels:
    """All channels of an image."""

    ranges: tuple[Range, ...]

    @cached_property
    def _hash(self) -> int:
        return hash(self.ranges)

    def __hash__(self) -> int:
        return self._hash

    @staticmethod
    def of(atom: Atom, count: int) -> Channels:
        return Channels.filled(Poly.of(atom), count)

    @staticmethod
    def filled(poly: Poly, count: int) -> Channels:
        return Channels((Range(count, poly),))

    @property
    def count(self) -> int:
        return sum(part.count for part in self.ranges)

    @cached_property
    def depth(self) -> int:
        return max((part.poly.depth for part in self.ranges), default=0)

    @staticmethod
    def cat(images: Iterable[Channels]) -> Channels:
        """One image after the other; ranges that continue each other become one."""
        ranges: list[Range] = []
        for image in images:
            for part in image.ranges:
                if ranges and ranges[-1].poly.shifted(ranges[-1].count) == part.poly:
                    ranges[-1] = Range(ranges[-1].count + part.count, ranges[-1].poly)
                else:
                    ranges.append(part)
        return Channels(tuple(ranges))

    def narrow(self, start: int, count: int) -> Channels:
        ranges, first = [], 0
        for part in self.ranges:
            begin, end = max(start, first), min(start + count, first + part.count)
            if begin < end:
                ranges.append(Range(end - begin, part.poly.shifted(begin - first)))
            first += part.count
        return Channels(tuple(ranges))

    @staticmethod
    def combine(function: Callable[..., Poly], *images: Channels) -> Channels:
        """A function of images with as many channels each, applied range by range."""
        edges = sorted({0}.union(*(image._ends() for image in images)))
        return Channels.cat(
            Channels.filled(function(*(image._poly(begin, end) for image in images)), end - begin)
            for begin, end in zip(edges, edges[1:], strict=False)
        )

    def _ends(self) -> Iterator[int]:
        return accumulate(part.count for part in self.ranges)

    def _poly(self, begin: int, end: int) -> Poly:
        """What the channels [begin, end) are, which lie in one range."""
        (part,) = self.narrow(begin, end - begin).ranges
        return part.poly
