"""Vector polynomials against mpmath's digits (through numpy's long double), in units of the last place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from elementwise import compile_elementwise

from attncc._tvm import tirx
from attncc.algorithm import numeric

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30, -126.0, 127.99, 128.0, -800.0, 800.0, 3.4e38, -3.4e38]
REFERENCE: dict[str, tuple[Callable[[Any], Any], float]] = {
    "exp2": (np.exp2, 1.0), "exp": (np.exp, 1.5), "tanh": (np.tanh, 2.0), "log": (np.log, 2.0), "log2": (np.log2, 3.0),
    "log1p": (np.log1p, 3.0), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3.0),
    "erf": (np.vectorize(math.erf, otypes=[np.longdouble]), 2.0),
}  # fmt: skip


def arguments(name: str, dtype: str) -> Any:
    """Values where the function is interesting, then the special ones."""
    rng = np.random.default_rng(0)
    if name.startswith("log"):
        parts = [np.exp(rng.uniform(-80, 80, 20000)), rng.uniform(0.3, 3, 20000)]
        parts += [-rng.uniform(0, 0.99, 5000), rng.normal(size=5000) * 1e-6] if name == "log1p" else []
    else:
        tiny = np.exp(rng.uniform(-40, 0, 5000)) * rng.choice([-1, 1], 5000)
        parts = [rng.uniform(-130, 130, 20000), rng.normal(size=20000), tiny]
    return np.concatenate([*parts, SPECIAL]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REFERENCE)
def test_accuracy(name: str, dtype: str) -> None:
    function, limit = REFERENCE[name]
    x = arguments(name, dtype)
    call, code = compile_elementwise(getattr(numeric, name), [dtype], dtype)
    found = call(torch.from_numpy(x)).numpy()
    with np.errstate(all="ignore"):
        exact = function(x.astype(np.longdouble))
        rounded = exact.astype(dtype)
    tiny = np.finfo(dtype).tiny
    normal = np.isfinite(rounded) & (np.abs(rounded) >= tiny)
    error = np.abs(found[normal] - exact[normal]) / np.spacing(np.abs(rounded[normal]))
    assert error.max() <= limit, f"{error.max():.2f} ulp at {x[normal][error.argmax()]!r}"
    small = np.abs(rounded) < tiny
    assert np.all(np.abs(found[small]) <= 2 * tiny)
    rest = ~normal & ~small
    np.testing.assert_array_equal(found[rest], rounded[rest])
    if dtype == "float32":
        assert not re.search(r"\b(exp|log|tanh|erf)\w*@PLT", code)


def test_exp2_flushes_to_zero() -> None:
    """Exactly 0 below -126, so that a key that is far below the maximum contributes nothing at all."""
    call, _ = compile_elementwise(lambda x: numeric.exp2(x, at_most_zero=True), ["float32"], "float32")
    x = torch.tensor([-126.0, -126.0001, -800.0, -3.4e38, -math.inf, 0.0, math.nan])
    assert torch.equal(call(x)[:6], torch.tensor([2.0**-126, 0, 0, 0, 0, 1]))
    assert call(x)[6].isnan()


@pytest.mark.parametrize(("name", "expected"), [("maximum", torch.maximum), ("minimum", torch.minimum)])
def test_extrema_keep_nan(name: str, expected: Callable[..., torch.Tensor]) -> None:
    values = torch.tensor([1.0, -2.0, math.inf, -math.inf, math.nan])
    a, b = values.repeat_interleave(5), values.repeat(5)
    call, _ = compile_elementwise(getattr(numeric, name), ["float32", "float32"], "float32")
    torch.testing.assert_close(call(a, b), expected(a, b), rtol=0, atol=0, equal_nan=True)


def test_widening_inside_let() -> None:
    """TVM 0.27 reads a bfloat16's bits as an integer when it is cast in the value of a Let."""

    def squared(x: Any) -> Any:
        return numeric.share(numeric.cast("float32", x) + tirx.const(1.0, "float32"), lambda y: y * y)

    x = torch.randn(40).bfloat16()
    call, _ = compile_elementwise(squared, ["bfloat16"], "float32")
    torch.testing.assert_close(call(x), (x.float() + 1) ** 2, rtol=1e-6, atol=1e-6)
