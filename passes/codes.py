"""Keys and values that are kept as codes: int8 or float8 numbers, times a scale for a head or a row.

    %k = map{b, h, j, d} %codes[b, h, j, d], %scale[b, h, j]: bfloat16(_0) * _1
    %s = contract{b, h, i, j | d} %q[b, h, i, d] * %k[b, h, j, d]

An attention reads the codes where they lie; the scale becomes a factor of the score, or of a row of values. A scale
that differs along a row is left to PyTorch, and so is a cache with zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc import expr as ex
from attncc import ir
from attncc.passes.operand_dtype import before_cast
from attncc.passes.read import Reader
from attncc.passes.roles import axes_of
from attncc.spec import CODES
from attncc.symbolic import Dim

_STEPS = 6
"""Maps between codes and the product that they enter, at most: a cast, a product, casts of those."""


@dataclass(frozen=True)
class Rows:
    """Keys or values as an attention reads them."""

    access: ir.Access
    dtype: str
    """The dtype in which they enter the product."""
    codes: str | None = None
    """The dtype in which they lie, where it is one of codes."""
    scale: ex.Expr | None = None
    """The factor of a row, over the axes of the reader."""


def rows(graph: ir.Graph, access: ir.Access, sizes: Mapping[str, Dim], columns: tuple[str, ...]) -> Rows:
    """What `access` reads, before any cast or scale; `columns` are the axes along a row."""
    if _leads_to_codes(graph, access.value):
        reader = _CodeReader(graph, sizes)
        found = _product(reader.read(access))
        if found is not None:
            load, scale = found
            loads = [n for n in scale.walk() if isinstance(n, ex.Load)] if scale is not None else []
            if not any(axes_of(reader.accesses[leaf]) & {*columns} for leaf in loads) and not _positions(scale):
                return Rows(reader.accesses[load], graph.nodes[access.value].dtype, load.dtype, scale)
    return Rows(*before_cast(graph, access, sizes))


class _CodeReader(Reader):
    """Reads what codes are multiplied with; the rest, a scale that is computed as well, is tensors of its own."""

    def _is_kept(self, access: ir.Access, node: ir.Map) -> bool:
        return not _leads_to_codes(self.graph, node.name)


def _leads_to_codes(graph: ir.Graph, name: str, steps: int = _STEPS) -> bool:
    """Whether a value is made of codes, and not codes itself."""
    node = graph.nodes[name]
    if not steps or not isinstance(node, ir.Map | ir.View) or node.dtype not in ex.FLOATS:
        return False
    return any(graph.nodes[r].dtype in CODES or _leads_to_codes(graph, r, steps - 1) for r in node.reads)


def _product(value: ex.Expr) -> tuple[ex.Load, ex.Expr | None] | None:
    """The codes in a value, and the factor that they have in it; None for what is no such product."""
    match value:
        case ex.Op("cast", (ex.Load(_, _, dtype) as load,)) if dtype in CODES:
            return load, None
        case ex.Op("cast", (inner,), dtype) if dtype in ex.FLOATS and inner.dtype in ex.FLOATS:
            return _product(inner)
        case ex.Op("mul", (a, b)):
            for inner, factor in ((a, b), (b, a)):
                found = _product(inner)
                if found is not None and not _has_codes(factor):
                    load, scale = found
                    return load, factor if scale is None else ex.op("mul", scale, factor)
        case ex.Op("div", (a, b)):
            found = _product(a)
            if found is not None and not _has_codes(b):
                load, scale = found
                return load, ex.op("div", ex.Const(1.0, b.dtype) if scale is None else scale, b)
    return None


def _has_codes(value: ex.Expr) -> bool:
    return any(isinstance(node, ex.Load) and node.dtype in CODES for node in value.walk())


def _positions(scale: ex.Expr | None) -> bool:
    """Whether a scale is computed from positions: no cache does that."""
    loads = {n for n in scale.walk() if isinstance(n, ex.Load)} if scale is not None else set()
    inside = {n for load in loads for index in load.index for n in index.walk()}
    return scale is not None and any(isinstance(n, ex.Index) and n not in inside for n in scale.walk())
