"""What an expression needs only once a row: found in it, and replaced by names of registers.

A slope looked up by head, a bias by row, the power that a slope is: left inside, they would be computed again for each
score, by a unit that the softmax keeps busy.
"""

from __future__ import annotations

from attncc import expr as ex
from attncc.schedules.cuda.functions import FUNCTIONS


def split(tree: ex.Expr, first: int = 0) -> tuple[ex.Expr, list[ex.Expr]]:
    """`tree` with its costly subtrees without score and key replaced by scalars c<first>, …; and those subtrees."""
    found: list[ex.Expr] = []

    def visit(node: ex.Expr) -> ex.Expr:
        if _fixed(node) and _costly(node) and node.dtype != "bool":
            if node not in found:
                found.append(node)
            return ex.Scalar(f"c{first + found.index(node)}", node.dtype)
        return ex.with_args(node, tuple(map(visit, node.args))) if node.args else node

    return visit(tree), found


def _fixed(tree: ex.Expr) -> bool:
    return not any(
        isinstance(node, (ex.Score, ex.Elem)) or (isinstance(node, ex.Index) and node.axis == "j")
        for node in tree.walk()
    )


def _costly(tree: ex.Expr) -> bool:
    return any(isinstance(n, ex.Load) or (isinstance(n, ex.Op) and n.name in FUNCTIONS) for n in tree.walk())
