"""A model with inputs, from the factory that a command names: `module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def call(text: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
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
