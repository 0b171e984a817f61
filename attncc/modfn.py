"""Score and mask functions of FlexAttention's signature, traced into expressions.

    score_mod(score, b, h, q_idx, kv_idx) -> score        mask_mod(b, h, q_idx, kv_idx) -> bool

A function is run once on symbolic scalars; what torch records becomes an `attncc.expr` tree. Tensors it captures become
extras of the spec, read by index expressions at run time, and most numbers become scalars: neither is part of the
kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from attncc import expr as ex
from attncc.modargs import Operands, lift_numbers

Modification = Callable[..., Any]
"""A score_mod or mask_mod."""

_UNARY = {
    "neg", "abs", "exp", "exp2", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos",
    "floor", "ceil", "round", "sign",
}  # fmt: skip
_BINARY = {
    "mul": "mul", "minimum": "min", "maximum": "max", "remainder": "mod", "pow": "pow",
    "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor", "__and__": "and", "__or__": "or", "__xor__": "xor",
    "add": "add", "sub": "sub",
}  # fmt: skip
_COMPARE = {"lt", "le", "gt", "ge", "eq", "ne"}
_LOGIC = {"logical_and": "and", "logical_or": "or", "logical_xor": "xor"}
_SAME = {"alias", "detach", "clone", "lift_fresh", "lift_fresh_copy", "view", "expand", "squeeze", "contiguous"}


def trace(function: Modification, kind: str, operands: Operands, dtype: torch.dtype, device: torch.device) -> ex.Expr:
    """The expression that `function` computes; `kind` is "score_mod" or "mask_mod".

    Raises NotImplementedError naming the operator that has no counterpart in expressions, TypeError for a result that
    is not one number (score_mod) or one bool (mask_mod), ValueError for control flow that depends on values.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    index = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(4)]
    score = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    inputs = [score, *index] if kind == "score_mod" else index
    try:
        with torch.no_grad(), _IndexByTensor():
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except (DataDependentOutputException, GuardOnDataDependentSymNode) as error:
        raise ValueError(
            f"{kind} {_called(function)} takes the value of a tensor: branches on values cannot be compiled; "
            "use torch.where"
        ) from error
    leaves: list[ex.Expr] = [ex.Index(axis) for axis in ex.AXES]
    if kind == "score_mod":
        leaves.insert(0, ex.Score(dtype_name(score.dtype)))
    result = _Translator(graph, kind, function, operands).run(leaves)
    if kind == "mask_mod" and result.dtype != "bool":
        raise TypeError(f"mask_mod {_called(function)} returns {result.dtype}, not bool")
    return lift_numbers(result, operands)


