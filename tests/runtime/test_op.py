"""The torch operator: fake kernel, autograd, torch.compile, Inductor, export, torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attncc import expr as ex
from attncc.attention import attention
from attncc.runtime import stats
from attncc.runtime.op import attention as op
from attncc.spec import AttentionSpec, Extra

SCALED = ex.op("mul", ex.Score(), ex.Scalar("s0", "float32"))
BIAS = ex.Load("t0", (ex.Index("h"), ex.Index("j")), "float32")
LATE = ex.op("le", ex.Index("j"), ex.op("add", ex.Index("i"), ex.Scalar("n0", "int64")))
SPEC = AttentionSpec(
    "float32",
    8,
    4,
    group=2,
    score_mod=ex.op("add", SCALED, BIAS),
    mask=LATE,
    extras=(Extra("t0", "float32", 2),),
    scalars=("s0",),
    integers=("n0",),
)


def arguments(grad: bool = False, batch: int = 2, q_len: int = 5, layout: str = "bhsd") -> tuple[Any, ...]:
    q, k, v = torch.randn(batch, 4, q_len, 8), torch.randn(batch, 2, 7, 8), torch.randn(batch, 2, 7, 4)
    bias = torch.randn(4, 7)
    for tensor in (q, k, v, bias):
        tensor.requires_grad_(grad)
    return q, k, v, [bias], [0.3], [2], SPEC.json, layout


@pytest.mark.parametrize(
    ("batch", "grad", "layout"),
    [
        (2, True, "bhsd"), (0, False, "bshd"),
        *(pytest.param(batch, grad, layout, marks=pytest.mark.slow) for batch, grad, layout in (
            (2, True, "bshd"), (2, False, "bhsd"), (2, False, "bshd"), (0, True, "bhsd"), (0, True, "bshd"),
            (0, False, "bhsd"))),
    ],
)  # fmt: skip
def test_opcheck(batch: int, grad: bool, layout: str) -> None:
    """PyTorch's own checks: schema, autograd registration, fake kernel, AOTAutograd with static and dynamic shapes."""
    torch.library.opcheck(torch.ops.attncc.attention.default, arguments(grad, batch, layout=layout))


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, **more: Any) -> Tensor:
    rows, keys = torch.arange(q.shape[2])[:, None], torch.arange(7)
    mask = bias[:, None, :].masked_fill(keys > rows + 2, -torch.inf).expand(4, q.shape[2], 7)
    return sdpa(q, k, v, mask, scale=0.3, enable_gqa=True, **more)


@pytest.mark.parametrize(
    "backend", ["eager", *(pytest.param(b, marks=pytest.mark.slow) for b in ("aot_eager", "inductor"))]
)
def test_compiled_forward_and_backward(backend: str) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, late: int) -> Tensor:
        out = op(q * 2, k, v, [bias], [0.3], [late], SPEC.json, "bshd")
        return out.transpose(1, 2).reshape(q.shape[0], q.shape[2], 16).relu()

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    for batch, q_len in ((2, 5), (3, 9)):
        q, k, v, (bias,), *_ = arguments(True, batch, q_len)
        got, expected = compiled(q, k, v, bias, 2), function(q, k, v, bias, 2)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(got, eager(q * 2, k, v, bias).transpose(1, 2).reshape(expected.shape).relu())
        for one, other in zip(*(torch.autograd.grad(o.sum(), (q, k, v, bias)) for o in (got, expected)), strict=True):
            torch.testing.assert_close(one, other)


class Module(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, is_causal=True)


def test_export_with_dynamic_lengths() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    length = torch.export.Dim("length")
    program = torch.export.export(Module(), (q, k, v), dynamic_shapes=[{2: length}] * 3)
    assert "torch.ops.attncc.attention.default" in program.graph_module.code
    longer = [torch.randn(2, 3, 21, 8) for _ in range(3)]
    torch.testing.assert_close(program.module()(*longer), sdpa(*longer, is_causal=True))


def test_eager_call_inside_a_compiled_function() -> None:
    table = torch.randn(31)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        masked = attention(q + 1, k, v, mask_mod=lambda b, h, i, j: j <= i)
        return attention(masked, k, v, score_mod=lambda s, b, h, i, j: s + table[i - j + 15]).relu()

    for dynamic in (False, True):
        torch._dynamo.reset()
        q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
        torch.testing.assert_close(
            torch.compile(function, backend="aot_eager", dynamic=dynamic)(q, k, v), function(q, k, v)
        )


def test_other_devices_run_as_pytorch_and_are_counted() -> None:
    """The implementation of every device without kernels, reached here with CPU tensors."""
    from attncc.runtime import op as module

    before = stats.stats().fallbacks
    got = module._one.fallback(*arguments())
    assert stats.stats().fallbacks == before + 1 and got.shape == (2, 4, 5, 4)


def test_vmap_over_an_extra_and_nested_transforms() -> None:
    q, k, v, _, *rest = arguments()
    many = torch.randn(3, 4, 7)
    mapped = torch.func.vmap(lambda t: op(q, k, v, [t], *rest))(many)
    torch.testing.assert_close(mapped, torch.stack([op(q, k, v, [t], *rest) for t in many]))
    per_sample = torch.func.vmap(torch.func.grad(lambda t: op(q, k, v, [t], *rest).sum()))(many)
    leaf = many[1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(op(q, k, v, [leaf], *rest).sum(), leaf)
    torch.testing.assert_close(per_sample[1], expected)


def test_saved_for_backward_notices_changes_in_place() -> None:
    q, k, v, extras, *rest = arguments(True)
    out = op(q, k, v, extras, *rest)
    with torch.no_grad():
        k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_nothing_is_recorded_where_no_gradient_is_asked_for() -> None:
    q, k, v, extras, *rest = arguments(True)
    with torch.no_grad():
        assert not op(q, k, v, extras, *rest).requires_grad
    with torch.inference_mode():
        assert op(q, k, v, extras, *rest).is_inference()
    detached = op(q.detach(), k.detach(), v.detach(), [extras[0].detach()], *rest)
    assert not detached.requires_grad


def test_profiles_show_the_operator() -> None:
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    with torch.profiler.profile() as profile:
        attention(q, k, v)
    assert "attncc::attention" in {event.key for event in profile.key_averages()}
