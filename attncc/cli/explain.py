"""`attncc explain`: what attncc makes of the attention in a model that a Python factory returns."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc explain package.models:factory\n\nattncc explain examples/bilinear.py:factory\n\n"
    "attncc explain --strict --json model.py:make"
)


def explain(
    factory: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="Or path/to/file.py:FACTORY.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 where a site is not fused.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Explain every attention site of a model: what was recognised, which kernel runs it, or why it was not fused.

    The factory is called without arguments and returns (model, inputs), or (model, inputs, keyword inputs). Inputs are
    a tensor, a tuple or list of arguments, or a dict of keyword arguments.
    """
    import attncc
    from attncc.cli._console import progress, show, show_json

    with progress(2) as say:
        say(f"loading {factory}")
        model, args, kwargs = _call(factory)
        say("compiling")
        report = attncc.explain(model, *args, **kwargs)
    if json:
        show_json(report.to_json())
    else:
        show(report)
    if strict and not all(site.fused for site in report.sites):
        raise typer.Exit(1)


def _call(text: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Model, arguments and keyword arguments that the factory named by `text` returns.

    Raises ValueError where `text` names no function, or the function returns something else.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"{text!r} is not of the form module:factory or path/to/file.py:factory")
    module = _load(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name!r}")
    result = function()
    if not isinstance(result, tuple) or len(result) not in (2, 3) or not callable(result[0]):
        raise ValueError(f"{text} returned {type(result).__name__}; it must return (model, inputs)")
    model, inputs = result[0], result[1]
    kwargs = dict(result[2]) if len(result) == 3 else {}
    if isinstance(inputs, Mapping):
        return model, (), {**inputs, **kwargs}
    return model, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), kwargs


def _load(place: str) -> Any:
    """The module called `place`, found from the current folder as `python -m` does, or the Python file of that path."""
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {place}")
    sys.path.insert(0, str(path.parent))  # for the imports of a script beside its helpers
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{place} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look their module up by name
    spec.loader.exec_module(module)
    return module
