"""What operators of an FX graph do to memory and to PyTorch's modes, beside giving a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attncc.bodies import bodies

_NO_CHANGE = {"aten.detach_.default", "aten.requires_grad_.default", "aten.set_.source_Tensor"}
"""Operators that PyTorch's schema calls mutable although the elements stay."""
_MODES = ("grad_enabled", "autocast", "inference_mode", "functorch", "vmap")
"""Parts of the names of operators that switch how what follows is run."""


def modes(node: fx.Node) -> bool:
    """Whether a node switches how what follows is run."""
    return any(mode in str(node.target) for mode in _MODES)


def functional(name: str) -> str:
    """The operator without its in-place underscore: `aten.add_.Tensor` → `aten.add.Tensor`."""
    parts = name.split(".")
    if len(parts) == 3 and parts[1].endswith("_") and not parts[1].endswith("__") and name not in _NO_CHANGE:
        if parts[1] == "copy_":
            return "attncc.copy"
        parts[1] = parts[1][:-1]
    return ".".join(parts)


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node changes."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _written_by_bodies(node)
    schema = getattr(node.target, "_schema", None)
    if schema is None or str(node.target) in _NO_CHANGE:
        return []
    written: list[fx.Node] = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name)
            written += [n for n in (given if isinstance(given, list | tuple) else [given]) if isinstance(n, fx.Node)]
    return written


def _written_by_bodies(node: fx.Node) -> list[fx.Node]:
    """All arguments of a higher-order operator, if any of its bodies changes an argument of its own."""
    owner = node.graph.owning_module
    for caller, _, body in bodies(owner) if owner is not None else ():
        if caller is not node:
            continue
        given = {key for n in body.graph.find_nodes(op="placeholder") for key in storages(n.meta.get("val"))}
        if any(key in given for n in body.graph.nodes for w in written(n) for key in storages(w.meta.get("val"))):
            return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return []


def storages(value: Any) -> list[int]:
    """Keys of the storages that a fake value (or several) lives in."""
    if isinstance(value, torch.Tensor):
        try:
            return [value.untyped_storage()._cdata]
        except (NotImplementedError, RuntimeError):  # no storage to share: sparse and friends
            return []
    if isinstance(value, list | tuple):
        return [key for v in value for key in storages(v)]
    return []
