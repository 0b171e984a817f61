"""How many keys a mask leaves to a tile of rows, where the sizes of a call tell before it starts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from attncc import expr as ex
from attncc.algorithm.bounds import key_bounds
from attncc.schedules.family import Problem


def visited(mask: ex.Expr, problem: Problem, first: int, last: int) -> int | None:
    """How many keys rows first … last see, where the sizes alone tell; else None."""
    known = {"first": first, "last": last, "Sq": problem.q_len, "Skv": problem.kv_len}
    known |= {"B": problem.batch, "H": problem.heads}

    def value(node: ex.Expr, args: tuple[int, ...]) -> int:
        match node:
            case ex.Const(number):
                return int(number)
            case ex.Index(name) | ex.Size(name):
                return known[name]
            case ex.Op(name) if name in _WHOLE:
                return int(_WHOLE[name](*args))
        raise KeyError(str(node))

    bounds = key_bounds(mask, loads=False)
    try:
        return int(ex.fold(bounds.hi, value)) - int(ex.fold(bounds.lo, value))
    except KeyError:
        return None


_WHOLE: Mapping[str, Callable[..., int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg, "min": min, "max": max,
    "le": operator.le, "lt": operator.lt, "ge": operator.ge, "gt": operator.gt, "eq": operator.eq, "ne": operator.ne,
    "where": lambda condition, a, b: a if condition else b, "cast": int,
}  # fmt: skip
