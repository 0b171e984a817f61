"""Values that passes made around an attention, as FX nodes: pointwise arithmetic, concatenations, views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from attncc import expr as ex
from attncc import ir
from attncc.emitter import Emitter
from attncc.passes.refused import Refused
from attncc.passes.roles import axes_of

aten = torch.ops.aten

_OPERATORS: Mapping[str, Any] = {
    "add": aten.add.Tensor, "sub": aten.sub.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor,
    "max": aten.maximum.default, "min": aten.minimum.default, "neg": aten.neg.default, "abs": aten.abs.default,
    "exp": aten.exp.default, "log": aten.log.default, "sqrt": aten.sqrt.default,
}  # fmt: skip


def emit_value(emitter: Emitter, node: ir.Node) -> fx.Node:
    """The value of a node in its own dimensions. Raises Refused for what is only ever part of a kernel."""
    match node:
        case ir.Map():
            return _pointwise(emitter, node)
        case ir.View(operand=operand):
            return emitter.operand(operand, node.dims, node.sizes)
        case ir.Contract(operands=(a, b)):
            return _product(emitter, node, a, b)
        case ir.Reduce():
            return _reduced(emitter, node)
        case ir.Concat(parts=parts, dim=along):
            return emitter.call(aten.cat.default, [emitter.value(p) for p in parts], along)
    raise Refused(f"the value {node.name} is never computed by itself", node.name)


def _product(emitter: Emitter, node: ir.Contract, a: ir.Access, b: ir.Access) -> fx.Node:
    """A sum of products: of a bias that is made by one, without the factors that passes took out of it."""
    letters = {axis: chr(ord("a") + number) for number, (axis, _) in enumerate(node.axes)}
    terms, operands = [], []
    for access in (a, b):
        axes = [axis for axis, _ in node.axes if axis in axes_of(access)]
        operands.append(emitter.operand(access, [(axis,) for axis in axes], node.sizes))
        terms.append("".join(letters[axis] for axis in axes))
    result = [axis for group in node.dims for axis in group]
    if len({t.meta["val"].dtype for t in operands}) > 1 or not {*result} <= {*axes_of(a), *axes_of(b)}:
        raise Refused(f"the value {node.name} is never computed by itself", node.name)
    equation = f"{','.join(terms)}->{''.join(letters[axis] for axis in result)}"
    summed = emitter.call(aten.einsum.default, equation, operands)
    return emitter.call(aten.reshape.default, summed, [emitter.number(d) for d in node.shape])


def _reduced(emitter: Emitter, node: ir.Reduce) -> fx.Node:
    """A sum or a maximum: of what counts documents or patches, that a mask compares."""
    kept, read = [axis for group in node.dims for axis in group], axes_of(node.operand)
    gone = [axis for axis, _ in node.axes if axis not in kept]
    if not gone or {*kept, *gone} != read:  # a sum along an axis that is not read counts its values several times
        raise Refused(f"the value {node.name} is never computed by itself", node.name)
    operand = emitter.operand(node.operand, [*node.dims, *((axis,) for axis in gone)], node.sizes)
    along = list(range(len(node.dims), len(node.dims) + len(gone)))
    reduced = emitter.call(aten.amax.default if node.kind == "max" else aten.sum.dim_IntList, operand, along)
    if reduced.meta["val"].dtype != getattr(torch, node.dtype):
        raise Refused(f"the value {node.name} is never computed by itself", node.name)
    return reduced


def _pointwise(emitter: Emitter, node: ir.Map) -> fx.Node:
    operands = [_operand(emitter, access, node) for access in node.operands]

    def visit(part: ex.Expr, args: tuple[Any, ...]) -> Any:
        match part:
            case ex.Arg(number):
                return operands[number]
            case ex.Const(value):
                return value
            case ex.Size(name):
                return emitter.number(sympy.Symbol(name, integer=True, positive=True))
            case ex.Op("cast", _, dtype):
                wanted = getattr(torch, dtype)
                same = not _is_tensor(args[0]) or args[0].meta["val"].dtype == wanted
                return args[0] if same else emitter.call(aten.to.dtype, args[0], wanted)
            case ex.Op("where"):
                return _selected(emitter, args)
            case ex.Op(name) if name in _OPERATORS:
                return _applied(emitter, name, args)
        raise Refused(f"the value {node.name} is never computed by itself", node.name)

    result: fx.Node = ex.fold(node.body, visit)
    if not _is_tensor(result):
        raise Refused(f"the value {node.name} is never computed by itself", node.name)
    return result


def _selected(emitter: Emitter, args: tuple[Any, ...]) -> fx.Node:
    """A selection by a tensor; a number takes the dtype of the tensor beside it."""
    condition, *sides = args
    if not _is_tensor(condition) or not any(map(_is_tensor, sides)):
        raise Refused("a selection of numbers is never computed by itself")
    if all(map(_is_tensor, sides)):
        return emitter.call(aten.where.self, condition, *sides)
    if _is_tensor(sides[0]):
        condition, sides = emitter.call(aten.logical_not.default, condition), sides[::-1]
    return emitter.call(aten.masked_fill.Scalar, sides[1], condition, sides[0])


def _operand(emitter: Emitter, access: ir.Access, node: ir.Map) -> fx.Node:
    value = emitter.value(access.value)
    return emitter.operand(access, node.dims, node.sizes) if _is_tensor(value) else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)


def _applied(emitter: Emitter, name: str, args: tuple[Any, ...]) -> fx.Node:
    """An operator on tensors and numbers; torch wants a tensor first."""
    if not _is_tensor(args[0]):
        if name in ("add", "mul", "max", "min"):
            args = args[::-1]
        elif name == "sub":
            return emitter.call(aten.rsub.Scalar, args[1], args[0])
        elif name == "div":
            args, name = (emitter.call(aten.reciprocal.default, args[1]), args[0]), "mul"
    if not _is_tensor(args[0]) or (name in ("max", "min") and not _is_tensor(args[1])):
        raise Refused(f"{name} of numbers is never computed by itself")
    return emitter.call(_OPERATORS[name], *args)