class _IndexByTensor(TorchFunctionMode):
    """`table[h, i]` with symbolic indices as an index operator; torch would take the values of 0-d tensors instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            whole = all(isinstance(at, int) or (isinstance(at, Tensor) and at.ndim == 0) for at in index)
            if whole and any(isinstance(at, Tensor) for at in index):
                at = [torch.scalar_tensor(i, dtype=torch.int64) if isinstance(i, int) else i for i in index]
                return torch.ops.aten.index.Tensor(args[0], at)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class _Table:
    """A captured tensor with some of its leading dimensions indexed."""

    tensor: Tensor
    index: tuple[ex.Expr, ...] = ()


class _Translator:
    """One pass over a recorded graph, from ATen calls to expressions."""

    def __init__(self, graph: fx.GraphModule, kind: str, function: Modification, operands: Operands) -> None:
        self.graph, self.kind, self.function, self.operands = graph, kind, function, operands
        self.done: dict[fx.Node, ex.Expr | _Table | None] = {}

    def run(self, leaves: list[ex.Expr]) -> ex.Expr:
        """The expression of the graph's output, for one leaf a placeholder."""
        placeholders = iter(leaves)
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.done[node] = next(placeholders)
            elif node.op == "get_attr":
                self.done[node] = _Table(getattr(self.graph, node.target))
            elif node.op == "call_function":
                self.done[node] = self._call(node)
            else:
                return self._result(node.args[0])
        raise ValueError(f"{self.kind} {_called(self.function)} has no result")

    def _result(self, output: Any) -> ex.Expr:
        if isinstance(output, (bool, int, float)):
            return _constant(output, "bool" if self.kind == "mask_mod" else "float32")
        if not isinstance(output, fx.Node):
            raise TypeError(f"{self.kind} {_called(self.function)} returns {type(output).__name__}, not one tensor")
        if output.meta["val"].ndim:
            raise TypeError(
                f"{self.kind} {_called(self.function)} returns a tensor of shape {list(output.meta['val'].shape)}; "
                "it must return one number for one score"
            )
        return self._value(output)

    def _call(self, node: fx.Node) -> ex.Expr | _Table | None:
        name = getattr(node.target, "overloadpacket", node.target).__name__
        if name in ("index", "select"):
            return self._index(node, name)
        args = node.args
        if name in _SAME:
            first = args[0]
            source = self.done[first] if isinstance(first, fx.Node) else None
            if name.startswith("lift_fresh") and isinstance(source, _Table) and source.tensor.ndim == 0:
                return _constant(
                    source.tensor.item(), dtype_name(source.tensor.dtype)
                )  # torch.tensor(1.0) in the function
            return source
        dtype = dtype_name(node.meta["val"].dtype) if isinstance(node.meta.get("val"), Tensor) else ""
        found = self._pointwise(node, name, dtype) if dtype and not node.meta["val"].ndim else None
        if found is None:
            raise NotImplementedError(
                f"{self.kind} {_called(self.function)} calls {node.target}, which attncc does not compile. Supported "
                "are arithmetic, comparisons, logic, where, clamp, casts, exp, log, tanh, sigmoid, sqrt, erf, sin, "
                "cos, rounding, and reading captured tensors by index"
            )
        return found

    def _pointwise(self, node: fx.Node, name: str, dtype: str) -> ex.Expr | None:
        args = node.args
        if name in _UNARY:
            return ex.op(name, self._as(args[0], dtype))
        if name in _COMPARE:
            return self._compare(name, args[0], args[1])
        if name in _LOGIC:
            return ex.op(_LOGIC[name], self._truth(args[0]), self._truth(args[1]), dtype="bool")
        if name in ("logical_not", "bitwise_not") and dtype == "bool":
            return ex.op("not", self._truth(args[0]), dtype="bool")
        if name in ("scalar_tensor", "full", "full_like"):
            return _constant(args[0] if name == "scalar_tensor" else args[1], dtype)
        if name in ("zeros_like", "ones_like", "new_zeros", "new_ones"):
            return _constant(int("ones" in name), dtype)
        if name in ("_to_copy", "convert_element_type", "to"):
            return self._as(args[0], dtype)
        if name in _BINARY:
            right = self._as(args[1], dtype)
            if node.kwargs.get("alpha", 1) != 1:
                right = ex.op("mul", right, _constant(node.kwargs["alpha"], dtype), dtype=dtype)
            return ex.op(_BINARY[name], self._as(args[0], dtype), right, dtype=dtype)
        return self._compound(node, name, dtype)

    def _compound(self, node: fx.Node, name: str, dtype: str) -> ex.Expr | None:
        """Operators that are made of several of ours."""
        args = node.args
        first = functools.partial(self._as, args[0], dtype) if args else None
        if first is None:
            return None
        match name:
            case "rsub":
                return ex.op("sub", self._as(args[1], dtype), first(), dtype=dtype)
            case "div" | "true_divide" | "floor_divide":
                mode = "floor" if name == "floor_divide" else node.kwargs.get("rounding_mode")
                if mode not in (None, "floor"):
                    return None
                if mode == "floor" and dtype not in ex.FLOATS:
                    return ex.op("floordiv", first(), self._as(args[1], dtype), dtype=dtype)
                quotient = ex.op("div", first(), self._as(args[1], dtype), dtype=dtype)
                return ex.op("floor", quotient) if mode else quotient
            case "reciprocal":
                return ex.op("div", _constant(1, dtype), first(), dtype=dtype)
            case "square":
                return ex.op("mul", first(), first(), dtype=dtype)
            case "relu":
                return ex.op("max", first(), _constant(0, dtype), dtype=dtype)
            case "where":
                return ex.op(
                    "where", self._truth(args[0]), self._as(args[1], dtype), self._as(args[2], dtype), dtype=dtype
                )
            case "masked_fill":
                return ex.op("where", self._truth(args[1]), self._as(args[2], dtype), first(), dtype=dtype)
            case "clamp" | "clamp_min" | "clamp_max":
                low = args[1] if name != "clamp_max" and len(args) > 1 else node.kwargs.get("min")
                at = 1 if name == "clamp_max" else 2
                high = args[at] if name != "clamp_min" and len(args) > at else node.kwargs.get("max")
                result = first()
                for bound, which in ((low, "max"), (high, "min")):
                    if bound is not None:
                        result = ex.op(which, result, self._as(bound, dtype), dtype=dtype)
                return result
        return None

    def _compare(self, name: str, left: Any, right: Any) -> ex.Expr:
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in (left, right)]
        dtype = dtype_name(torch.result_type(*values))
        return ex.op(name, self._as(left, dtype), self._as(right, dtype))

    def _index(self, node: fx.Node, name: str) -> ex.Expr | _Table:
        table = self.done[node.args[0]] if isinstance(node.args[0], fx.Node) else None
        index = list(node.args[1]) if name == "index" else [node.args[2]]
        if not isinstance(table, _Table) or None in index or (name == "select" and node.args[1] != 0):
            raise NotImplementedError(
                f"{self.kind} {_called(self.function)}: only captured tensors can be indexed, and those by numbers, "
                "from their first dimension on"
            )
        for at in index:
            dim = len(table.index)
            table = _Table(table.tensor, (*table.index, self._bounded(self._value(at), table.tensor, dim)))
        if len(table.index) < table.tensor.ndim:
            return table
        return self._load(table)

    def _bounded(self, at: ex.Expr, tensor: Tensor, dim: int) -> ex.Expr:
        """The index within the dimension: counted from the end where negative, as in Python, and never outside.

        A kernel also evaluates it for scores that the mask hides, where any value may come out.
        """
        if isinstance(at, ex.Index):
            return at  # against a dimension too short for it the call is refused
        if isinstance(at, ex.Const):
            return _constant(int(at.value) % max(1, tensor.shape[dim]), "int64")
        at = at if at.dtype == "int64" else ex.op("cast", at, dtype="int64")
        size = self.operands.integer((self.operands.extra(tensor), dim))
        zero = _constant(0, "int64")
        wrapped = ex.op("where", ex.op("lt", at, zero), ex.op("add", at, size), at)
        last = ex.op("sub", size, _constant(1, "int64"))
        return ex.op("min", ex.op("max", wrapped, zero), last)

    def _load(self, table: _Table) -> ex.Expr:
        return ex.Load(self.operands.name(table.tensor), table.index, dtype_name(table.tensor.dtype))

    def _value(self, arg: Any) -> ex.Expr:
        if not isinstance(arg, fx.Node):
            return _constant(arg, "bool" if isinstance(arg, bool) else "int64" if isinstance(arg, int) else "float32")
        found = self.done[arg]
        if isinstance(found, _Table) and not found.tensor.ndim:
            return self._load(found)
        if not isinstance(found, ex.Expr):
            raise NotImplementedError(
                f"{self.kind} {_called(self.function)} uses a whole tensor where one element is due"
            )
        return found

    def _as(self, arg: Any, dtype: str) -> ex.Expr:
        if not isinstance(arg, fx.Node):
            return _constant(arg, dtype)
        value = self._value(arg)
        return value if value.dtype == dtype else ex.op("cast", value, dtype=dtype)

    def _truth(self, arg: Any) -> ex.Expr:
        value = self._value(arg)
        return value if value.dtype == "bool" else ex.op("ne", value, _constant(0, value.dtype))


def _constant(value: Any, dtype: str) -> ex.Const:
    if not isinstance(value, (bool, int, float)):
        raise NotImplementedError(f"a constant of type {type(value).__name__} in a score or mask function")
    return ex.Const(bool(value) if dtype == "bool" else float(value) if dtype in ex.FLOATS else int(value), dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that expressions use. Raises NotImplementedError for a dtype that they lack."""
    name = str(dtype).removeprefix("torch.")
    if name not in ex.DTYPES:
        raise NotImplementedError(f"{dtype} in a score or mask function")
    return name


def _called(function: Modification) -> str:
    return repr(getattr(function, "__qualname__", type(function).__name__))
