"""Elementary functions as TIR expressions: polynomials that vectorise, where TVM's own would call libm once a lane.

Every function takes and gives scalar expressions of float32 or float64; a schedule that vectorises the loop around them
turns them into vector code. An argument used several times is bound by `Let`, so expressions do not grow with nesting.
Polynomials are fits at Chebyshev nodes in 40 digits; the docstrings state the error in units of the last place (ulp).
float64 calls libm for logarithms and `erf`: it is there for checking models, not for speed.

NaN: every function passes it on, `maximum` and `minimum` included (TIR's own `max` drops it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from attncc._tvm import Var, tirx

LOG2E = math.log2(math.e)

# 2**f = 1 + f P(f) on |f| <= 1/2, highest power first
_EXP2 = {
    "float32": (1.5453361973533561e-4, 1.3391093247266346e-3, 9.6180821833941219e-3, 5.5503566823864048e-2,
                2.4022650761348438e-1, 6.9314718811634906e-1),
    "float64": (2.5729528125665952e-11, 4.4558591123302077e-10, 7.0548971892065078e-9, 1.0178056855501161e-7,
                1.3215486808929519e-6, 1.5252733842009232e-5, 1.5403530393370558e-4, 1.3333558146406117e-3,
                9.6181291076284775e-3, 5.5504108664821628e-2, 2.4022650695910071e-1, 6.9314718055994531e-1),
}  # fmt: skip
_SHORT_EXP2 = (5.5008846522862939e-2, 2.4221117432922984e-1, 6.9328295981552513e-1)
# e**r = 1 + r + r^2 P(r) on |r| <= log(2) / 2
_EXP = {
    "float32": (1.3926391896140632e-3, 8.3633458109871111e-3, 4.1666553362644262e-2, 1.6666575985420823e-1, 0.5),
    "float64": (2.0914898727175524e-9, 2.5105513541847085e-8, 2.7557273132896040e-7, 2.7557254685728803e-6,
                2.4801587325951109e-5, 1.9841269873385480e-4, 1.3888888888883633e-3, 8.3333333333259731e-3,
                4.1666666666669670e-2, 1.6666666666666671e-1, 0.5),
}  # fmt: skip
# log(2) in two parts, the first with enough zero bits at its end for n * _LN2_HIGH to be exact
_LN2 = {
    "float32": (0.693359375, -2.12194440054690583e-4),
    "float64": (6.93147180369123816490e-1, 1.90821492927058770002e-10),
}
# tanh(x) = x + x z P(z), z = x^2, on |x| <= 0.625
_TANH = {
    "float32": (-6.0967141659081976e-3, 2.0997178999074751e-2, -5.3850909578513581e-2, 1.3332769736976328e-1,
                -3.3333328944134255e-1),
    "float64": (6.4851634827931132e-6, -3.1201101425797400e-5, 9.2571161295567683e-5, -2.3759064960555620e-4,
                5.8966065777570434e-4, -1.4557754120478055e-3, 3.5921217511549623e-3, -8.8632351032408779e-3,
                2.1869488519008306e-2, -5.3968253967896992e-2, 1.3333333333333042e-1, -3.3333333333333333e-1),
}  # fmt: skip
# log(1 + f) = f - f^2 / 2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1]
_LOG = (
    6.9716114714511778e-2, -1.1479733846637636e-1, 1.1685419923486739e-1, -1.2425687331451106e-1,
    1.4249057645697480e-1, -1.6667802319501255e-1, 2.0000715748892102e-1, -2.4999996957950882e-1,
    3.3333331180030048e-1,
)  # fmt: skip
# erf(x) = x + x P(x^2) on |x| <= 0.93, and erfc(x) = exp(x P(x)) on 0.92 <= x <= 4
_ERF = (
    8.3347186152099058e-5, -8.1347093321190566e-4, 5.2003685868649605e-3, -2.6859151472438984e-2,
    1.1283691519733097e-1, -3.7612633517140808e-1, 1.2837916662064427e-1,
)  # fmt: skip
_ERFC = (
    2.7748531289153527e-7, -4.4999551738147582e-6, 1.2793682133278371e-5, 2.7624483115952057e-4,
    -3.6686972307231209e-3, 2.4020303040535014e-2, -1.0666902192147967e-1, -6.3483862820126349e-1,
    -1.1287342411370733,
)  # fmt: skip


def dtype_of(x: tirx.Expr) -> str:
    """The dtype of an expression, as text."""
    return str(x.ty.dtype)


def const(value: float, like: tirx.Expr) -> tirx.Expr:
    """A literal of `like`'s dtype."""
    return tirx.const(value, dtype_of(like))


def cast(dtype: str, value: tirx.Expr) -> tirx.Expr:
    """`value` converted to `dtype`; itself where it has that dtype.

    bfloat16 is widened by a shift of its bits: TVM 0.27 turns a cast inside `Let` into one of its bits as an integer.
    """
    source = dtype_of(value)
    if source == dtype:
        return value
    if source == "bfloat16":
        return cast(dtype, widened(tirx.reinterpret("uint16", value)))
    return tirx.Cast(dtype, value)


