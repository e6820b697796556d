"""Finding the ConvGRUs of a model, innermost modules first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import ConvGRU, ConvGRUCell
from .channels import Own
from .examples import Calls, described, guesses, is_builtin, observe
from .formula import Formula, names_in
from .forward import FusedForward, unfuse
from .recording import arguments_of, submodules_of
from .report import Record, Report
from .trial import Example, Refused, TensorLike, copied, learn, looks_recurrent
from .verification import verify as verify_formula


def fuse(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    *,
    verify: bool = True,
    atol: float | None = None,
    rtol: float | None = None,
    benchmark: bool = False,
) -> Report:
    """Replaces every ConvGRU in a model by the fused one, in place.

    A ConvGRU is found by what it computes: a module whose forward, run on a copy, turns out to be steps of
    `functional.conv_gru_cell`, however its gates are convolved, named, ordered or blended, with a few
    operators of its own around them. Loops over such cells with the same weights become one sequence. The
    module stays: its class, parameters, buffers, keys, hooks and attributes; only its forward is another,
    which reads the parameters at every call. `unfuse` gives it back.

    Args:
        model: any module. Its mode (training or not) and the types and places of its parameters are those
            that the replacements are tried in; others are tried when they are met.
        example_inputs: the model's positional arguments, a tuple (a Tensor is a tuple of one). With them, or
            example_kwargs, a copy of the model is run once and every module is tried with the kinds of
            arguments that it got. Without them, arguments are guessed.
        example_kwargs: the model's keyword arguments.
        verify: whether to compare outputs and all gradients of each replacement with the original's on random
            values, in float64 if the module works in it. What differs is left alone.
        atol, rtol: how far they may differ: atol + rtol |expected|. By default see `verification.RTOL`, times
            the largest |expected|.
        benchmark: whether to measure how much faster each replacement is, forward, without gradients.

    Returns:
        What was replaced, and what looks like a recurrent cell and was not, with the reason; see `Report`.
        Used in a `with` statement, it gives the forwards back at the end.

    Raises:
        TypeError: an argument of the wrong type. Nothing that the model raises.

    A call of a kind not seen before (other shapes or types, state absent, autocast) is first tried on a copy
    as well, and verified if it computes something new; what cannot be, the module's own code computes. Call
    `fuse` again after changing a setting that a module's code reads.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example_kwargs, (dict, type(None))):
        raise TypeError(f"example_kwargs: expected a dict, got {type(example_kwargs).__name__}")
    if not isinstance(example_inputs, (Tensor, tuple, list, type(None))):
        raise TypeError(f"example_inputs: expected a tuple of arguments, got {type(example_inputs).__name__}")
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    unfuse(model)
    check = partial(verify_formula, atol=atol, rtol=rtol) if verify else None
    return _Search(model, check, benchmark).run(args, dict(example_kwargs or {}))


Found = tuple[Example, Formula, float | None]  # what a call computes, and the error measured


