"""`attncc::attention_outputs`: row statistics and weights beside the result; sinks; no normalizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sampling import one_in
from torch import Tensor

from attncc import expr as ex
from attncc import reference
from attncc.runtime import eager
from attncc.runtime.op import attention as op
from attncc.runtime.op import attention_outputs as op_outputs
from attncc.spec import AttentionSpec, Extra

CAUSAL = ex.op("le", ex.Index("j"), ex.Index("i"))
SINK = ex.Load("t0", (ex.Index("h"),), "float32")
SPEC = AttentionSpec(
    "float32", 8, 4, group=2, mask=CAUSAL, sink=SINK, outputs=("out", "max", "sum"), extras=(Extra("t0", "float32", 1),)
)
NO_SINK = AttentionSpec("float32", 8, 4, group=2, mask=CAUSAL, outputs=("out", "max", "sum", "weights"))
ADDITIVE = AttentionSpec(
    "float32",
    8,
    4,
    group=2,
    element=ex.op(
        "mul",
        ex.Load("t0", (ex.Index("h"), ex.Index("d")), "float32"),
        ex.op("tanh", ex.op("add", ex.Elem("q"), ex.Elem("k"))),
    ),
    extras=(Extra("t0", "float32", 2),),
)
UNNORMALIZED = AttentionSpec(
    "float32",
    8,
    4,
    group=2,
    normalizer="none",
    score_mod=ex.op("sigmoid", ex.Score()),
    mask=CAUSAL,
    fill=0.0,
    outputs=("out", "weights"),
)


def arguments(
    spec: AttentionSpec = SPEC, grad: bool = False, batch: int = 2, q_len: int = 5, kv_len: int = 7
) -> tuple[Any, ...]:
    q, k, v = torch.randn(batch, 4, q_len, 8), torch.randn(batch, 2, kv_len, 8), torch.randn(batch, 2, kv_len, 4)
    extras = [torch.randn([4, 8][: extra.rank]) for extra in spec.extras]
    for tensor in (q, k, v, *extras):
        tensor.requires_grad_(grad)
    return q, k, v, extras, [], [], spec.json, "bhsd"


def formula(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> dict[str, Tensor]:
    """`SPEC`, as a person would write it."""
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    x = (q @ k.mT).masked_fill(hidden, -torch.inf)
    columns = torch.cat([x, sink[:, None, None].expand(*x.shape[:3], 1)], -1)
    lse = torch.logsumexp(columns, -1)
    return {"out": (x - lse[..., None]).exp() @ v, "lse": lse, "max": columns.amax(-1)}


@pytest.mark.parametrize(("grad", "batch"), [(True, 2), (False, 0)])
def test_opcheck(grad: bool, batch: int) -> None:
    """PyTorch's own checks: schema, autograd registration, fake kernel, AOTAutograd with static and dynamic shapes."""
    torch.library.opcheck(torch.ops.attncc.attention_outputs.default, arguments(SPEC, grad, batch))


@pytest.mark.parametrize("kv_len", [0, 7])
@pytest.mark.parametrize("spec", one_in(2, [SPEC, NO_SINK, ADDITIVE, UNNORMALIZED]))
@pytest.mark.parametrize("how", ["kernel", "eager"])
def test_all_outputs(spec: AttentionSpec, kv_len: int, how: str) -> None:
    """Against the oracle: values, shapes and dtypes, without keys too."""
    for dtype in ("float32", "bfloat16"):
        q, k, v, extras, _, _, text, layout = arguments(spec, kv_len=kv_len)
        q, k, v = (t.to(getattr(torch, dtype)) for t in (q, k, v))
        text = replace(spec, dtype=dtype).json
        if how == "kernel":
            found = op_outputs(q, k, v, extras, [], [], text, layout)
            torch.testing.assert_close(op(q, k, v, extras, [], [], text, layout), found[0])
        else:
            found = eager.outputs(AttentionSpec.from_json(text), (q, k, v, extras, [], []))
        exact = reference.outputs(spec, q, k, v, extras)
        assert len(found) == len(spec.outputs)
        for name, tensor in zip(spec.outputs, found, strict=True):
            assert tensor.dtype == (torch.float32 if name in ("max", "sum") else q.dtype)
            tolerance = 2e-2 if tensor.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(tensor.double(), exact[name], rtol=tolerance, atol=tolerance)


