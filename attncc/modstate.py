"""When a score or mask function must be traced again: a snapshot of everything that its code can reach."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

_PURE_MODULES = ("torch", "math", "operator", "numpy", "builtins", "functools")
"""Modules whose functions depend on nothing but their arguments."""
_DEPTH = 8


def snapshot(function: Callable[..., Any], tensors: list[Tensor]) -> Any:
    """A hashable value that changes whenever a new trace of `function` could give another expression.

    None where that cannot be told (it reads attributes of objects): the function is then traced at each call. The
    tensors that it can reach are appended to `tensors`; the value says of each only what a trace depends on, so that
    a new function of the same code over new tensors of the same kind need not be traced.
    """
    try:
        return _state(function, tensors, 0)
    except _Unknown:
        return None


class _Unknown(Exception):
    pass


def _state(value: Any, tensors: list[Tensor], depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        return type(value), value
    if depth > _DEPTH:
        raise _Unknown
    if isinstance(value, Tensor):
        at = next((n for n, known in enumerate(tensors) if known is value), len(tensors))
        if at == len(tensors):
            tensors.append(value)
        return "tensor", at, type(value), value.dtype, value.shape, value.device
    if isinstance(value, types.FunctionType):
        if value.__module__ is not None and value.__module__.partition(".")[0] in _PURE_MODULES:
            return value
        parts = [value.__defaults__, value.__kwdefaults__]
        parts += [cell.cell_contents for cell in value.__closure__ or ()]
        parts += [value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__]
        return (value.__code__, *(_state(part, tensors, depth + 1) for part in parts))
    if isinstance(value, functools.partial):
        return _state((value.func, value.args, value.keywords), tensors, depth + 1)
    if isinstance(value, (tuple, list)):
        return type(value), *(_state(part, tensors, depth + 1) for part in value)
    if isinstance(value, dict):
        return dict, *((_state(k, tensors, depth + 1), _state(v, tensors, depth + 1)) for k, v in value.items())
    if isinstance(value, (types.BuiltinFunctionType, types.ModuleType, type, OpOverload, OpOverloadPacket)):
        module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__ or ""
        if module.partition(".")[0] in _PURE_MODULES:
            return value
    raise _Unknown


def _names(code: types.CodeType) -> list[str]:
    """Global names that `code` or a function defined in it may read."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names
