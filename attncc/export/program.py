"""A model as a torch.export program whose attention calls attncc's operators, and what was found in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.amp import autocast_mode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree

from attncc.advice import next_step
from attncc.bodies import bodies
from attncc.compiler import original
from attncc.expand import NotFlat
from attncc.export.kernels import Call, Size
from attncc.report import Site
from attncc.rewrite import Found, rewrite
from attncc.runtime import op
from attncc.runtime.dispatch import parse_spec
from attncc.tracer import trace

_PLAIN = (torch.Tensor, int, float, bool, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Captured:
    """A program with its attention fused."""

    program: ExportedProgram
    sites: tuple[Site, ...]
    calls: tuple[Call, ...]
    """Every call of attncc's operators."""
    guards: tuple[str, ...]
    """Conditions on sizes that fusing added, such as `q.size()[3] == 16`; the program checks them."""


def capture(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, verify: bool = True
) -> Captured:
    """Export `model` for these inputs and fuse its attention.

    `model` is an nn.Module in evaluation mode, a function, or an ExportedProgram (which has its inputs already).
    Raises ValueError for a model in training mode, one that enters torch.autocast, or one whose result is of a class of
    its own, and whatever torch.export raises.
    """
    with torch.no_grad():
        program = model if isinstance(model, ExportedProgram) else _exported(model, args, kwargs, dynamic_shapes)
        fused, found = _fused(program, verify)
    fused.example_inputs = _blank(fused.example_inputs)
    added = [guard for guard in fused._guards_code if guard not in program._guards_code]
    guards = tuple(re.sub(r"L\['(\w+)'\]", r"\1", guard) for guard in added)
    return Captured(fused, tuple(map(_site, found)), tuple(_calls(fused.graph_module)), guards)


def _exported(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, shapes: Any) -> ExportedProgram:
    model = original(model)
    if not callable(model):
        raise TypeError(
            f"attncc.export takes an nn.Module, a function or an ExportedProgram, not {type(model).__name__}"
        )
    if not isinstance(model, nn.Module):
        model = _Function(model)
    if model.training:
        raise ValueError(
            f"attncc.export: {type(model).__name__} is in training mode, and an artifact is for inference: call "
            "model.eval() first"
        )
    args, kwargs = tuple(args), dict(kwargs or {})
    if isinstance(shapes, str):
        shapes = _all_open(model, args, kwargs, shapes)
    with _plain_results(model):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _all_open(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], word: str) -> Any:
    """`dynamic_shapes` that leave every size open but those that the model fixes. Raises ValueError for other words."""
    if word != "auto":
        raise ValueError(f"attncc.export: dynamic_shapes={word!r}; it is 'auto' or what torch.export takes")
    arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments

    def opened(value: Any) -> Any:
        return [torch.export.Dim.AUTO] * value.ndim if isinstance(value, torch.Tensor) else None

    return pytree.tree_map(opened, dict(arguments))


class _Function(nn.Module):
    """A function as a module, which is what torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function  # itself, so that torch.export sees the names of its arguments
        self.training = False


@contextmanager
def _plain_results(model: nn.Module) -> Iterator[None]:
    """Let `model` return plain containers: the classes of its library may be missing where the artifact is loaded."""
    hook = model.register_forward_hook(lambda module, args, result: _plain(result))
    try:
        yield
    finally:
        hook.remove()


def _plain(value: Any) -> Any:
    """`value` in dicts, lists and tuples of Python alone. Raises ValueError for what is none of these."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):  # Transformers' results among them
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    raise ValueError(
        f"attncc.export: the model returns a {type(value).__name__}, whose class the process that loads the artifact "
        "may not have; return tensors in tuples, lists or dicts (for Transformers models: use_cache=False)"
    )


def _fused(program: ExportedProgram, verify: bool) -> tuple[ExportedProgram, list[Found]]:
    """The program with its attention fused; the program itself where there is none to fuse."""
    graph = program.graph_module
    placeholders = graph.graph.find_nodes(op="placeholder")
    try:
        aten = trace(graph, [node.meta.get("val") for node in placeholders])
        fused, found, _ = rewrite(aten, verify=verify)
    except NotFlat:
        return program, []
    if not any(site.fused for site in found):
        return program, found
    if any(node.target is autocast_mode._enter_autocast for node in fused.graph.nodes):
        raise ValueError(
            "attncc.export: the model enters torch.autocast, whose regions torch.export cannot write and read again "
            "around fused attention; give the model its dtype instead, such as model.to(torch.bfloat16)"
        )
    open_sizes = _symbols(fused)
    result = ExportedProgram(
        root=fused,
        graph=fused.graph,
        graph_signature=_signature(program, fused),
        state_dict=program.state_dict,
        range_constraints={s: limits for s, limits in program.range_constraints.items() if s in open_sizes},
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )
    return result, found


def _symbols(graph: fx.GraphModule) -> set[sympy.Symbol]:
    """The sizes that are still open in a graph: fusing may have fixed some."""
    found: set[sympy.Symbol] = set()
    return found.union(*(free_symbols(node.meta.get("val")) for node in graph.graph.nodes))


def _blank(inputs: Any) -> Any:
    """Example inputs of the same shapes that hold nothing: they go into the file, and may be large or somebody's."""

    def blank(value: Any) -> Any:
        return value.new_zeros(()).expand(value.shape) if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(blank, inputs)


def _signature(program: ExportedProgram, fused: fx.GraphModule) -> Any:
    """What arguments and results of the graph are, by the names that they have in the `fused` one; their order stays.

    Raises RuntimeError where their number has changed.
    """
    old = program.graph_signature
    inputs = fused.graph.find_nodes(op="placeholder")
    outputs = pytree.tree_leaves(fused.graph.output_node().args[0])
    if len(inputs) != len(old.input_specs) or len(outputs) != len(old.output_specs):
        raise RuntimeError(
            "attncc.export: the graph has other arguments or results than before; this is a bug of attncc"
        )

    def renamed(spec: Any, value: Any) -> Any:
        named = isinstance(value, fx.Node) and hasattr(spec.arg, "name")
        return replace(spec, arg=replace(spec.arg, name=value.name)) if named else spec

    return replace(
        old,
        input_specs=[renamed(spec, node) for spec, node in zip(old.input_specs, inputs, strict=True)],
        output_specs=[renamed(spec, value) for spec, value in zip(old.output_specs, outputs, strict=True)],
    )


def _calls(graph: fx.GraphModule) -> Iterator[Call]:
    """The attentions of a graph and of those inside of it."""
    for node in graph.graph.nodes:
        if node.target in op.DIRECT:
            q, k = (argument.meta["val"] for argument in node.args[:2])
            sizes = map(_size, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
            yield Call(parse_spec(node.args[6]), *sizes)
    for _, _, body in bodies(graph):
        yield from _calls(body)


def _size(size: Any) -> Size:
    """A size as a number; None where it is symbolic."""
    return size if isinstance(size, int) else None


def _site(found: Found) -> Site:
    """The user's view of what was found."""
    step = "" if found.fused else next_step(found.reason)
    sizes = found.sizes if found.fused else None
    return Site(found.fused, found.location, found.source, found.reason, step, found.spec, sizes)
