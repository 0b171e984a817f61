"""The passes that bring softmaxes into one form, as text before and after; graphs that only look alike stay."""

from __future__ import annotations

import pytest

from attncc import ir_text
from attncc.passes.distribute import distribute
from attncc.passes.divide_first import divide_first
from attncc.passes.join_products import join_products
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

PARTS = """
  %q: float32[a, b] = input{a: s0, b: 4}
  %k: float32[a, b] = input{a: 3, b: 4}
  %l: float32[a, b] = input{a: 2, b: 4}
  %a: float32[a, b] = contract{a: s0, b: 3 | c: 4} %q[a, c] * %k[b, c]"""
PIECES = """
  %x: float32[a, b] = input{a: s0, b: 5}
  %v: float32[a, b] = input{a: 7, b: 6}
  %w: float32[a, b] = input{a: 2, b: 6}
  %e: float32[a, b] = map{a: s0, b: 5} %x[a, b]: exp(_0)
  %z: float32[a, 1] = reduce{a: s0 | b: 5} sum %e[a, b]
  %p: float32[a, b] = map{a: s0, b: 5} %e[a, b], %z[a, 0]: (_0 / _1)
  %m: float32[a, b] = contract{a: s0, b: 6 | c: 3} %p[a, c] * %v[c, b]"""

CASES = {
    "scores side by side are one product": (
        join_products,
        f"""graph(s0=5){PARTS}
  %b: float32[a, b] = contract{{a: s0, b: 2 | c: 4}} %q[a, c] * %l[b, c]
  %c: float32[a, b] = concat{{a: s0, b: 5}} 1: %a, %b
  %t: float32[a, 1] = reduce{{a: s0 | b: 5}} max %c[a, b]
  return %t""",
        [
            "%c.joined2: float32[b, c] = concat{b: 5, c: 4} 0: %c.part0, %c.part1",
            "%c.joined3: float32[a, b] = contract{a: s0, b: 5 | c: 4} %q[a, c] * %c.joined2[b, c]",
        ],
    ),
    "scores of other queries stay apart": (
        join_products,
        f"""graph(s0=5){PARTS}
  %r: float32[a, b] = input{{a: s0, b: 4}}
  %b: float32[a, b] = contract{{a: s0, b: 2 | c: 4}} %r[a, c] * %l[b, c]
  %c: float32[a, b] = concat{{a: s0, b: 5}} 1: %a, %b
  %t: float32[a, 1] = reduce{{a: s0 | b: 5}} max %c[a, b]
  return %t""",
        ["%c: float32[a, b] = concat{a: s0, b: 5} 1: %a, %b"],
    ),
    "products that no softmax takes stay apart": (
        join_products,
        f"""graph(s0=5){PARTS}
  %b: float32[a, b] = contract{{a: s0, b: 2 | c: 4}} %q[a, c] * %l[b, c]
  %c: float32[a, b] = concat{{a: s0, b: 5}} 1: %a, %b
  return %c""",
        ["%c: float32[a, b] = concat{a: s0, b: 5} 1: %a, %b"],
    ),
    "weighted sums over parts are one": (
        join_products,
        f"""graph(s0=5){PIECES}
  %n: float32[a, b] = contract{{a: s0, b: 6 | c: 2}} %p[a, c + 3] * %w[c, b]
  %o: float32[a, b] = map{{a: s0, b: 6}} %n[a, b], %m[a, b]: (_0 + _1)
  return %o""",
        [
            "%o.joined2: float32[c, b] = concat{c: 5, b: 6} 0: %o.part0, %o.part1",
            "%o: float32[a, b] = contract{a: s0, b: 6 | c: 5} %p[a, c] * %o.joined2[c, b]",
        ],
    ),
    "parts of one value stay where they are": (
        join_products,
        f"""graph(s0=5){PIECES}
  %n: float32[a, b] = contract{{a: s0, b: 6 | c: 2}} %p[a, c + 3] * %v[c + 3, b]
  %o: float32[a, b] = map{{a: s0, b: 6}} %m[a, b], %n[a, b]: (_0 + _1)
  return %o""",
        ["%o: float32[a, b] = contract{a: s0, b: 6 | c: 5} %p[a, c] * %v[c, b]"],
    ),
    "parts of the weights that overlap stay apart": (
        join_products,
        f"""graph(s0=5){PIECES}
  %n: float32[a, b] = contract{{a: s0, b: 6 | c: 2}} %p[a, c + 2] * %w[c, b]
  %o: float32[a, b] = map{{a: s0, b: 6}} %m[a, b], %n[a, b]: (_0 + _1)
  return %o""",
        ["%o: float32[a, b] = map{a: s0, b: 6} %m[a, b], %n[a, b]: (_0 + _1)"],
    ),
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
