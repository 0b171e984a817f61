"""Elementary functions of score expressions on a GPU: by its special function unit where that is exact enough.

They take the place of the polynomials that CPU kernels use (`Env.functions` of `attncc.algorithm.lower_expr`). Errors
are those of the instructions: 2 ulp or an absolute error of 1e-7 next to terms of size 1. NaN passes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attncc._tvm import T, tirx
from attncc.algorithm import numeric
from attncc.schedules.cuda.device import LOG2E, choose, exp2, instruction, number, reciprocal

_TANH = (-17 / 315, 2 / 15, -1 / 3)
"""tanh(x) = x + x z P(z), z = x^2, highest power first: the Taylor series, 4e-7 at |x| = 1/4."""


def _tanh(x: Any) -> Any:
    def both(x: Any) -> Any:
        power = exp2(x * number(2 * LOG2E))
        large = number(1.0) - number(2.0) * reciprocal(power + number(1.0))
        z = x * x
        small = x + x * z * ((number(_TANH[0]) * z + number(_TANH[1])) * z + number(_TANH[2]))
        return choose(tirx.abs(x) < number(0.25), small, large)

    return numeric.share(x, both)


def _divided(a: Any, b: Any) -> Any:
    return a * number(1.0 / b.value) if isinstance(b, tirx.FloatImm) and b.value else a / b


def _log2(x: Any) -> Any:
    return instruction("lg2.approx.ftz.f32", x)


def _extern(name: str) -> Callable[[Any], Any]:
    return lambda x: tirx.call_pure_extern("float32", name, x)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "exp": lambda x: exp2(x * number(LOG2E)),
    "exp2": exp2,
    "log": lambda x: _log2(x) * number(math.log(2.0)),
    "log2": _log2,
    "log1p": _extern("log1pf"),
    "tanh": _tanh,
    "sigmoid": lambda x: reciprocal(number(1.0) + exp2(x * number(-LOG2E))),
    "erf": _extern("erff"),
    "sqrt": _extern("sqrtf"),
    "rsqrt": _extern("rsqrtf"),
    "sin": _extern("sinf"),
    "cos": _extern("cosf"),
    "floor": _extern("floorf"),
    "ceil": _extern("ceilf"),
    "round": _extern("nearbyintf"),
    "div": _divided,
    "min": lambda a, b: instruction("min.NaN.f32", a, b),
    "max": lambda a, b: instruction("max.NaN.f32", a, b),
}
"""By the names of `attncc.expr.OPERATORS`."""


def library(dtype: str) -> Mapping[str, Callable[..., Any]]:
    """The same by CUDA's library, in float32 or float64: 2 ulp."""
    suffix = "f" if dtype == "float32" else ""
    one = tirx.const(1.0, dtype)

    def function(name: str) -> Callable[[Any], Any]:
        return lambda x: tirx.call_pure_extern(dtype, name + suffix, x)

    plain = ("exp", "exp2", "log", "log2", "log1p", "tanh", "erf", "sqrt", "rsqrt", "sin", "cos", "floor", "ceil")
    found: dict[str, Callable[..., Any]] = {name: function(name) for name in plain}
    found |= {"round": function("nearbyint"), "sigmoid": lambda x: one / (one + found["exp"](-x))}
    return {**found, "min": partial(_extreme, dtype, "min"), "max": partial(_extreme, dtype, "max")}


def _extreme(dtype: str, name: str, a: Any, b: Any) -> Any:
    """The smaller or larger of two numbers; NaN where one is NaN."""
    if dtype == "float32":
        return instruction(f"{name}.NaN.f32", a, b)
    code = (
        f"\n__device__ __forceinline__ double attncc_{name}_f64(double a, double b) "
        f"{{ return a != a ? a : b != b ? b : f{name}(a, b); }}\n"
    )
    return T.cuda.func_call(f"attncc_{name}_f64", a, b, source_code=code, return_type="float64")
