"""Calls to try a module with: those of a run of the whole model, or guesses."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .recording import owners_of, submodules_of
from .trial import Example, TensorLike

MOST_KINDS = 4  # of calls of one module that are looked at
MOST_GUESSES = 300  # for each number of arguments
MOST_CONVOLUTIONS = 24  # of a module that calls are guessed for
GUESSED_SIZE = (3, 3, 7, 6)  # T, N, H, W; three steps whichever axis is time


@dataclass
class Calls:
    """What a run of the model has shown of one of its modules."""

    examples: list[Example] = field(default_factory=list)
    count: int = 0
    sigmoids: int = 0  # that ran in it
    convolutions: int = 0
    repeated: int = 0  # how often it was called, at most, in one call of a module around it
    raised: str = ""


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[Calls] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        for calls in self.running:
            calls.sigmoids += packet in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_)
            calls.convolutions += packet is torch.ops.aten.convolution
        return func(*args, **(kwargs or {}))


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Calls]:
    """Runs a model, and tells how its modules are called, by path. Of those that raise, what they raise."""
    args, kwargs = _kept_apart(args), _kept_apart(kwargs)
    watch = _Watch()
    seen: dict[str, Calls] = {}
    starts: list[Counter[str]] = []

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls = seen.setdefault(path, Calls())
            calls.count += 1
            for counter in starts:
                counter[path] += 1
                calls.repeated = max(calls.repeated, counter[path])
            starts.append(Counter())
            watch.running.append(calls)
            example = Example.of(args, kwargs)
            if len(calls.examples) < MOST_KINDS and not any(_alike(example, e) for e in calls.examples):
                calls.examples.append(example)

        return hook

    def after(module: nn.Module, args: Any, result: Any) -> None:
        watch.running.pop()
        starts.pop()

    with ExitStack() as hooks:
        for path, child in submodules_of(model):
            if not is_builtin(child) and not isinstance(child, torch.jit.ScriptModule):
                handles = (
                    child.register_forward_pre_hook(before(path), with_kwargs=True, prepend=True),
                    child.register_forward_hook(after),
                )
                for handle in handles:
                    hooks.callback(handle.remove)
        try:
            with torch.no_grad(), watch:
                model(*args, **kwargs)
        except Exception as error:
            for calls in watch.running:
                calls.raised = described(error)
    return seen


def _kept_apart(tree: Any) -> Any:
    """The same arguments in memory and containers of their own, since a forward may change them."""
    if isinstance(tree, Tensor):
        return tree.detach().clone().requires_grad_(tree.requires_grad)
    if type(tree) in (list, tuple):
        return type(tree)(map(_kept_apart, tree))
    if type(tree) is dict:
        return {key: _kept_apart(value) for key, value in tree.items()}
    return tree


def described(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _alike(a: Example, b: Example) -> bool:
    def plain(example: Example) -> object:
        return repr((example.args, example.kwargs))

    return plain(a) == plain(b)


def is_builtin(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own, which is no cell."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.", "torch._dynamo"))


# Guesses.


def guesses(module: nn.Module) -> Iterator[Example]:
    """Calls that a module, of which this is a copy, may understand, from the channels of its convolutions and
    the number of its arguments: images, a state that is a tensor, absent, in a list or a pair, or a whole
    sequence."""
    weights = [getattr(child, attribute) for _, child, attribute in owners_of(module)]
    kernels = [w for w in weights if w.dim() == 4 and w.is_floating_point()]
    if not 1 <= len(kernels) <= MOST_CONVOLUTIONS:
        return
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    least = sum(p.default is p.empty for p in named)
    images, others = _arguments(kernels)
    first = min(len(named) + variadic, 6)
    for count in dict.fromkeys([first, *range(first - 1, least - 1, -1), *range(first + 1, 4 * variadic)]):
        size = count + len(keywords)
        # Of many arguments most are maps of a gate's size.
        choices = [*images, *others] if size <= 2 else [*images[:3], None] if size == 3 else images[:2]
        for given in islice(product(choices, repeat=size), MOST_GUESSES if size else 0):
            yield Example(given[:count], dict(zip((p.name for p in keywords), given[count:], strict=True)))


def _arguments(kernels: list[Tensor]) -> tuple[list[Any], list[Any]]:
    """Single arguments, the likeliest first: images, by channels; and what else there may be."""
    outs = Counter(w.shape[0] for w in kernels)
    ins = Counter(w.shape[1] for w in kernels)
    hidden = sorted({o // d for o in outs for d in (1, 2, 3, 4) if o % d == 0})
    # K: as many as a gate has. C: what a convolution sees beside the state, or all that it sees.
    K = sorted(hidden, key=lambda k: (-sum(outs[d * k] for d in (1, 2, 3, 4)), -k))[:3]
    beside = [i - k for k in K for i in ins if i > k]
    C = list(dict.fromkeys([i - K[0] for i in ins if i > K[0]] + list(ins) + beside))[:4]
    T, N, H, W = GUESSED_SIZE
    like = kernels[0]

    def image(*shape: int) -> TensorLike:
        return TensorLike(shape, like.dtype, like.device, False, False, None)

    channels = list(dict.fromkeys([*C[:1], *K[:1], *C, *K, 3 * K[0]]))
    states = [image(N, k, H, W) for k in K]
    clips = [image(T, N, c, H, W) for c in channels]
    return [image(N, c, H, W) for c in channels], [
        None,
        *([state] for state in states),
        *((state, state) for state in states),
        *clips,
    ]
