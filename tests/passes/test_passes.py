"""Each pass alone on the smallest graph it is for, as text before and after; the order of all of them."""

from __future__ import annotations

import pytest

from attncc import ir, ir_text
from attncc.passes import PASSES
from attncc.passes.fold_views import fold_views
from attncc.passes.hoist_scale import hoist_scale
from attncc.passes.merge_bilinear import merge_bilinear
from attncc.passes.product_sum import product_sum
from attncc.passes.split_factors import split_factors
from attncc.verify import verify

QK = """
  %q: float32[a, b, c, d] = input{a: 2, b: 4, c: s0, d: 8}
  %k: float32[a, b, c, d] = input{a: 2, b: 4, c: s1, d: 8}"""

CASES = {
    "a transpose becomes the order of axes": (
        fold_views,
        f"""graph(s0=5, s1=7){QK}
  %t: float32[a, b, d, c] = view{{a: 2, b: 4, d: 8, c: s1}} %k[a, b, c, d]
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %q[a, b, c, e] * %t[a, b, e, d]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s1 | e: 8} %q[a, b, c, e] * %k[a, b, d, e]",
    ),
    "a merge of heads and batch splits the axis of its reader": (
        fold_views,
        f"""graph(s0=5, s1=7){QK}
  %m: float32[a.b, c, d] = view{{a: 2, b: 4, c: s0, d: 8}} %q[a, b, c, d]
  %n: float32[a.b, c, d] = view{{a: 2, b: 4, c: s1, d: 8}} %k[a, b, c, d]
  %s: float32[a, b, c] = contract{{a: 8, b: s0, c: s1 | d: 8}} %m[a, b, d] * %n[a, c, d]
  return %s""",
        "%s: float32[e.f, b, c] = contract{e: 2, f: 4, b: s0, c: s1 | d: 8} %q[e, f, b, d] * %k[e, f, c, d]",
    ),
    "a part of a packed tensor is an offset": (
        fold_views,
        """graph()
  %x: float32[a, b] = input{a: 3, b: 96}
  %y: float32[a, b, c, d] = view{a: 3, b: 3, c: 4, d: 8} %x[a, b * 32 + c * 8 + d]
  %k: float32[a, b, c] = view{a: 3, b: 4, c: 8} %y[a, 1, b, c]
  %e: float32[a, b, c] = map{a: 3, b: 4, c: 8} %k[a, b, c]: exp(_0)
  return %e""",
        "%e: float32[a, b, c] = map{a: 3, b: 4, c: 8} %x[a, b * 8 + c + 32]: exp(_0)",
    ),
    "a view that regroups no whole axes stays": (
        fold_views,
        """graph()
  %x: float32[a, b] = input{a: 6, b: 4}
  %y: float32[a, b] = opaque{a: 8, b: 3} aten.view.default(%x)
  %e: float32[a] = reduce{a: 8 | b: 3} sum %y[a, b]
  return %e""",
        "%e: float32[a] = reduce{a: 8 | b: 3} sum %y[a, b]",
    ),
    "a scale of the queries moves to the product": (
        hoist_scale,
        f"""graph(s0=5, s1=7){QK}
  %p: float32[a, b, c, d] = map{{a: 2, b: 4, c: s0, d: 8}} %q[a, b, c, d]: (_0 * 0.125)
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %p[a, b, c, e] * %k[a, b, d, e]
  %e: float32[a, b, c, d] = map{{a: 2, b: 4, c: s0, d: s1}} %s[a, b, c, d]: exp(_0)
  return %e""",
        "%s: float32[a, b, c, d] = map{a: 2, b: 4, c: s0, d: s1} %s.unscaled[a, b, c, d]: (_0 * 0.125)",
    ),
    "an operand that no sum moves along is a factor": (
        split_factors,
        f"""graph(s0=5, s1=7){QK}
  %t: float32[a] = input{{a: 4}}
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %q[a, b, c, e] * %t[b] * %k[a, b, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = map{a: 2, b: 4, c: s0, d: s1} %s.product[a, b, c, d], %t[b]: (_0 * _1)",
    ),
    "a matrix between queries and keys is none": (
        split_factors,
        f"""graph(s0=5, s1=7){QK}
  %w: float32[a, b] = input{{a: 8, b: 8}}
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8, f: 8}} %q[a, b, c, e] * %w[e, f] * %k[a, b, d, f]
  return %s""",
        "contract{a: 2, b: 4, c: s0, d: s1 | e: 8, f: 8} %q[a, b, c, e] * %w[e, f] * %k[a, b, d, f]",
    ),
    "a scale of what is no score stays": (
        hoist_scale,
        f"""graph(s0=5, s1=7){QK}
  %p: float32[a, b, c, d] = map{{a: 2, b: 4, c: s0, d: 8}} %q[a, b, c, d]: (_0 * 0.125)
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %p[a, b, c, e] * %k[a, b, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s1 | e: 8} %p[a, b, c, e] * %k[a, b, d, e]",
    ),
    "a gain by element stays": (
        hoist_scale,
        f"""graph(s0=5, s1=7){QK}
  %g: float32[a] = input{{a: 8}}
  %p: float32[a, b, c, d] = map{{a: 2, b: 4, c: s0, d: 8}} %q[a, b, c, d], %g[d]: (_0 * _1)
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %p[a, b, c, e] * %k[a, b, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s1 | e: 8} %p[a, b, c, e] * %k[a, b, d, e]",
    ),
    "a matrix on the head dimension joins the product": (
        merge_bilinear,
        f"""graph(s0=5, s1=7){QK}
  %w: float32[a, b] = input{{a: 8, b: 8}}
  %p: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: 8 | e: 8}} %q[a, b, c, e] * %w[e, d]
  %s: float32[a, b, c, d] = contract{{a: 2, b: 4, c: s0, d: s1 | e: 8}} %p[a, b, c, e] * %k[a, b, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s1 | e: 8, f: 8} "
        "%q[a, b, c, f] * %w[f, e] * %k[a, b, d, e]",
    ),
    "a projection to heads does not": (
        merge_bilinear,
        """graph(s0=5)
  %x: float32[a, b, c] = input{a: 2, b: s0, c: 32}
  %w: float32[a, b] = input{a: 32, b: 32}
  %k: float32[a, b, c, d] = input{a: 2, b: 4, c: s0, d: 8}
  %p: float32[a, b, c.d] = contract{a: 2, b: s0, c: 4, d: 8 | e: 32} %x[a, b, e] * %w[e, c * 8 + d]
  %s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s0 | e: 8} %p[a, c, b * 8 + e] * %k[a, b, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s0 | e: 8} %p[a, c, b * 8 + e] * %k[a, b, d, e]",
    ),
    "mul and sum are a product": (
        product_sum,
        f"""graph(s0=5, s1=7){QK}
  %m: float32[a, b, c, d, e] = map{{a: 2, b: 4, c: s0, d: s1, e: 8}} %q[a, b, c, e], %k[a, b, d, e]: (_0 * _1)
  %s: float32[a, b, c, d] = reduce{{a: 2, b: 4, c: s0, d: s1 | e: 8}} sum %m[a, b, c, d, e]
  return %s""",
        "%s: float32[a, b, c, d] = contract{a: 2, b: 4, c: s0, d: s1 | e: 8} %q[a, b, c, e] * %k[a, b, d, e]",
    ),
    "a sum along which one factor stands still is none": (
        product_sum,
        """graph()
  %x: float32[a, b] = input{a: 3, b: 4}
  %g: float32[a] = input{a: 3}
  %m: float32[a, b] = map{a: 3, b: 4} %x[a, b], %g[a]: (_0 * _1)
  %s: float32[a] = reduce{a: 3 | b: 4} sum %m[a, b]
  return %s""",
        "%s: float32[a] = reduce{a: 3 | b: 4} sum %m[a, b]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    rewrite, before, after = CASES[name]
    graph = ir_text.parse(before)
    verify(graph)
    result = rewrite(graph)
    verify(result)
    assert result.after == rewrite.__name__
    assert after in str(result)


@pytest.mark.parametrize("run", PASSES, ids=lambda p: p.__name__)
def test_passes_leave_alone_what_they_do_not_know(run) -> None:
    text = """graph(s0=5)
  %x: float32[a, b] = input{a: 3, b: s0}
  %y: float32[a, b] = opaque{a: 3, b: s0} aten.fft(%x)
  %z: none[] = opaque{} aten.sort(%y)
  return %z"""
    graph = ir_text.parse(text)
    assert run(graph).nodes == graph.nodes


def test_all_passes_give_one_node_for_attention() -> None:
    text = """graph(s0=5, s1=7)
  %q: float32[a, b, c] = input{a: 2, b: s0, c: 8}
  %k: float32[a, b, c] = input{a: 2, b: s1, c: 8}
  %v: float32[a, b, c] = input{a: 2, b: s1, c: 6}
  %s: float32[a, b, c] = contract{a: 2, b: s0, c: s1 | d: 8} %q[a, b, d] * %k[a, c, d]
  %m: float32[a, b, 1] = reduce{a: 2, b: s0 | c: s1} max %s[a, b, c]
  %e: float32[a, b, c] = map{a: 2, b: s0, c: s1} %s[a, b, c], %m[a, b, 0]: exp((_0 - _1))
  %z: float32[a, b, 1] = reduce{a: 2, b: s0 | c: s1} sum %e[a, b, c]
  %p: float32[a, b, c] = map{a: 2, b: s0, c: s1} %e[a, b, c], %z[a, b, 0]: (_0 / _1)
  %o: float32[a, b, c] = contract{a: 2, b: s0, c: 6 | d: s1} %p[a, b, d] * %v[a, d, c]
  return %o"""
    graph = ir_text.parse(text)
    for run in PASSES:
        graph = run(graph)
        verify(graph)
    node = graph.nodes["o"]
    assert isinstance(node, ir.Attention)
    assert [n.name for n in graph] == ["q", "k", "v", "o"]
    assert dict(node.roles)["b"] == ("a",)
    assert dict(node.roles)["h"] == ()
    assert node.covers == ("s", "m", "e", "z", "p")
    assert (node.spec.head_dim, node.spec.value_dim, node.spec.empty_row) == (8, 6, "nan")
