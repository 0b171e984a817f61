"""Score expressions in one form, so that masks can be seen: what is additive or arithmetic becomes a selection.

    x + where(c, 0, -inf)            →  where(c, x, -inf)
    (1 - cast(c)) * finfo.min + x    →  where(c, x, finfo.min)
    where(c, x, -inf) * 0.125        →  where(c, x * 0.125, -inf)
    x / 8                            →  x * 0.125

Arithmetic is that of the reals, as everywhere in a score: casts between floating-point types are dropped, constants are
folded in double precision. A finite additive mask becomes a selection only from -1e30 on, where it absorbs any score.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attncc import expr as ex
from attncc.expr import op

ABSORBING = -1e30
"""Adding a score to a number below this changes nothing in float32 or bfloat16."""
MASKING = -1e4
"""A selected constant below this is a mask."""
_FOLD: dict[str, Callable[..., float | int | bool]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "neg": lambda a: -a,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "and": lambda a, b: a and b, "or": lambda a, b: a or b,
    "not": lambda a: not a, "min": min, "max": max,
    "sqrt": math.sqrt, "rsqrt": lambda a: 1 / math.sqrt(a),
}  # fmt: skip
_INVERSE = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}
_COMPARISONS = frozenset(_INVERSE)


def simplify(expr: ex.Expr, score: ex.Load) -> ex.Expr:
    """`expr` in the form above. Loads, `score` among them, stay as they are: their indices are no score arithmetic."""
    loads = dict.fromkeys(node for node in expr.walk() if isinstance(node, ex.Load))
    names: dict[ex.Expr, ex.Expr] = {load: ex.Scalar(f"load {n}", load.dtype) for n, load in enumerate(loads)}
    scored: dict[ex.Expr, bool] = {}

    def has_score(node: ex.Expr) -> bool:
        if node not in scored:
            scored[node] = node == names.get(score) or any(map(has_score, node.args))
        return scored[node]

    expr = ex.substitute(expr, names.get)
    previous: ex.Expr | None = None
    while previous != expr:
        previous = expr
        expr = ex.substitute(expr, lambda node: _rewritten(node, has_score))
    back = {name: load for load, name in names.items()}
    return ex.substitute(expr, back.get)


def _rewritten(node: ex.Expr, has_score: Callable[[ex.Expr], bool]) -> ex.Expr | None:
    if not isinstance(node, ex.Op):
        return None
    for rule in (_cast, _constant, _logic, _selection, _arithmetic, _into_selection):
        other = rule(node)
        if other is not None:
            return other
    return _additive_mask(node, has_score)


def _cast(node: ex.Op) -> ex.Expr | None:
    if node.name != "cast":
        return None
    (inner,) = node.operands
    if inner.dtype == node.dtype or (inner.dtype in ex.FLOATS and node.dtype in ex.FLOATS):
        return inner
    if isinstance(inner, ex.Const):
        return ex.Const(_typed(inner.value, node.dtype), node.dtype)
    if inner.dtype == "bool":
        one, zero = (ex.Const(_typed(v, node.dtype), node.dtype) for v in (1, 0))
        return op("where", inner, one, zero)
    match inner:
        case ex.Op("where", (c, ex.Const() as a, ex.Const() as b)):
            yes, no = (ex.Const(_typed(x.value, node.dtype), node.dtype) for x in (a, b))
            return op("where", c, yes, no)
    return None


def _typed(value: float | int | bool, dtype: str) -> float | int | bool:
    if dtype == "bool":
        return bool(value)
    return float(value) if dtype in ex.FLOATS else int(value)


def _constant(node: ex.Op) -> ex.Expr | None:
    values = [a.value for a in node.operands if isinstance(a, ex.Const)]
    if len(values) != len(node.operands):
        return None
    try:
        if node.name == "div":
            result: float | int | bool = values[0] / values[1]
        elif node.name in _FOLD:
            result = _FOLD[node.name](*values)
        else:
            return None
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    return ex.Const(_typed(result, node.dtype), node.dtype)


def inverted(condition: ex.Expr) -> ex.Expr:
    """not condition, simplified."""
    negation = op("not", condition)
    return _logic(negation) or negation


def _logic(node: ex.Op) -> ex.Expr | None:
    match node:
        case ex.Op("not", (ex.Op("not", (x,)),)):
            return x
        case ex.Op("ge", (ex.Index(), ex.Const(value))) if value <= 0:
            return ex.Const(True, "bool")
        case ex.Op("lt", (ex.Index(), ex.Const(value))) if value <= 0:
            return ex.Const(False, "bool")
        case ex.Op("not", (ex.Op(name, (a, b)),)) if name in _INVERSE and a.dtype in ex.INTEGERS:
            return op(_INVERSE[name], a, b)  # of floats it would be wrong for NaN
        case ex.Op("and" | "or" as name, (ex.Const(value), x)) | ex.Op("and" | "or" as name, (x, ex.Const(value))):
            return x if bool(value) == (name == "and") else ex.Const(bool(value), "bool")
        case ex.Op("and" | "or", (x, y)) if x == y:
            return x
        case ex.Op("eq" | "ne" as name, (x, ex.Const(value))) if x.dtype == "bool":
            return x if bool(value) == (name == "eq") else op("not", x)
        case ex.Op(name, (ex.Op("where", (c, ex.Const() as a, ex.Const() as b)), ex.Const() as k)) if (
            name in _COMPARISONS
        ):
            return op("where", c, op(name, a, k), op(name, b, k))
    return None


def _selection(node: ex.Op) -> ex.Expr | None:
    match node:
        case ex.Op("where", (ex.Const(value), a, b)):
            return a if value else b
        case ex.Op("where", (_, a, b)) if a == b:
            return a
        case ex.Op("where", (c, ex.Const(True), ex.Const(False))) if node.dtype == "bool":
            return c
        case ex.Op("where", (c, ex.Const(False), ex.Const(True))) if node.dtype == "bool":
            return op("not", c)
    return None


def _arithmetic(node: ex.Op) -> ex.Expr | None:
    floating = node.dtype in ex.FLOATS
    match node:
        case ex.Op("div", (x, ex.Const(value))) if floating and value != 0 and math.isfinite(value):
            return op("mul", x, ex.Const(1 / value, node.dtype), dtype=node.dtype)
        case ex.Op("add" | "mul" as name, (ex.Const() as k, x)) if not isinstance(x, ex.Const):
            return op(name, x, k, dtype=node.dtype)
        case ex.Op("sub", (x, ex.Const(value))) if floating:
            return op("add", x, ex.Const(-value, node.dtype), dtype=node.dtype)
        case ex.Op("mul", (x, ex.Const(1))) | ex.Op("add", (x, ex.Const(0))) | ex.Op("sub", (x, ex.Const(0))):
            return x if x.dtype == node.dtype or floating else None
        case ex.Op("mul", (ex.Op("mul", (x, ex.Const(a))), ex.Const(b))) if floating:
            return op("mul", x, ex.Const(a * b, node.dtype), dtype=node.dtype)
        case ex.Op("neg", (x,)) if floating:
            return op("mul", x, ex.Const(-1.0, node.dtype), dtype=node.dtype)
    return None


def _into_selection(node: ex.Op) -> ex.Expr | None:
    """Constant arithmetic goes into the branches of a selection that masks, or of one between constants."""
    if node.name not in ("add", "mul", "sub"):
        return None
    match node.operands:
        case (ex.Op("where", (c, a, b)), ex.Const() as k) if _constants(a, b) or _is_mask(a) or _is_mask(b):
            return op("where", c, op(node.name, a, k, dtype=node.dtype), op(node.name, b, k, dtype=node.dtype))
        case (ex.Const() as k, ex.Op("where", (c, ex.Const() as a, ex.Const() as b))):
            return op("where", c, op(node.name, k, a, dtype=node.dtype), op(node.name, k, b, dtype=node.dtype))
    return None


def _constants(*parts: ex.Expr) -> bool:
    return all(isinstance(p, ex.Const) for p in parts)


def _is_mask(part: ex.Expr) -> bool:
    return isinstance(part, ex.Const) and part.dtype in ex.FLOATS and part.value <= MASKING


def _additive_mask(node: ex.Op, has_score: Callable[[ex.Expr], bool]) -> ex.Expr | None:
    if node.name not in ("add", "mul"):
        return None
    a, b = node.operands
    if has_score(b) and not has_score(a):
        return op(node.name, b, a, dtype=node.dtype)
    if node.name == "mul" or not has_score(a) or has_score(b):
        return None
    limit = -math.inf if any(_is_mask(part) for part in a.walk()) else ABSORBING
    match b:
        case ex.Op("where", (c, ex.Const(0), ex.Const(fill))) if fill <= limit:
            return op("where", c, a, ex.Const(fill, node.dtype))
        case ex.Op("where", (c, ex.Const(fill), ex.Const(0))) if fill <= limit:
            return op("where", inverted(c), a, ex.Const(fill, node.dtype))
    match a:  # a second mask: what the first hides by -inf stays so, but two finite numbers add up
        case ex.Op("where", (c, x, ex.Const(low))) if low == -math.inf and _masks(b):
            return op("where", c, op("add", x, b, dtype=node.dtype), ex.Const(low, node.dtype))
        case ex.Op("where", (c, ex.Const(low), x)) if low == -math.inf and _masks(b):
            return op("where", inverted(c), op("add", x, b, dtype=node.dtype), ex.Const(low, node.dtype))
    match b:
        case ex.Op("add", (x, y)) if _masks(x) or _masks(y):
            return op("add", op("add", a, x, dtype=node.dtype), y, dtype=node.dtype)
    return None


def _masks(expr: ex.Expr) -> bool:
    match expr:
        case ex.Op("where", (_, x, y)):
            return _is_mask(x) or _is_mask(y)
    return False


def split_mask(x: ex.Expr, has_score: Callable[[ex.Expr], bool]) -> tuple[ex.Expr, ex.Expr | None, float]:
    """Score modification, mask and fill of a simplified score: `where(mask, score_mod, fill)` taken apart."""
    masks: list[ex.Expr] = []
    fill: float | None = None
    while isinstance(x, ex.Op) and x.name == "where":
        condition, yes, no = x.operands
        if _is_mask(yes):
            condition, yes, no = inverted(condition), no, yes
        if not isinstance(no, ex.Const) or not _is_mask(no) or has_score(condition) or fill not in (None, no.value):
            break
        fill = float(no.value)
        masks.append(condition)
        x = yes
    if not masks:
        return x, None, -math.inf
    mask = masks[0]
    for other in masks[1:]:
        mask = op("and", mask, other)
    return x, mask, fill if fill is not None else -math.inf


def conjuncts(mask: ex.Expr) -> list[ex.Expr]:
    """The conditions that a mask joins by `and`."""
    if isinstance(mask, ex.Op) and mask.name == "and":
        return [part for operand in mask.operands for part in conjuncts(operand)]
    return [mask]