class _Search:
    """Looks for ConvGRUs in a model, innermost modules first."""

    def __init__(self, model: nn.Module, check: Any, benchmark: bool) -> None:
        self.model = model
        self.check = check
        self.benchmark = benchmark
        self.report = Report(model)
        self.handled: set[str] = set()  # paths of modules that have a record

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Report:
        observed: dict[str, Calls] = {}
        if args or kwargs:
            try:
                observed = observe(copied(self.model), args, kwargs)
            except Exception as error:
                self.report.skipped.append(
                    Record("", type(self.model).__name__, reason=f"cannot be copied: {described(error)}")
                )
                return self.report
        candidates = [
            (path, module)
            for path, module in submodules_of(self.model)
            if not is_builtin(module) and not isinstance(module, (ConvGRU, ConvGRUCell))
        ]
        for path, module in sorted(candidates, key=lambda item: -_depth(item[0])):
            self._try(path, module, observed)
        order = {path: i for i, (path, _) in enumerate(submodules_of(self.model))}
        for records in (self.report.replaced, self.report.skipped):
            records.sort(key=lambda record: order[record.path])
        return self.report

    def _try(self, path: str, module: nn.Module, observed: dict[str, Calls]) -> None:
        calls = observed.get(path, Calls())
        if calls.raised and any(_is_below(p, path) and observed[p].raised for p in observed):
            return  # something inside it did
        formulas: list[Found] = []
        refusal: Refused | None = None
        if calls.raised:
            refusal = Refused(f"raised {calls.raised}")
        elif calls.count and not self._is_worth_it(path, observed):
            return
        else:
            formulas, refusal = self._formulas(module, calls.examples)
        # Calls that were seen say what the module is, unless they had no state or failed.
        if not _has_state(formulas) and (not calls.count or calls.raised or formulas):
            guessed, guessed_refusal = self._guess(module)
            formulas += guessed
            refusal = refusal or guessed_refusal
        if not _has_state(formulas) or _is_refused_with_state(formulas, refusal):
            if refusal is not None and refusal.like_a_cell and not self._has_handled(path):
                self._skip(path, module, str(refusal))
            return
        if self._has_handled(path) and not all(_is_loop(formula) for _, formula, _ in formulas):
            return  # its cells are fused already, and nothing more is gained around them
        self._replace(path, module, formulas)

    def _is_worth_it(self, path: str, observed: dict[str, Calls]) -> bool:
        """Whether there is something to be found in a module beside what has been found inside it."""
        calls = observed[path]
        inside = [p for p in self.handled if _is_below(p, path)]
        outermost = [p for p in inside if not any(_is_below(p, q) for q in inside)]
        alone = calls.sigmoids - sum(observed[p].sigmoids for p in outermost if p in observed)
        looped = any(p in observed and observed[p].repeated > 1 for p in outermost)
        return bool(calls.convolutions and (alone > 0 or looped))

    def _has_handled(self, path: str) -> bool:
        return any(_is_below(p, path) for p in self.handled)

    def _formulas(self, module: nn.Module, examples: list[Example]) -> tuple[list[Found], Refused | None]:
        """The formulas of a module for some calls, verified; and why there is none for one of them."""
        found: list[Found] = []
        refusal: Refused | None = None
        for example in examples:
            try:
                formula = learn(module, example)
                error = None if self.check is None else self.check(module, example, formula)
            except Refused as reason:
                refusal = refusal or reason
            except Exception as error:
                refusal = refusal or Refused(f"raised {described(error)}", like_a_cell=False)
            else:
                found.append((example, formula, error))
        return found, refusal

    def _guess(self, module: nn.Module) -> tuple[list[Found], Refused | None]:
        """`_formulas` for guessed calls: the first that shows a recurrent cell."""
        refusal: Refused | None = None
        ran = False
        try:
            examples = list(guesses(copied(module)))
        except Exception as error:
            return [], Refused(f"cannot be copied: {described(error)}", looks_recurrent(module))
        for example in examples:
            found, reason = self._formulas(module, [example])
            if _has_state(found) and not _is_refused_with_state(found, refusal):
                return found, None
            ran = ran or bool(found)
            if reason is not None and reason.like_a_cell:
                refusal = refusal or reason
        if refusal is None and not ran and looks_recurrent(module):
            refusal = Refused("no call of it could be guessed; give example_inputs")
        return [], refusal

    def _replace(self, path: str, module: nn.Module, formulas: list[Found]) -> None:
        forward = FusedForward(module, self.check)
        for example, formula, _ in formulas:
            args, kwargs = example.make(0)
            forward.add(args, kwargs, formula)
            for modes in _generic_modes(module, example, formula):
                forward.add_structure(args, kwargs, formula, modes)
        speedup = _speedup(forward, formulas[0][0]) if self.benchmark else None
        forward.install()
        errors = [error for *_, error in formulas if error is not None]
        texts = dict.fromkeys(str(formula) for _, formula, _ in formulas)
        self.handled.add(path)
        self.report.replaced.append(
            Record(
                path,
                type(module).__name__,
                " or ".join(texts),
                max_error=max(errors, default=None),
                speedup=speedup,
            )
        )

    def _skip(self, path: str, module: nn.Module, reason: str) -> None:
        self.handled.add(path)
        self.report.skipped.append(Record(path, type(module).__name__, reason=reason))


def _has_state(found: list[Found]) -> bool:
    return any(formula.has_state() for _, formula, _ in found)


def _is_refused_with_state(found: list[Found], refusal: Refused | None) -> bool:
    """Whether only a first step has been found, without a state, of what is no cell otherwise."""
    like_a_cell = refusal is not None and refusal.like_a_cell
    return like_a_cell and not any(formula.is_given_state() for _, formula, _ in found)


def _depth(path: str) -> int:
    return len(path.split(".")) if path else 0


def _is_below(path: str, above: str) -> bool:
    return path != above and (not above or path.startswith((above + ".", above + "[")))


def _is_loop(formula: Formula) -> bool:
    """Whether it is a loop over cells and little else: nothing that has weights."""
    return formula.has_scan() and not any(isinstance(name, Own) for name in names_in(tuple(formula.calls())))


def _generic_modes(module: nn.Module, example: Example, formula: Formula) -> Iterator[tuple[bool, ...]]:
    """The modes in which the formula is the same for other sizes of images, batch and sequence: the module's,
    and the other of training and evaluation, since many call `fuse` in one and compile in the other."""

    def larger(like: TensorLike) -> TensorLike:
        if not like.has_images:
            return like
        *batch, channels, height, width = like.shape
        sizes = [n + 1 for n in batch] + [channels]
        return replace(
            like, shape=(*sizes, *((height, width) if (height, width) == (1, 1) else (height + 2, width + 1)))
        )

    for each in (module, copied(module)):
        try:
            if each is not module:
                each.train(not module.training)
            found = [learn(each, e).without_lengths() for e in (example, example.changed(larger))]
        except Exception:
            continue
        if all(f == formula.without_lengths() for f in found):
            yield tuple([child.training for _, child in submodules_of(each)])


def _speedup(forward: FusedForward, example: Example) -> float:
    """The original's time over the fused one's, by the protocol of the benchmarks."""
    from ..bench import timing  # not at every start

    args, kwargs = example.make(0)
    contenders = {
        "original": timing.Plain(lambda: forward.original(*args, **kwargs)),
        "fused": timing.Plain(lambda: forward(*args, **kwargs)),
    }
    device = next((t.device for _, t in arguments_of(args, kwargs)), torch.device("cpu"))
    with torch.no_grad():
        times = timing.interleaved(contenders, device, timing.QUICK)
    return times["original"].median / times["fused"].median
