"""Key bounds against brute force: nothing visible lies outside `visit`, and all of `full` is visible."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc import expr as ex
from attncc.algorithm.bounds import Bounds, key_bounds

ROW, KEY, SQ, SKV = ex.Index("i"), ex.Index("j"), ex.Size("Sq"), ex.Size("Skv")
N0 = ex.Scalar("n0", "int64")
LENGTH = ex.Load("t0", (ex.Index("b"),), "int64")
PLACE = ex.Load("t2", (ROW,), "int64")

_FUNCTIONS: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "mod": operator.mod, "neg": operator.neg,
    "min": min, "max": max,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "and": operator.and_, "or": operator.or_, "not": operator.not_, "cast": lambda x: x,
    "where": lambda c, a, b: a if c else b,
}  # fmt: skip


def evaluate(expr: ex.Expr, values: dict[str, Any]) -> Any:
    """`expr` in Python integers."""

    def visit(node: ex.Expr, args: tuple[Any, ...]) -> Any:
        match node:
            case ex.Const(value):
                return value
            case ex.Index(name) | ex.Size(name) | ex.Scalar(name):
                return values[name]
            case ex.Load(name):
                return values[name][args]
            case ex.Op(name):
                return _FUNCTIONS[name](*args)
        raise TypeError(node)

    return ex.fold(expr, visit)


def const(value: int) -> ex.Expr:
    return ex.Const(value, "int64")


def intervals(bounds: Bounds, values: dict[str, Any]) -> tuple[int, int, int, int]:
    lo, hi, full_lo, full_hi = (evaluate(e, values) for e in (bounds.lo, bounds.hi, bounds.full_lo, bounds.full_hi))
    assert 0 <= lo <= full_lo <= full_hi <= hi <= values["Skv"]
    return lo, hi, full_lo, full_hi


def check(mask: ex.Expr, values: dict[str, Any], first: int, last: int) -> tuple[int, int, int, int]:
    """The intervals, after comparing them with the mask key by key."""
    found = intervals(key_bounds(mask), {**values, "first": first, "last": last})
    hold(mask, values, found, range(first, last + 1))
    for i in range(first, last + 1):
        hold(mask, values, intervals(key_bounds(mask, by_row=True), {**values, "i": i}), range(i, i + 1))
    return found


def hold(mask: ex.Expr, values: dict[str, Any], found: tuple[int, int, int, int], rows: range) -> None:
    lo, hi, full_lo, full_hi = found
    for j in range(values["Skv"]):
        seen = [evaluate(mask, {**values, "i": i, "j": j}) for i in rows]
        assert lo <= j < hi or not any(seen), (j, found)
        assert not full_lo <= j < full_hi or all(seen), (j, found)


terms = st.one_of(
    st.integers(-9, 9).map(const),
    st.sampled_from([SQ, SKV, N0, LENGTH, PLACE, ex.Index("h"), ex.op("sub", SKV, SQ), ex.op("add", N0, const(1))]),
)
forms = st.one_of(
    terms,
    st.sampled_from([ROW, KEY, ex.op("sub", ROW, KEY), ex.op("sub", KEY, ROW)]),
    st.sampled_from([ex.op("add", ROW, KEY), ex.op("neg", KEY)]),
    st.sampled_from([ex.op("mod", KEY, const(3)), ex.op("cast", ROW, dtype="int32"), ex.op("mul", const(2), ROW)]),
)  # fmt: skip
linear = st.one_of(
    forms, st.builds(lambda a, b, name: ex.op(name, a, b), forms, terms, st.sampled_from(["add", "sub"]))
)
atoms = st.builds(
    lambda name, a, b: ex.op(name, a, b), st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), linear, linear
)
flags = st.sampled_from([ex.Const(True, "bool"), ex.Const(False, "bool"), ex.Load("t1", (ex.Index("h"),), "bool")])
masks = st.recursive(
    st.one_of(atoms, atoms, atoms, flags),
    lambda inner: st.one_of(
        st.builds(lambda a, b, name: ex.op(name, a, b), inner, inner, st.sampled_from(["and", "or"])),
        st.builds(lambda a: ex.op("not", a), inner),
        st.builds(lambda c, a, b: ex.op("where", c, a, b), inner, inner, inner),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=400)
@given(mask=masks, data=st.data())
def test_random_masks(mask: ex.Expr, data: st.DataObject) -> None:
    q_len, kv_len = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 12))
    first = data.draw(st.integers(0, q_len - 1))
    last = data.draw(st.integers(first, q_len - 1))
    values = {
        "B": 1, "H": 2, "Sq": q_len, "Skv": kv_len, "b": 0, "h": data.draw(st.integers(0, 1)),
        "n0": data.draw(st.integers(-12, 12)),
        "t0": {(0,): data.draw(st.integers(-2, 14))}, "t1": {(0,): True, (1,): False},
        "t2": {(i,): data.draw(st.integers(-2, 14)) for i in range(q_len)},
    }  # fmt: skip
    check(mask, values, first, last)


def sizes(**given: int) -> dict[str, Any]:
    return {"B": 1, "H": 2, "Sq": 100, "Skv": 100, "b": 0, "h": 1, "n0": 0, "t0": {(0,): 37}, **given}


CAUSAL = ex.op("le", KEY, ex.op("add", ROW, ex.op("sub", SKV, SQ)))
WINDOW = ex.op("lt", ex.op("sub", ROW, KEY), const(16))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (ex.op("le", KEY, ROW), (0, 48, 0, 33)),
        (ex.op("and", ex.op("le", KEY, ROW), WINDOW), (17, 48, 32, 33)),
        (ex.op("or", ex.op("lt", KEY, const(40)), ex.op("le", KEY, ROW)), (0, 48, 0, 40)),
        (ex.op("not", ex.op("gt", KEY, ROW)), (0, 48, 0, 33)),
        (ex.op("eq", KEY, ROW), (32, 48, 47, 47)),
        (ex.op("lt", KEY, LENGTH), (0, 37, 0, 37)),
        (ex.op("and", ex.op("lt", KEY, LENGTH), ex.op("le", KEY, ROW)), (0, 37, 0, 33)),
        (ex.op("eq", ex.op("mod", KEY, const(3)), const(0)), (0, 100, 0, 0)),
        (ex.op("and", ex.op("le", KEY, ROW), ex.op("ne", ex.op("mod", KEY, const(3)), const(0))), (0, 48, 0, 0)),
        (ex.op("eq", ex.Index("h"), const(1)), (0, 100, 0, 100)),
        (ex.op("eq", ex.Index("h"), const(0)), (0, 0, 0, 0)),
        (ex.op("lt", ROW, const(40)), (0, 100, 0, 0)),
        (ex.op("lt", ROW, const(48)), (0, 100, 0, 100)),
    ],
    ids=str,
)
def test_tight_where_it_matters(mask: ex.Expr, expected: tuple[int, int, int, int]) -> None:
    """Rows 32 … 47 of 100 under the masks of the trade: causal, window, prefix-LM, key lengths, per head."""
    assert check(mask, sizes(), 32, 47) == expected


def test_causal_with_a_cache() -> None:
    """The last 3 of 100 positions: everything but the corner is visible to all."""
    assert check(CAUSAL, sizes(Sq=3), 0, 2) == (0, 100, 0, 98)


def test_bounds_of_one_row_read_what_they_like_of_it() -> None:
    """A static cache (`j <= position[i]`), and a window in it: nothing is known for several rows, all for one."""
    mask = ex.op("and", ex.op("le", KEY, PLACE), ex.op("gt", KEY, ex.op("sub", PLACE, const(16))))
    places = {"t2": {(i,): 3 * i for i in range(100)}}
    assert check(mask, {**sizes(), **places}, 20, 21) == (0, 100, 0, 0)
    row = {**sizes(), **places, "i": 20}
    assert intervals(key_bounds(mask, by_row=True), row) == (45, 61, 45, 61)


@pytest.mark.parametrize("name", ["le", "lt", "ge", "gt", "eq", "ne"])
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_the_largest_integers_stand_for_infinity(name: str, value: int) -> None:
    """`j <= 2^63 - 1` once hid all keys: the end of the range, one further, wrapped around."""

    def wrapped(expr: ex.Expr, values: dict[str, Any]) -> int:
        return (int(evaluate(expr, values)) + 2**63) % 2**64 - 2**63

    for mask in (ex.op(name, KEY, LENGTH), ex.op(name, ex.op("sub", KEY, LENGTH), ROW)):
        values = sizes(t0={(0,): value}, first=3, last=5)
        bounds = key_bounds(mask)
        for end in (bounds.lo, bounds.hi, bounds.full_lo, bounds.full_hi):
            for node in end.walk():
                if node.dtype == "int64":
                    assert wrapped(node, values) == evaluate(node, values)
        if mask.args[0] == KEY:
            check(mask, sizes(t0={(0,): value}), 3, 5)


def test_no_mask() -> None:
    assert intervals(key_bounds(None), sizes(first=0, last=3)) == (0, 100, 0, 100)


def test_without_loads() -> None:
    """Bounds that may read no tensor treat a condition on one as unknown."""
    bounds = key_bounds(ex.op("and", ex.op("lt", KEY, LENGTH), ex.op("le", KEY, ROW)), loads=False)
    assert intervals(bounds, sizes(first=32, last=47)) == (0, 48, 0, 0)
    assert not any(isinstance(n, ex.Load) for e in (bounds.lo, bounds.hi) for n in e.walk())


def test_narrow_arithmetic_is_not_trusted() -> None:
    """int32 sums may wrap around, so a comparison of them bounds nothing."""
    narrow = ex.op("add", ex.op("cast", ROW, dtype="int32"), ex.op("cast", N0, dtype="int32"))
    bounds = key_bounds(ex.op("le", ex.op("cast", KEY, dtype="int32"), narrow))
    assert intervals(bounds, sizes(first=0, last=0)) == (0, 100, 0, 0)