def test_gradients_flow_into_every_output() -> None:
    """The maximum and the sum are differentiated as their formulas, so that lse = max + log(sum) is exact."""
    q, k, v, (sink,), *rest = arguments(grad=True)
    leaves = (q, k, v, sink)
    expected = formula(*leaves)
    out, top, total = op_outputs(q, k, v, [sink], *rest)
    got = {"out": out, "lse": top + total.log(), "max": top}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name])
        grad = torch.randn_like(value)
        asked = leaves if name == "out" else (q, k, sink)
        for one, other in zip(
            torch.autograd.grad(value, asked, grad, retain_graph=True),
            torch.autograd.grad(expected[name], asked, grad, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    (nothing,) = torch.autograd.grad(top.sum(), v, allow_unused=True)
    assert nothing is None


def test_gradients_of_weights_and_of_additive_scores() -> None:
    q, k, v, _, *rest = arguments(NO_SINK, grad=True)
    out, _, _, weights = op_outputs(q, k, v, [], *rest)
    hidden = torch.ones(5, 7, dtype=torch.bool).triu(1)
    expected = (q @ k.repeat_interleave(2, 1).mT).masked_fill(hidden, -torch.inf).softmax(-1)
    grad = torch.randn_like(weights)
    for one, other in zip(
        torch.autograd.grad([out, weights], (q, k, v), [torch.ones_like(out), grad]),
        torch.autograd.grad([expected @ v.repeat_interleave(2, 1), expected], (q, k, v), [torch.ones_like(out), grad]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)

    q, k, v, (w,), *rest = arguments(ADDITIVE, grad=True)
    got = op(q, k, v, [w], *rest)
    hidden_units = torch.tanh(q[:, :, :, None] + k.repeat_interleave(2, 1)[:, :, None])
    expected = torch.einsum("bhijd,hd->bhij", hidden_units, w).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(got, expected)
    for one, other in zip(
        torch.autograd.grad(got.sum(), (q, k, w)), torch.autograd.grad(expected.sum(), (q, k, w)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_compiled_exported_and_transformed() -> None:
    """One function through torch.compile, export, vmap over the sinks and per-sample gradients of the lse."""
    q, k, v, (sink,), *rest = arguments()

    def lse(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        out, top, total = op_outputs(q, k, v, [sink], *rest)
        return top + total.log() + out.sum(-1)

    expected = lse(q, k, v, sink)
    compiled = torch.compile(lse, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(q, k, v, sink), expected)

    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
            return lse(q, k, v, sink)

    program = torch.export.export(Module(), (q, k, v, sink), dynamic_shapes=[{2: torch.export.Dim("rows")}, {}, {}, {}])
    torch.testing.assert_close(program.module()(q[:, :, :3], k, v, sink), expected[:, :, :3])

    many = torch.randn(3, 4)
    torch.testing.assert_close(
        torch.func.vmap(lambda s: lse(q, k, v, s))(many), torch.stack([lse(q, k, v, s) for s in many])
    )
    per_sample = torch.func.vmap(torch.func.grad(lambda s: lse(q, k, v, s).sum()))(many)
    leaf = many[1].clone().requires_grad_()
    (one,) = torch.autograd.grad(lse(q, k, v, leaf).sum(), leaf)
    torch.testing.assert_close(per_sample[1], one)


def test_the_plain_operator_gives_the_first_output_of_any_spec() -> None:
    call = arguments(NO_SINK)
    torch.testing.assert_close(
        torch.ops.attncc.attention.default(*call), torch.ops.attncc.attention_outputs.default(*call)[0]
    )