def widened(bits: tirx.Expr) -> tirx.Expr:
    """The float32 number whose upper half is `bits` (uint16): the value of a bfloat16 with these bits."""
    return tirx.reinterpret("float32", tirx.shift_left(tirx.Cast("uint32", bits), tirx.const(16, "uint32")))


_BINDINGS: ContextVar[list[tuple[Var, tirx.Expr]] | None] = ContextVar("_BINDINGS", default=None)
"""Names that `share` has given in the expression under construction, with their values."""


def bound(build: Callable[[], tirx.Expr]) -> tirx.Expr:
    """The expression that `build` makes, inside one flat chain of `Let` for everything that it shares.

    Functions nest two deep at most (`lower_expr` sees to it): TVM's simplifier puts every `Let` back in place for its
    own use, and its time is exponential in the depth.
    """
    if _BINDINGS.get() is not None:
        return build()
    bindings: list[tuple[Var, tirx.Expr]] = []
    token = _BINDINGS.set(bindings)
    try:
        result = build()
    finally:
        _BINDINGS.reset(token)
    for name, value in reversed(bindings):
        result = tirx.Let(name, value, result)
    return result


def share(value: tirx.Expr, body: Callable[[tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """`body(value)` with `value` evaluated once."""
    if isinstance(value, (Var, tirx.FloatImm, tirx.IntImm)):
        return body(value)

    def build() -> tirx.Expr:
        bindings = _BINDINGS.get()
        name = Var("t", dtype_of(value))
        if bindings is not None:
            bindings.append((name, value))
        return body(name)

    return bound(build)


def is_nan(x: tirx.Expr) -> tirx.Expr:
    """Whether x is NaN. (`x != x` would not do: TVM's simplifier folds it to false.)"""
    return tirx.isnan(x)


def maximum(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The larger of both; NaN where either is NaN."""
    return tirx.call_llvm_pure_intrin(dtype_of(a), "llvm.maximum", a, b)


def true_maximum(kept: tirx.Expr, total: tirx.Expr) -> tirx.Expr:
    """The maximum of a row, of the one that its softmax kept, which may have dropped a NaN: the sum of its weights has
    not. (Of an infinite maximum the sum is NaN as well.)"""
    lost = tirx.And(is_nan(total), kept < const(math.inf, kept))
    return tirx.Select(lost, const(math.nan, kept), kept)


def minimum(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The smaller of both; NaN where either is NaN."""
    return tirx.call_llvm_pure_intrin(dtype_of(a), "llvm.minimum", a, b)


def library(name: str, x: tirx.Expr) -> tirx.Expr:
    """A function of the C library, called once a lane."""
    return tirx.call_pure_extern(dtype_of(x), name + ("f" if dtype_of(x) == "float32" else ""), x)


def nearbyint(x: tirx.Expr) -> tirx.Expr:
    """x rounded to a whole number, halves to the even one.

    Of its own operator TVM 0.27 does not know that it works on vectors, and takes the loops around it apart.
    """
    return tirx.call_llvm_pure_intrin(dtype_of(x), "llvm.nearbyint", x)


def exp2(x: tirx.Expr, *, at_most_zero: bool = False, short: bool = False) -> tirx.Expr:
    """2**x to 1 ulp: exactly 0 below -126 (-1022 for float64), +inf from 128 (1024) on; NaN passes.

    `at_most_zero` is a promise about x that saves the test for overflow; in a softmax, x - max(x) keeps it.
    `short` settles for a relative error of 1e-4, enough where the result is rounded to bfloat16 (4e-3) right away.
    """
    coefficients = _SHORT_EXP2 if short else _EXP2[dtype_of(x)]

    def polynomial(x: tirx.Expr) -> tirx.Expr:
        # no `(x + magic) - magic` to round: TVM's simplifier folds it to x
        def power(n: tirx.Expr) -> tirx.Expr:
            return share(x - n, lambda f: _scale(1.0 + f * _horner(coefficients, f), n))

        return share(nearbyint(x), power)

    return share(x, lambda x: _saturate(x, polynomial(x), 1.0, at_most_zero))


def exp(x: tirx.Expr) -> tirx.Expr:
    """e**x to 1 ulp, with the limits of `exp2`."""
    high, low = _LN2[dtype_of(x)]

    def polynomial(x: tirx.Expr) -> tirx.Expr:
        def power(n: tirx.Expr) -> tirx.Expr:
            r = (x - n * const(high, x)) - n * const(low, x)
            return share(r, lambda r: _scale(1.0 + (r + r * r * _horner(_EXP[dtype_of(x)], r)), n))

        return share(nearbyint(x * const(LOG2E, x)), power)

    return share(x, lambda x: _saturate(x, polynomial(x), 1 / LOG2E, False))


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """1 / (1 + e**-x) to 3 ulp."""
    return 1.0 / (1.0 + exp(-x))


def tanh(x: tirx.Expr) -> tirx.Expr:
    """tanh(x) to 2 ulp, near 0 as well (TVM's own expansion for float64 loses every digit there)."""

    def both(x: tirx.Expr) -> tirx.Expr:
        small = share(x * x, lambda z: x + x * (z * _horner(_TANH[dtype_of(x)], z)))
        large = share(1.0 - 2.0 / (exp(2.0 * tirx.abs(x)) + 1.0), lambda t: tirx.Select(x < 0.0, -t, t))
        return tirx.Select(tirx.abs(x) < 0.625, small, large)

    return share(x, both)


def log(x: tirx.Expr) -> tirx.Expr:
    """log(x) to 2 ulp: -inf at 0, NaN below; float64 calls libm. Numbers below the smallest normal count as 0."""
    return _log(x, 1.0) if dtype_of(x) == "float32" else library("log", x)


def log2(x: tirx.Expr) -> tirx.Expr:
    """log2(x) to 3 ulp, with the limits of `log`."""
    return _log(x, LOG2E) if dtype_of(x) == "float32" else library("log2", x)


def log1p(x: tirx.Expr) -> tirx.Expr:
    """log(1 + x) to 3 ulp, near 0 as well: log(u) x / (u - 1) with u = 1 + x rounded (Kahan)."""
    if dtype_of(x) == "float64":
        return library("log1p", x)

    def quotient(x: tirx.Expr, u: tirx.Expr) -> tirx.Expr:
        # the abs (u is positive where it matters) keeps the simplifier from folding (1 + x) - 1 to x
        step = tirx.abs(u) - 1.0
        exact = tirx.Or(tirx.EQ(step, 0.0), tirx.EQ(x, const(math.inf, x)))
        return tirx.Select(exact, x, log(u) * (x / step))

    return share(x, lambda x: share(1.0 + x, lambda u: quotient(x, u)))


def erf(x: tirx.Expr) -> tirx.Expr:
    """erf(x) to 2 ulp (float32); float64 calls libm."""
    if dtype_of(x) == "float64":
        return library("erf", x)

    def both(x: tirx.Expr) -> tirx.Expr:
        small = share(x * x, lambda z: x + x * _horner(_ERF, z))
        tail = share(minimum(tirx.abs(x), const(4.0, x)), lambda t: 1.0 - exp2(t * _horner(_ERFC, t) * const(LOG2E, x)))
        large = share(tail, lambda t: tirx.Select(x < 0.0, -t, t))
        return tirx.Select(tirx.abs(x) < 0.925, small, large)

    return share(x, both)


def _horner(coefficients: Sequence[float], x: tirx.Expr) -> tirx.Expr:
    """The polynomial with these coefficients, highest power first, at x (an expression that may be repeated)."""
    value = const(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = value * x + const(coefficient, x)
    return value


def _scale(mantissa: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
    """mantissa * 2**n for integral n, by adding n to the exponent bits."""
    bits, shift = ("int32", 23) if dtype_of(n) == "float32" else ("int64", 52)
    power = tirx.shift_left(tirx.Cast(bits, n), tirx.const(shift, bits))
    return tirx.reinterpret(dtype_of(n), tirx.reinterpret(bits, mantissa) + power)


def _saturate(x: tirx.Expr, power: tirx.Expr, unit: float, at_most_zero: bool) -> tirx.Expr:
    """`power`, a power of 2 with exponent x / unit, but 0 and inf outside the range of normal numbers."""
    low, high = (-126, 128) if dtype_of(x) == "float32" else (-1022, 1024)
    flushed = tirx.Select(x < const(low * unit, x), const(0.0, x), power)
    return flushed if at_most_zero else tirx.Select(x >= const(high * unit, x), const(math.inf, x), flushed)


def _log(x: tirx.Expr, unit: float) -> tirx.Expr:
    """log(x) * unit in float32: x = 2**n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))."""
    offset = 0x3F3504F3  # the bits of sqrt(1/2): subtracting them leaves n in the exponent field

    def reduced(bits: tirx.Expr) -> tirx.Expr:
        field = tirx.const(23, "int32")
        n = tirx.shift_right(bits - tirx.const(offset, "int32"), field)
        return share(n, lambda n: series(n, tirx.reinterpret("float32", bits - tirx.shift_left(n, field))))

    def series(n: tirx.Expr, m: tirx.Expr) -> tirx.Expr:
        e = tirx.Cast("float32", n)
        high, low = _LN2["float32"]

        def total(f: tirx.Expr) -> tirx.Expr:
            rest = f * f * (f * _horner(_LOG, f) - 0.5)
            if unit == 1.0:
                return (e * const(low, f) + rest + f) + e * const(high, f)
            return (f + rest) * const(unit, f) + e

        return share(m - 1.0, total)

    def limits(x: tirx.Expr) -> tirx.Expr:
        tiny = tirx.Select(x < 0.0, const(math.nan, x), const(-math.inf, x))
        finite = reduced(tirx.reinterpret("int32", x))
        unbounded = tirx.Or(is_nan(x), tirx.EQ(x, const(math.inf, x)))
        return tirx.Select(x < const(1.17549435e-38, x), tiny, tirx.Select(unbounded, x, finite))

    return share(x, limits)
