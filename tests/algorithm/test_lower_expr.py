"""Lowered expressions against torch's operators, lane by lane."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from elementwise import compile_elementwise
from torch import Tensor

from attncc import expr as ex
from attncc._tvm import tirx
from attncc.algorithm.int_range import int_range
from attncc.algorithm.lower_expr import Env, lower
from attncc.target import parse

FLOATS = torch.tensor([0.0, 1.0, -1.0, 0.5, -2.5, 3.75, 1e-3, 100.0, -7.0, math.inf, -math.inf, math.nan])
WHOLE = torch.tensor([0, 1, -1, 2, -3, 7, 100, -128, 2**31 - 1, -(2**31), 2**40])
FLAGS = torch.tensor([False, True])
TORCH: dict[str, Any] = {
    **{name: getattr(torch, name) for name in (
        "add", "sub", "mul", "div", "neg", "abs", "exp", "exp2", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh",
        "sigmoid", "erf", "sin", "cos", "floor", "ceil", "round", "sign", "lt", "le", "gt", "ge", "eq", "ne",
        "where", "pow")},
    "min": torch.minimum, "max": torch.maximum, "mod": torch.remainder, "floordiv": torch.floor_divide,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor, "not": torch.bitwise_not,
}  # fmt: skip


def evaluate(expr: ex.Expr, leaves: dict[str, Tensor], target: str = "cpu") -> Tensor:
    """`expr` compiled, with `Scalar` leaves that stand for the elements of tensors."""
    names = list(leaves)
    dtypes = [str(t.dtype).removeprefix("torch.") for t in leaves.values()]
    output = "float32" if expr.dtype in ex.FLOATS else expr.dtype

    def function(*values: Any) -> Any:
        return lower(expr, Env("float32", scalar=dict(zip(names, values, strict=True))))

    call, _ = compile_elementwise(function, dtypes, output, parse(target))
    return call(*leaves.values())


def check(name: str, *operands: Tensor, dtype: str | None = None, **close: Any) -> None:
    kinds = [str(t.dtype).removeprefix("torch.") for t in operands]
    leaves = [ex.Scalar(f"x{n}", kind) for n, kind in enumerate(kinds)]
    expected = TORCH[name](*operands)
    node = ex.Op(name, tuple(leaves), dtype or str(expected.dtype).removeprefix("torch."))
    found = evaluate(node, {leaf.name: t for leaf, t in zip(leaves, operands, strict=True)})
    torch.testing.assert_close(found, expected, equal_nan=True, **(close or {"rtol": 0, "atol": 0}))


def pairs(values: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    others = values if others is None else others
    return values.repeat_interleave(len(others)), others.repeat(len(values))


@pytest.mark.parametrize("name", ["neg", "abs", "floor", "ceil", "round", "sign", "sqrt"])
def test_exact_float_functions(name: str) -> None:
    check(name, FLOATS)


@pytest.mark.parametrize(
    "name", ["exp", "exp2", "log", "log2", "log1p", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos"]
)
def test_float_functions(name: str) -> None:
    check(name, FLOATS, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "min", "max"])
def test_float_arithmetic(name: str) -> None:
    check(name, *pairs(FLOATS))


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(name: str) -> None:
    """Of floats with NaN, of integers of two sizes, of a float and an integer, of booleans."""
    check(name, *pairs(FLOATS))
    check(name, *pairs(WHOLE, torch.tensor([0, -3, 7], dtype=torch.int32)))
    check(name, *pairs(FLOATS, torch.tensor([0, 1, -7])))
    check(name, *pairs(FLAGS))


@pytest.mark.parametrize("name", ["lt", "ge"])
def test_negated_comparison_of_nan(name: str) -> None:
    """not (NaN < 1) is true; TVM's simplifier would make it NaN >= 1."""
    x = ex.Scalar("x0", "float32")
    found = evaluate(ex.op("not", ex.op(name, x, ex.Const(1.0, "float32"))), {"x0": FLOATS})
    assert torch.equal(found, ~TORCH[name](FLOATS, 1.0))


