"""`attncc.compile`: a model, a function or an exported program with its attention fused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from attncc.options import Options, disabled


def compile(model: Any, *, dynamic: bool | None = None, **options: Any) -> Any:
    """Compile the attention of a model; everything else runs as PyTorch runs it.

    `model` is an nn.Module, a function, or a `torch.export.ExportedProgram`. A module comes back as an object of a
    subclass of its own class that shares parameters, buffers and attributes with the original (state_dict, `generate`,
    `.train()` and `.eval()` work on both); deep copies and pickles of it are compiled again where they are used.
    `dynamic` is `torch.compile`'s: None specialises on first sizes and generalises at the first change, True never
    specialises. Further options are those of `attncc.options.Options`: `inner`, `strict`, `verify`,
    `database`.

    Raises ValueError for an unknown option and TypeError for a model that cannot be called.
    """
    parsed = Options.parse(options=options)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not callable(model):
        raise TypeError(f"attncc.compile takes an nn.Module, a function or an ExportedProgram, not {type(model)}")
    if disabled():
        return model
    if isinstance(model, nn.Module):
        return _compiled_view(model, parsed, dynamic)
    return _with_dynamo(model, parsed, dynamic)


def warmup(model: Any, example_inputs: Sequence[Sequence[Any]]) -> None:
    """Call a compiled model once on each tuple of `example_inputs`, so that every kernel it needs is built.

    Kernels serve all lengths: one example a regime (a prompt, a single token) is enough, and where tuning found
    different decisions for different lengths one for each of those. Gradients are not recorded.
    """
    with torch.no_grad():
        for inputs in example_inputs:
            model(*inputs)


def _with_dynamo(model: Callable[..., Any], options: Options, dynamic: bool | None) -> Callable[..., Any]:
    from attncc.backend import compile_graph

    def attncc(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_graph(gm, example_inputs, options)

    compiled: Callable[..., Any] = torch.compile(model, backend=attncc, dynamic=dynamic)
    return compiled


class CompiledModule:
    """Mixed in before a module's class: the same object state, called through the compiler.

    Shares `__dict__` with the original, so that there is one set of parameters, flags and attributes; only the slots
    below are its own.
    """

    __slots__ = ("_attncc_call", "_attncc_options", "_attncc_original")
    _attncc_call: Callable[..., Any]
    _attncc_options: tuple[Options, bool | None]
    _attncc_original: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._attncc_call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return _compiled_view(copy.deepcopy(self._attncc_original, memo), *self._attncc_options)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _compiled_view, (self._attncc_original, *self._attncc_options)


def original(model: Any) -> Any:
    """The model that `compile` was given; `model` itself where it is not compiled."""
    return model._attncc_original if isinstance(model, CompiledModule) else model


def _compiled_view(model: nn.Module, options: Options, dynamic: bool | None) -> nn.Module:
    """`model` as an object of a subclass of its class whose calls go through the compiler."""
    model = original(model)
    base = type(model)
    cls = type(base.__name__, (CompiledModule, base), {"__slots__": (), "__module__": base.__module__})
    view: nn.Module = object.__new__(cls)
    # Past nn.Module.__setattr__, which would register the original as a submodule of itself.
    object.__setattr__(view, "__dict__", model.__dict__)
    object.__setattr__(view, "_attncc_original", model)
    object.__setattr__(view, "_attncc_options", (options, dynamic))
    object.__setattr__(view, "_attncc_call", _with_dynamo(model, options, dynamic))
    return view
