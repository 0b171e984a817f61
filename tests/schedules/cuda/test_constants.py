"""What a kernel computes once a row: 64-bit limits that keys are compared with become 32-bit ones."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from zoo import KEY, N0, POSITION, ROW, SKV, SQ

from attncc import expr as ex
from attncc.schedules.cuda.constants import split
from attncc.schedules.cuda.gpu import LONGEST

_WHOLE = {"add": operator.add, "sub": operator.sub, "min": min, "max": max, "lt": operator.lt, "le": operator.le,
          "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne}  # fmt: skip


def value(tree: ex.Expr, known: dict[str, int]) -> Any:
    def visit(node: ex.Expr, args: tuple[Any, ...]) -> Any:
        match node:
            case ex.Const(number):
                return number
            case ex.Index(name) | ex.Size(name) | ex.Scalar(name):
                return known[name]
            case ex.Op("cast"):
                assert -(2**31) <= args[0] < 2**31
                return args[0]
            case ex.Op(name):
                return _WHOLE[name](*args)
        raise AssertionError(node)

    return ex.fold(tree, visit)


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("swapped", [False, True])
def test_limits_compare_as_before(name: str, swapped: bool) -> None:
    """Of a window as long as an int64 says, be it negative or longer than any row."""
    limit = ex.op("sub", POSITION, N0)
    tree = ex.op(name, limit, KEY) if swapped else ex.op(name, KEY, limit)
    short, [constant] = split(tree)
    assert constant.dtype == "int32"
    for window in (0, 3, LONGEST, 2**31, -(2**31), 2**60, -(2**60)):
        for row, key in ((0, 0), (5, 2), (5, LONGEST), (LONGEST, LONGEST), (LONGEST, 0)):
            known = {"i": row, "j": key, "Sq": LONGEST, "Skv": LONGEST, "n0": window}
            assert value(short, known | {"c0": value(constant, known)}) == value(tree, known)


def test_positions_need_no_limit() -> None:
    """They are 32-bit numbers as they are."""
    tree = ex.op("le", ex.op("sub", KEY, ROW), ex.op("sub", SKV, SQ))
    assert split(tree) == (tree, [])
