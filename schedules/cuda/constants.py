"""What an expression needs only once a row: found in it, and replaced by names of registers.

A slope looked up by head, a bias by row, the power that a slope is: left inside, they would be computed again for each
score, by a unit that the softmax keeps busy.
"""

from __future__ import annotations

from attncc import expr as ex
from attncc.algorithm.int_range import INT32_MAX, int_range, narrows
from attncc.algorithm.operators import COMPARISONS
from attncc.schedules.cuda.functions import FUNCTIONS
from attncc.schedules.cuda.gpu import LONGEST


def split(tree: ex.Expr, first: int = 0) -> tuple[ex.Expr, list[ex.Expr]]:
    """`tree` with its costly subtrees without score and key replaced by scalars c<first>, …; and those subtrees.

    An int64 that keys are compared with becomes an int32: half the registers, and one instruction.
    """
    found: list[ex.Expr] = []

    def kept(node: ex.Expr) -> ex.Expr:
        if node not in found:
            found.append(node)
        return ex.Scalar(f"c{first + found.index(node)}", node.dtype)

    def visit(node: ex.Expr) -> ex.Expr:
        if _fixed(node) and _costly(node) and node.dtype != "bool":
            return kept(node)
        if isinstance(node, ex.Op) and node.name in COMPARISONS:
            a, b = node.args
            if _meets(a, b):
                return ex.with_args(node, (visit(a), kept(_limited(b))))
            if _meets(b, a):
                return ex.with_args(node, (kept(_limited(a)), visit(b)))
        return ex.with_args(node, tuple(map(visit, node.args))) if node.args else node

    return visit(tree), found


def _meets(position: ex.Expr, limit: ex.Expr) -> bool:
    """Whether an int64 that is the same for a row is compared with an int32 that is not."""
    if position.dtype != "int64" or limit.dtype != "int64" or _fixed(position) or not _fixed(limit):
        return False
    if narrows(limit, LONGEST) or not narrows(position, LONGEST):
        return False
    least, most = int_range(position, LONGEST)
    return least > -INT32_MAX and most < INT32_MAX


def _limited(limit: ex.Expr) -> ex.Expr:
    """An int32 that compares as `limit` does with what lies strictly between the least and the largest of them."""
    least, most = (ex.Const(value, "int64") for value in (-INT32_MAX, INT32_MAX))
    return ex.op("cast", ex.op("min", ex.op("max", limit, least), most), dtype="int32")


def _fixed(tree: ex.Expr) -> bool:
    return not any(
        isinstance(node, (ex.Score, ex.Elem)) or (isinstance(node, ex.Index) and node.axis == "j")
        for node in tree.walk()
    )


def _costly(tree: ex.Expr) -> bool:
    return any(isinstance(n, ex.Load) or (isinstance(n, ex.Op) and n.name in FUNCTIONS) for n in tree.walk())
