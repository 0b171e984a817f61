"""The IR: text that parses back, rules that catch broken graphs, index maps, and the conversion of operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import sympy
import torch
from capture import capture, capture_directly
from test_capture_spellings import FUSED

from attncc import expr as ex
from attncc import index as ix
from attncc import ir, ir_text
from attncc.verify import RULES, InvalidGraph, verify

SHOWN = (
    "keys_first",
    "packed_qkv",
    "grouped_by_expand",
    "causal_by_masked_fill_of_zeros",
    "sdpa_additive_mask",
    "bilinear",
)


@pytest.mark.parametrize("name", SHOWN)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    """The IR after every pass, with symbolic sizes."""
    function, args = FUSED[name]
    (history,) = capture_directly(function, args, dynamic=True).histories
    golden(f"ir/{name}.txt", "\n\n".join(str(graph) for _, graph in history) + "\n")


@pytest.mark.parametrize("dynamic", [False, True])
def test_text_parses_back(dynamic: bool) -> None:
    for name in ("projections_are_not_bilinear", "sliding_window", "relative_bias_gathered_by_distance", *SHOWN):
        function, args = FUSED[name]
        for history in capture_directly(function, args, dynamic=dynamic).histories:
            for text in (str(graph) for _, graph in history):
                graph = ir_text.parse(text)
                verify(graph)
                assert str(graph) == text
                assert ir_text.parse(str(graph)).nodes == graph.nodes


@pytest.mark.parametrize(
    "expr",
    [
        ex.op("where", ex.op("le", ex.Index("a"), ex.Index("b")), ex.Arg(0, "float16"), ex.Const(-math.inf, "float16")),
        ex.op("not", ex.op("and", ex.Arg(2, "bool"), ex.Const(True, "bool"))),
        ex.op("add", ex.Arg(0, "float32"), ex.Arg(1, "float64"), dtype="float32"),
        ex.op("cast", ex.op("floordiv", ex.Size("s0"), ex.Const(-3, "int64")), dtype="int32"),
        ex.op("pow", ex.op("neg", ex.Arg(0, "float32")), ex.Const(2.5, "float64"), dtype="float32"),
        ex.op("xor", ex.op("ne", ex.Const(float("nan"), "float16"), ex.Arg(0, "float16")), ex.Const(False, "bool")),
    ],
    ids=str,
)  # fmt: skip
def test_expressions_parse_back(expr: ex.Expr) -> None:
    assert str(ir_text.parse_expression(ir_text.expression_text(expr))) == str(expr)
    assert ex.to_json(ir_text.parse_expression(ir_text.expression_text(expr))) == ex.to_json(expr)


@pytest.mark.parametrize(
    "text", ["", "graph(", "graph()\n  %a = what\n  return %a", "graph()\n  %a: float32[] = tensor{}\n  return %a"]
)
def test_text_that_is_no_graph(text: str) -> None:
    with pytest.raises(ValueError):
        ir_text.parse(text)


def small() -> ir.Graph:
    axes, dims = (("a", 3), ("b", 4)), (("a",), ("b",))
    x = ir.Input("x", "float32", axes, dims)
    read = ir.Access("x", (ix.axis("a"), ix.axis("b")))
    y = ir.Map("y", "float32", axes, dims, (read,), ex.op("exp", ex.Arg(0, "float32")))
    z = ir.Reduce("z", "float32", axes, (("a",),), "sum", ir.Access("y", read.index))
    return ir.Graph({n.name: n for n in (x, y, z)}, ("z",))


BROKEN = {
    "every value is made before it is read": lambda g: ir.Graph({k: g.nodes[k] for k in ("y", "x", "z")}, ("z",)),
    "the data flow is acyclic": None,  # a cycle breaks the rule before, too: order is checked first
    "outputs exist": lambda g: replace(g, outputs=("w",)),
    "dimensions are made of the node's own axes": lambda g: edit(g, "x", dims=(("a",), ("a",))),
    "an access has one index a dimension": lambda g: edit(g, "z", operand=ir.Access("y", (ix.axis("a"),))),
    "an access uses the node's own axes": lambda g: edit(g, "z", operand=ir.Access("y", (ix.axis("a"), ix.axis("q")))),
    "an access stays inside the value": lambda g: edit(g, "z", operand=ir.Access("y", (ix.axis("b"), ix.axis("a")))),
    "the body of a Map fits its operands": lambda g: edit(g, "y", body=ex.op("exp", ex.Arg(1, "float32"))),
    "products and reductions are of one dtype": lambda g: edit(g, "z", kind="mean"),
    "an Attention fits its spec": None,  # below
}


def edit(graph: ir.Graph, name: str, **fields: object) -> ir.Graph:
    return replace(graph, nodes={**graph.nodes, name: replace(graph.nodes[name], **fields)})


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    verify(small())
    assert [rule for rule, _ in RULES] == list(BROKEN)
    for rule, broken in BROKEN.items():
        if broken is not None:
            with pytest.raises(InvalidGraph, match=rule.replace("'", ".")):
                verify(broken(small()))


def test_an_attention_without_its_arguments_is_invalid() -> None:
    (history,) = capture_directly(*FUSED["alibi_made_in_the_graph"]).histories
    graph = ir_text.parse(str(history[-1][1]))
    (node,) = (n for n in graph if isinstance(n, ir.Attention))
    with pytest.raises(InvalidGraph, match="extras"):
        verify(edit(graph, node.name, extras=()))


def test_bind_divides_a_merge() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    index = ix.total([ix.scaled(ix.axis("b"), s), ix.axis("h")])
    digits = ix.bind(index, [("x", 5), ("y", s)], {"b": 5, "h": s})
    assert digits == {"x": ix.axis("b"), "y": ix.axis("h")}


def test_bind_asks_for_a_split() -> None:
    with pytest.raises(ix.NeedsSplit) as split:
        ix.bind(ix.axis("z"), [("x", 5), ("y", 3)], {"z": 15})
    assert (split.value.axis, split.value.inner) == ("z", 3)


def test_bind_gives_up_where_pieces_do_not_fit() -> None:
    assert ix.bind(ix.axis("z"), [("x", 5), ("y", 4)], {"z": 15}) is None


def test_split_renames_nothing_else() -> None:
    node = small().nodes["y"].split("b", 2)
    assert node.shape == (3, 4)
    assert dict(node.axes) == {"a": 3, "c": 2, "d": 2}
    assert str(node.accesses[0].index[1]) == "c * 2 + d"
    with pytest.raises(ValueError, match="does not divide"):
        small().nodes["y"].split("a", 2)


def test_every_unknown_operator_is_opaque_and_nothing_is_refused() -> None:
    def call(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.fft.fft(x).abs()
        values, places = x.sort(-1)
        return y + values.cumsum(0), places, x.to(torch.complex64), x[x > 0].sum()

    x = torch.randn(3, 4)
    seen = capture(call, (x,))
    assert not seen.found
    assert "opaque" in str(seen.histories[0][0][1])
    assert all(torch.equal(a, b) for a, b in zip(seen.result, call(x), strict=True))


def test_in_place_changes_make_new_values() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y[:, 0] = 0
        y.mul_(2)
        return y + x

    seen = capture(call, (torch.ones(2, 3),))
    graph = ir_text.parse(str(seen.histories[0][0][1]))
    verify(graph)
    assert any(isinstance(n, ir.Opaque) and "changed in place" in n.note for n in graph)
    assert torch.equal(seen.result, torch.tensor([[1.0, 5, 5], [1, 5, 5]]))


def test_what_an_operator_of_several_results_gave_may_be_changed_in_place() -> None:
    """Mixtral's router divides topk's values in place: their storage is also that of the pair, which has no shape."""

    def call(x: torch.Tensor) -> torch.Tensor:
        weights, _ = x.softmax(-1).topk(2)
        weights /= weights.sum(-1, keepdim=True)
        return weights

    x = torch.randn(5, 4)
    assert torch.equal(capture(call, (x,)).result, call(x))
