"""The passes that bring softmaxes into one form, as text before and after; graphs that only look alike stay."""

from __future__ import annotations

import pytest

from attncc import ir_text
from attncc.passes.distribute import distribute
from attncc.passes.divide_first import divide_first
from attncc.passes.split_concat import split_concat
from attncc.verify import verify

SCORES = """
  %x: float32[a, b] = input{a: s0, b: s1}
  %v: float32[a, b] = input{a: s1, b: 6}"""
SOFTMAX = f"""{SCORES}
  %e: float32[a, b] = map{{a: s0, b: s1}} %x[a, b]: exp(_0)
  %z: float32[a, 1] = reduce{{a: s0 | b: s1}} sum %e[a, b]
  %p: float32[a, b] = map{{a: s0, b: s1}} %e[a, b], %z[a, 0]: (_0 / _1)"""
JOINED = """
  %x: float32[a, b] = input{a: s0, b: 7}
  %t: float32[a, b] = input{a: s0, b: 1}
  %c: float32[a, b] = concat{a: s0, b: 8} 1: %x, %t"""

CASES = {
    "a sink column is a term of the sum": (
        split_concat,
        f"""graph(s0=5){JOINED}
  %e: float32[a, b] = map{{a: s0, b: 8}} %c[a, b]: exp(_0)
  %z: float32[a, 1] = reduce{{a: s0 | b: 8}} sum %e[a, b]
  return %z""",
        [
            "%z.0: float32[a, 1] = reduce{a: s0 | b: 7} sum %e[a, b]",
            "%z: float32[a, 1] = map{a: s0} %z.0[a, 0], %e[a, 7]: (_0 + _1)",
        ],
    ),
    "a sum over the other axis of a concatenation is none": (
        split_concat,
        f"""graph(s0=5){JOINED}
  %z: float32[b] = reduce{{b: 8 | a: s0}} sum %c[a, b]
  return %z""",
        ["%z: float32[b] = reduce{b: 8 | a: s0} sum %c[a, b]"],
    ),
    "a division after the product is one of the weights": (
        divide_first,
        f"""graph(s0=5, s1=7){SOFTMAX}
  %n: float32[a, b] = contract{{a: s0, b: 6 | c: s1}} %e[a, c] * %v[c, b]
  %o: float32[a, b] = map{{a: s0, b: 6}} %n[a, b], %z[a, 0]: (_0 / _1)
  return %o""",
        [
            "%o.weights: float32[a, c] = map{a: s0, c: s1} %e[a, c], %z[a, 0]: (_0 / _1)",
            "%o: float32[a, b] = contract{a: s0, b: 6 | c: s1} %o.weights[a, c] * %v[c, b]",
        ],
    ),
    "a division by something else stays": (
        divide_first,
        f"""graph(s0=5, s1=7){SOFTMAX}
  %g: float32[a] = input{{a: 6}}
  %n: float32[a, b] = contract{{a: s0, b: 6 | c: s1}} %e[a, c] * %v[c, b]
  %o: float32[a, b] = map{{a: s0, b: 6}} %n[a, b], %g[b]: (_0 / _1)
  return %o""",
        ["%o: float32[a, b] = map{a: s0, b: 6} %n[a, b], %g[b]: (_0 / _1)"],
    ),
    "a difference of softmaxes has a product each": (
        distribute,
        f"""graph(s0=5, s1=7){SOFTMAX}
  %l: float32[a] = input{{a: s0}}
  %w: float32[a, b] = map{{a: s0, b: s1}} %p[a, b], %p[a, b], %l[a]: (_0 - (_1 * _2))
  %o: float32[a, b] = contract{{a: s0, b: 6 | c: s1}} %w[a, c] * %v[c, b]
  return %o""",
        [
            "%o.0: float32[a, b] = contract{a: s0, b: 6 | c: s1} %p[a, c] * %v[c, b]",
            "%o.1: float32[a, b] = contract{a: s0, b: 6 | c: s1} %p[a, c] * %v[c, b]",
            "%o: float32[a, b] = map{a: s0, b: 6} %l[a], %o.0[a, b], %o.1[a, b]: (_1 - (_2 * _0))",
        ],
    ),
    "a factor along the keys stays": (
        distribute,
        f"""graph(s0=5, s1=7){SOFTMAX}
  %l: float32[a] = input{{a: s1}}
  %w: float32[a, b] = map{{a: s0, b: s1}} %p[a, b], %l[b]: (_0 * _1)
  %o: float32[a, b] = contract{{a: s0, b: 6 | c: s1}} %w[a, c] * %v[c, b]
  return %o""",
        ["%o: float32[a, b] = contract{a: s0, b: 6 | c: s1} %w[a, c] * %v[c, b]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    rewrite, before, after = CASES[name]
    graph = ir_text.parse(before)
    verify(graph)
    result = rewrite(graph)
    verify(result)
    lines = [line.strip() for line in str(result).splitlines()]
    assert all(line in lines for line in after)
