"""Weights that are a function of the score alone: sigmoid, relu, relu², exp without a sum, masked or not.

The same form is that of every gated layer, act(x @ w1) @ w2. It is an attention only where keys and values are made of
the data; a product of three without anything between is none either: it is better computed in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from attncc import expr as ex
from attncc import ir
from attncc.expr import op
from attncc.passes.logform import uncast
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import Roles, axes_of
from attncc.passes.score_product import ScoreProduct
from attncc.passes.simplify import inverted
from attncc.passes.statistics import Statistics
from attncc.passes.weights import Weights

_LINEAR = ("add", "sub", "mul", "div", "neg", "cast")


def match_pointwise(reader: Reader, contract: ir.Contract, access: ir.Access) -> Weights | None:
    """The weights that operand `access` of `contract` is, where products and pointwise operators make it."""
    x = uncast(reader.read(access))
    if isinstance(x, ex.Load) or not any(isinstance(node, ex.Load) for node in x.walk()):
        return None
    return Weights(x, "none")


def check_pointwise(reader: Reader, contract: ir.Contract, x: ex.Expr) -> None:
    """Raises Refused for weights that are made of reductions over the keys, too."""
    statistics = Statistics(reader, contract, x)
    if any(isinstance(node, ex.Load) and statistics.is_reduction(node) for node in x.walk()):
        raise Refused(
            "the weights are divided by a sum of something other than the exponentials of the scores", contract.name
        )


def is_attention(graph: ir.Graph, x: ex.Expr, score: ScoreProduct, v: ir.Access, roles: Roles) -> bool:
    """Whether keys and values are data, and the weights a function of one score each, and no multiple of it."""
    shared = {*roles.b, *roles.h} - set(roles.r)
    others = {node.tensor for node in x.walk() if isinstance(node, ex.Load) and node != score.load}
    if any(_made_of(graph, other, score.load.tensor) for other in others):
        return False  # rotary positions: a projection's columns in pairs
    return all(_is_data(graph, a, shared) for a in (score.k, v)) and not _is_linear(x, score.load, roles)


def _made_of(graph: ir.Graph, name: str, product: str) -> bool:
    """Whether a value is a product, or one made of its elements without summing them up."""
    stack, seen = [name], {name}
    while stack:
        current = stack.pop()
        if current == product:
            return True
        if not isinstance(graph.nodes[current], ir.Contract | ir.Reduce):
            fresh = set(graph.nodes[current].reads) - seen
            seen |= fresh
            stack += fresh
    return False


def _is_data(graph: ir.Graph, access: ir.Access, shared: set[str]) -> bool:
    """Whether a value is computed from the data; an argument as it is counts if it has a batch or heads."""
    stack, seen, computed, data = [access.value], {access.value}, False, False
    while stack:
        node = graph.nodes[stack.pop()]
        computed = computed or not isinstance(node, ir.Input | ir.View | ir.Map | ir.Const)
        data = data or (isinstance(node, ir.Input) and not node.parameter and not node.number)
        fresh = set(node.reads) - seen
        seen |= fresh
        stack += fresh
    return data and (computed or bool(axes_of(access) & shared))


def _is_linear(x: ex.Expr, score: ex.Load, roles: Roles) -> bool:
    """Whether x is the score times and plus what moves along the queries or along the keys, but not along both."""
    if x == score:
        return True
    if score not in x.walk():
        axes = {node.axis for node in x.walk() if isinstance(node, ex.Index)}
        return not (axes & set(roles.i) and axes & set(roles.j))
    if not isinstance(x, ex.Op) or x.name not in _LINEAR:
        return False
    with_score = [a for a in x.operands if score in a.walk()]
    if (x.name == "mul" and len(with_score) > 1) or (x.name == "div" and score in x.operands[1].walk()):
        return False
    return all(_is_linear(a, score, roles) for a in x.operands)


def split_zero(x: ex.Expr, score: ex.Expr) -> tuple[ex.Expr, ex.Expr | None]:
    """Weights and mask of `where(mask, weights, 0)`, a mask of the scores being one wherever it makes the weight 0."""
    previous: ex.Expr | None = None
    while previous != x:
        previous, x = x, ex.substitute(x, _lifted)
    masks: list[ex.Expr] = []
    while isinstance(x, ex.Op) and x.name == "where" and score not in x.operands[0].walk():
        condition, yes, no = x.operands
        if _is_zero(yes):
            condition, yes, no = inverted(condition), no, yes
        if not _is_zero(no):
            break
        masks.append(condition)
        x = yes
    if not masks:
        return x, None
    mask = masks[0]
    for other in masks[1:]:
        mask = op("and", mask, other)
    return x, mask


def _is_zero(expr: ex.Expr) -> bool:
    return isinstance(expr, ex.Const) and expr.dtype in ex.FLOATS and expr.value == 0


def _lifted(node: ex.Expr) -> ex.Expr | None:
    """f(where(c, a, 3)) as where(c, f(a), f(3)), and a product with where(c, 1, 0) as a selection."""
    if not isinstance(node, ex.Op) or node.name == "where" or node.dtype not in ex.FLOATS:
        return None
    match node:
        case ex.Op("mul", (a, ex.Op("where", (c, ex.Const(1), ex.Const(0))))):
            return op("where", c, a, ex.Const(0.0, node.dtype))
        case ex.Op("mul", (ex.Op("where", (c, ex.Const(1), ex.Const(0))), a)):
            return op("where", c, a, ex.Const(0.0, node.dtype))
    selections = [x for x in node.operands if isinstance(x, ex.Op) and x.name == "where"]
    conditions = {x.operands[0] for x in selections}
    if len(conditions) != 1 or not all(x in selections or _is_number(x) for x in node.operands):
        return None
    branches = [
        ex.Op(node.name, tuple(x.args[n] if x in selections else x for x in node.operands), node.dtype) for n in (1, 2)
    ]
    values = [_value(branch) for branch in branches]
    if values == [None, None]:
        return None
    yes, no = (b if v is None else ex.Const(v, node.dtype) for b, v in zip(branches, values, strict=True))
    return op("where", conditions.pop(), yes, no)


def _is_number(expr: ex.Expr) -> bool:
    return all(isinstance(node, ex.Const | ex.Size | ex.Op) for node in expr.walk())


def _value(node: ex.Op) -> float | None:
    """What an operator gives for constants; 0 divided by a size is 0. None where that is not known."""
    a, *rest = node.operands
    if node.name in ("mul", "div") and _is_zero(a) and rest and all(_is_positive(x) for x in rest):
        return 0.0
    if not all(isinstance(x, ex.Const) for x in node.operands):
        return None
    values = [float(x.value) for x in node.operands]  # type: ignore[attr-defined]
    try:
        result = _FUNCTIONS[node.name](*values) if node.name in _FUNCTIONS else math.nan
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(result) else result


def _is_positive(expr: ex.Expr) -> bool:
    match expr:
        case ex.Const(value):
            return bool(0 < value < math.inf)
        case ex.Size():
            return True
        case ex.Op("cast", (inner,)):
            return _is_positive(inner)
        case ex.Op("mul" | "add", (a, b)):
            return _is_positive(a) and _is_positive(b)
    return False


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "max": max, "min": min, "neg": lambda a: -a, "abs": abs, "exp": math.exp, "exp2": lambda a: 2.0**a,
    "sigmoid": _sigmoid, "tanh": math.tanh, "erf": math.erf, "sqrt": math.sqrt, "pow": math.pow,
    "log1p": math.log1p,
}  # fmt: skip
