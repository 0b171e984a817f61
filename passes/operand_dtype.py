"""In which dtype queries, keys and values enter the attention, whatever casts stand before the products."""

from __future__ import annotations

from collections.abc import Mapping

from attncc import expr as ex
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.refused import Refused
from attncc.symbolic import Dim


def before_cast(graph: ir.Graph, access: ir.Access, sizes: Mapping[str, Dim]) -> tuple[ir.Access, str]:
    """An operand before a cast, and the dtype in which it enters the product.

    A cast up to float32 is left out, because products accumulate in float32 anyway; one that autocast makes is no
    value of its own, and is made anew.
    """
    node = graph.nodes[access.value]
    match node:
        case ir.Map(body=ex.Op("cast", (ex.Arg(_, dtype),), wider), operands=(source,)):
            widens = dtype in ("bfloat16", "float16") and wider == "float32"
            bound = bind(access, node, sizes)
            if bound is not None and (widens or ".cast" in node.name):
                inner, before = before_cast(graph, source.substitute(bound), sizes)
                return inner, before if widens else node.dtype
    return access, node.dtype


def common_dtype(name: str, operands: list[str]) -> str:
    """The widest of the operands' dtypes. Raises Refused."""
    dtypes = set(operands)
    if not dtypes <= set(ex.FLOATS):
        raise Refused(f"queries, keys and values are {', '.join(sorted(dtypes))}", name)
    if dtypes == {"bfloat16", "float16"}:
        return "float32"
    return min(dtypes, key=ex.FLOATS.index)
