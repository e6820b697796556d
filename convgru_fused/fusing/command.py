"""`python -m convgru_fused fuse module:factory`: what `fuse` would do to a model."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .examples import described
from .search import fuse

EXIT_OK, EXIT_NONE, EXIT_USAGE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    parser.add_argument(
        "factory",
        metavar="module:factory",
        help="what makes the model, called without arguments: a model, or (model, example_inputs), or "
        "(model, example_inputs, example_kwargs)",
    )
    parser.add_argument("--benchmark", action="store_true", help="measure how much faster each module is")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the original")
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 0; 1 if nothing was replaced; 2 for a bad request, told
    in one line on standard error."""
    try:
        model, inputs, kwargs = _model_of(_made(args.factory))
        report = fuse(model, inputs, kwargs, verify=not args.no_verify, benchmark=args.benchmark)
    except (TypeError, ValueError) as error:
        print(f"fuse: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(json.dumps(report.as_dict(), indent=1) if args.json else report)
    return EXIT_OK if report.replaced else EXIT_NONE


def _made(text: str) -> Any:
    """What the factory makes."""
    factory = _factory(text)
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"{text!r} raised {described(error)}") from None


def _factory(text: str) -> Callable[[], Any]:
    module, colon, path = text.partition(":")
    if not (module and colon and path):
        raise ValueError(f"expected module:factory, got {text!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # whatever code the module has
        raise ValueError(f"{text!r}: {described(error)}") from None
    if not callable(found):
        raise TypeError(f"{text!r}: expected something to call, got {type(found).__name__}")
    return found


def _model_of(made: Any) -> tuple[nn.Module, Any, dict[str, Any] | None]:
    parts = made if isinstance(made, tuple) else (made,)
    if not parts or not isinstance(parts[0], nn.Module) or len(parts) > 3:
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(
            "factory: expected a model, (model, example_inputs) or (model, example_inputs, example_kwargs), "
            f"got {got}"
        )
    model, inputs, kwargs = (*parts, None, None)[:3]
    if inputs is not None and not isinstance(inputs, (Tensor, tuple, list)):
        raise TypeError(f"factory: expected example_inputs in a tuple, got {type(inputs).__name__}")
    return model, inputs, kwargs