@pytest.mark.parametrize("name", ["mod", "floordiv"])
def test_floor_division(name: str) -> None:
    """Rounds towards minus infinity for integers and floats."""
    divisors = torch.tensor([3, -4, 7, 1])
    check(name, *pairs(WHOLE, divisors))
    finite = FLOATS[FLOATS.isfinite()]
    check(name, *pairs(finite, divisors.float()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max", "and", "or", "xor"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_arithmetic(name: str, dtype: torch.dtype) -> None:
    """Wraps around in the node's own dtype."""
    check(name, *pairs(WHOLE.to(dtype)))


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_logic(name: str) -> None:
    check(name, *pairs(FLAGS))


def test_not() -> None:
    check("not", FLAGS)
    check("not", WHOLE)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (FLOATS[:9], "int64"), (FLOATS[:9], "int32"), (FLOATS, "bool"), (WHOLE, "float32"), (WHOLE, "int32"),
        (WHOLE, "bool"), (FLAGS, "float32"), (FLAGS, "int64"), (FLOATS.bfloat16(), "float32"),
        (FLOATS.half(), "float32"),
        (FLOATS.double(), "float32"), (FLOATS.bfloat16(), "bool"),
    ],
)  # fmt: skip
def test_casts(values: Tensor, dtype: str) -> None:
    leaf = ex.Scalar("x0", str(values.dtype).removeprefix("torch."))
    found = evaluate(ex.op("cast", leaf, dtype=dtype), {"x0": values})
    assert torch.equal(found.nan_to_num(), values.to(getattr(torch, dtype)).nan_to_num())


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 2.2])
def test_powers(exponent: float) -> None:
    x = torch.tensor([0.5, 1.0, 2.5, 100.0, 1e-3])
    node = ex.op("pow", ex.Scalar("x0", "float32"), ex.Const(exponent, "float32"))
    torch.testing.assert_close(evaluate(node, {"x0": x}), x**exponent, rtol=1e-6, atol=0)


def test_where_and_constants() -> None:
    x = ex.Scalar("x0", "float32")
    for value in (math.inf, -math.inf, math.nan, 0.25):
        node = ex.op("where", ex.op("gt", x, ex.Const(0.0, "float32")), x, ex.Const(value, "float32"))
        expected = torch.where(FLOATS > 0, FLOATS, value)
        torch.testing.assert_close(evaluate(node, {"x0": FLOATS}), expected, rtol=0, atol=0, equal_nan=True)


def test_float_casts_are_nothing() -> None:
    """Scores are computed in float32 also where the model rounds them to bfloat16."""
    x = ex.Scalar("x0", "float32")
    node = ex.op("cast", ex.op("cast", x, dtype="bfloat16"), dtype="float32")
    values = torch.randn(20)
    assert torch.equal(evaluate(node, {"x0": values}), values)


@pytest.mark.parametrize("target", ["cpu", "llvm -mcpu=x86-64"])
def test_nested_functions(target: str) -> None:
    """Deep nests stay small, and right on a CPU without anything."""
    node: ex.Expr = ex.Scalar("x0", "float32")
    expected = values = torch.randn(50)
    for name in ("tanh", "exp", "log1p", "sigmoid", "erf", "tanh", "exp"):
        node, expected = ex.op(name, node), TORCH[name](expected.double())
    torch.testing.assert_close(evaluate(node, {"x0": values}, target), expected.float(), rtol=1e-5, atol=1e-6)


def test_position_arithmetic_in_int32() -> None:
    """Distances are computed in int32 before they become floats; products that may not fit are not."""
    i, j = ex.Index("i"), ex.Index("j")
    assert int_range(ex.op("sub", i, j)) == (-(2**31 - 1), 2**31 - 1)
    far = ex.op("mul", i, j)
    env_dtypes = ["int64", "int64"]

    def function(node: ex.Expr) -> Any:
        floating = ex.op("cast", node, dtype="float32")
        return lambda a, b: lower(floating, Env("float32", index={"i": a, "j": b}))

    a, b = torch.tensor([0, 5, 2**31 - 1, 70000]), torch.tensor([3, 2**31 - 1, 0, 70000])
    for node, expected in ((ex.op("sub", i, j), a - b), (far, a * b), (ex.op("add", i, j), a + b)):
        call, _ = compile_elementwise(function(node), env_dtypes, "float32")
        assert torch.equal(call(a, b), expected.float())


def test_unknown_leaves() -> None:
    with pytest.raises(ValueError, match=r"uses s1.*known: s0"):
        lower(ex.Scalar("s1", "float64"), Env("float32", scalar={"s0": None}))
    with pytest.raises(ValueError, match="score"):
        lower(ex.Score(), Env("float32"))


def test_every_operator_is_lowered() -> None:
    """No operator of the language is without a meaning here."""

    def lowers(name: str, kind: str) -> bool:
        operands = [ex.Scalar(f"x{n}", kind) for n in range(ex.OPERATORS[name])]
        scalars = {leaf.name: tirx.Var(leaf.name, kind) for leaf in operands}
        try:
            lower(ex.op(name, *operands), Env("float32", scalar=scalars))
        except ValueError:
            return False
        return True

    assert not [n for n in ex.OPERATORS if not any(lowers(n, kind) for kind in ("float32", "int64", "bool"))]
