"""From a score expression over the axes of a product to the expressions of an AttentionSpec and their arguments.

Axes become `Index` of b, h, i and j (digits of a merged axis by // and %), sizes become `Size` where they are one of
the attention's, else integer arguments; tensors become extras, floating-point constants run-time scalars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.expr import op
from attncc.passes.read import size_of, to_linear
from attncc.passes.refused import Refused
from attncc.spec import Extra
from attncc.symbolic import Dim, equal, product, reduce

_COMPARED = ("add", "sub", "lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class SpecBuilder:
    """Collects the arguments while `convert` rewrites expressions."""

    graph: ir.Graph
    roles: Mapping[str, tuple[str, ...]]
    """Axes of b, h, i, j, outermost first."""
    sizes: Mapping[str, Dim]
    dtype: str
    """Of score arithmetic: float32 or float64."""
    score: ex.Load
    extras: list[tuple[str, tuple[Dim | None, ...]]] = field(default_factory=list)
    declared: list[Extra] = field(default_factory=list)
    scalars: list[float | str] = field(default_factory=list)
    integers: list[Dim] = field(default_factory=list)
    _converted: dict[ex.Expr, ex.Expr] = field(default_factory=dict)

    def convert(self, expr: ex.Expr) -> ex.Expr:
        """The expression in the leaves of a spec. Raises Refused."""
        if expr == self.score:
            return ex.Score(self.dtype)
        if expr.dtype in ex.INTEGERS and not isinstance(expr, ex.Const | ex.Load):
            size = size_of(expr)
            if size is not None and not isinstance(size, int):
                return self._size(size)
            role = self._whole_role(expr)
            if role is not None:
                return ex.Index(role)
        match expr:
            case ex.Index(axis):
                return self._position(axis)
            case ex.Const(value, dtype):
                return self._constant(value, dtype)
            case ex.Elem(name):
                return ex.Elem(name, self.dtype)
            case ex.Load():
                return self._load(expr)
            case ex.Op(name, operands, dtype):
                if expr not in self._converted:  # what is written once takes its arguments once
                    self._converted[expr] = self._operator(name, operands, dtype)
                return self._converted[expr]
        raise Refused(f"the score contains {expr}, for which a kernel has no form")

    def element(self, term: ex.Expr, inner: tuple[str, ...]) -> ex.Expr:
        """The term under the score's sum over the axes `inner`. Raises Refused."""
        roles, self.roles = self.roles, {**self.roles, "d": inner}
        try:
            converted = self.convert(term)
        finally:
            self.roles = roles
        if any(isinstance(leaf, ex.Index) and leaf.axis in ("i", "j") for leaf in converted.walk()):
            raise Refused("the term under the score's sum depends on positions of queries or keys")
        return converted

    def _whole_role(self, expr: ex.Expr) -> str | None:
        """The role of whose axes an index is the merge."""
        linear = to_linear(expr)
        if linear is None or len(linear.terms) < 2:
            return None
        return next((r for r, axes in self.roles.items() if linear == ix.merged(axes, self.sizes)), None)

    def size_of_role(self, role: str) -> Dim:
        """B, H, Sq or Skv."""
        return product(self.sizes[a] for a in self.roles[role])

    def _operator(self, name: str, operands: tuple[ex.Expr, ...], dtype: str) -> ex.Expr:
        converted: list[ex.Expr] = []
        for operand in operands:
            whole = isinstance(operand, ex.Const) and operand.dtype == "int64" and abs(operand.value) > 1
            if whole and name in _COMPARED:
                converted.append(self._integer(int(operand.value)))  # type: ignore[attr-defined]
            elif name == "pow" and isinstance(operand, ex.Const):
                converted.append(ex.Const(float(operand.value), self.dtype))
            else:
                converted.append(self.convert(operand))
        return ex.Op(name, tuple(converted), self.dtype if dtype in ex.FLOATS else dtype)

    def _constant(self, value: float | int | bool, dtype: str) -> ex.Expr:
        if dtype not in ex.FLOATS:
            return ex.Const(value, dtype)
        if not math.isfinite(value) or value in (0.0, 1.0, -1.0):
            return ex.Const(float(value), self.dtype)
        return self._scalar(float(value))

    def _scalar(self, value: float | str) -> ex.Expr:
        self.scalars.append(value)
        return ex.Scalar(f"s{len(self.scalars) - 1}", self.dtype)

    def _integer(self, value: Dim) -> ex.Expr:
        for number, known in enumerate(self.integers):
            if not isinstance(value, int) and equal(known, value):
                return ex.Scalar(f"n{number}", "int64")
        self.integers.append(value)
        return ex.Scalar(f"n{len(self.integers) - 1}", "int64")

    def _size(self, size: Dim) -> ex.Expr:
        named = {"Skv": "j", "Sq": "i", "B": "b", "H": "h"}
        for name, role in named.items():
            if equal(size, self.size_of_role(role)):
                return ex.Size(name)
        if equal(size, reduce(self.size_of_role("j") - self.size_of_role("i"))):
            return op("sub", ex.Size("Skv"), ex.Size("Sq"))
        return self._integer(size)

    def _position(self, axis: str) -> ex.Expr:
        for role, axes in self.roles.items():
            if axis not in axes:
                continue
            at = axes.index(axis)
            inner, result = product(self.sizes[a] for a in axes[at + 1 :]), ex.Index(role)
            if not isinstance(inner, int) or (at and not isinstance(self.sizes[axis], int)):
                raise Refused(f"the mask or bias needs a part of a merged {role} axis whose size is not fixed", axis)
            digit: ex.Expr = result if inner == 1 else op("floordiv", result, ex.Const(inner, "int64"))
            return digit if at == 0 else op("mod", digit, ex.Const(self.sizes[axis], "int64"))
        raise Refused("the mask or bias depends on an axis that is neither batch, head, query nor key", axis)

    def _load(self, load: ex.Load) -> ex.Expr:
        node = self.graph.nodes[load.tensor]
        if isinstance(node, ir.Input) and node.number:
            return self._scalar(node.name)
        taken: list[Dim | None] = []
        index: list[ex.Expr] = []
        for part in load.index:
            still = size_of(part)
            taken.append(still)
            if still is None:
                index.append(self.convert(part))
        tensor = self.extra(load.tensor, tuple(taken), load.dtype)
        made = ex.Load(tensor, tuple(index), load.dtype)
        return made if load.dtype not in ex.FLOATS or load.dtype == self.dtype else ex.Op("cast", (made,), self.dtype)

    def extra(self, value: str, taken: tuple[Dim | None, ...], dtype: str) -> str:
        """The name in the spec of a tensor, at the positions taken."""
        for declared, known in zip(self.declared, self.extras, strict=True):
            if known == (value, taken):
                return declared.name
        name = f"t{len(self.declared)}"
        self.declared.append(Extra(name, dtype, sum(1 for t in taken if t is None)))
        self.extras.append((value, taken))
        return name
