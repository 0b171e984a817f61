"""Attention inside of higher-order operators, and around the other things that code is made of: found all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import assert_same, capture
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import attncc

QKV = tuple(torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * 0.3, -1) @ v


def checkpointed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return checkpoint(attend, q, k, v, use_reentrant=False) * 2


def flex_checkpointed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v) + attend(q, k, v)

    return checkpoint(both, q, k, v, use_reentrant=False) * 2


def branch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cond(q.sum() > 1000, lambda q, k, v: q + k + v, attend, (q, k, v))


def loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return while_loop(lambda n, x: n < 3, lambda n, x: (n + 1, attend(x, k, v)), (torch.tensor(0), q))[1]


def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch._higher_order_ops.map(lambda x: attend(x, k[0], v[0]), q)


@torch.compiler.nested_compile_region
def region(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v)


def two_regions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return region(q, k, v) + region(q * 2, k, v)


def nested_modes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        a = attend(q, k, v)
        with torch.autocast("cpu", enabled=False):
            return attend(q, k, v), a


def two_sites(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)


def broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = attend(q, k, v)
    torch._dynamo.graph_break()
    return attend(x, k, v)


CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "checkpoint": (checkpointed, 1),
    "flex_in_checkpoint": (flex_checkpointed, 2),
    "cond": (branch, 1),
    "while_loop": (loop, 1),
    "map": (mapped, 1),
    "nested_compile_region": (two_regions, 1),
    "nested_autocast": (nested_modes, 2),
    "two_sites": (two_sites, 2),
    "graph_break": (broken, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_found_inside(name: str) -> None:
    function, sites = CASES[name]
    seen = capture(function, QKV)
    assert (len(seen.fused), seen.reasons) == (sites, [])
    assert_same(seen.result, function(*QKV))


@pytest.mark.parametrize("name", ["checkpoint", "cond"])
def test_gradients_through_bodies(name: str) -> None:
    function, _ = CASES[name]
    gradients = []
    before = attncc.stats().calls
    for run in (function, attncc.compile(function)):
        leaves = [x.clone().requires_grad_() for x in QKV]
        run(*leaves).square().sum().backward()
        gradients.append([x.grad for x in leaves])
    assert attncc.stats().calls > before
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_an_exported_program_with_a_branch() -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.no_grad():
                return branch(q, k, v) + attend(q, k, v)

    report = attncc.explain(torch.export.export(Model(), QKV), *QKV)
    assert (report.fused, len(report.sites)) == (2, 2)


class Scaled(nn.Module):
    """Attention with parametrised projections, shared between two calls, and a scale of the given kind."""

    def __init__(self, scale: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = parametrizations.weight_norm(nn.Linear(8, 8))
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = torch.softmax(self.project(q) @ self.project(k).mT * self.scale, -1) @ v
        return torch.softmax(self.project(first) @ self.project(k).mT * self.scale, -1) @ v


@pytest.mark.parametrize("scale", [0.3, torch.tensor(0.3), torch.tensor([0.3])], ids=["number", "0-d", "1-d"])
def test_scales_parametrisations_and_shared_weights(scale: Any) -> None:
    model = Scaled(scale).eval()
    seen = capture(model, QKV)
    assert (len(seen.fused), seen.reasons) == (2, [])
    assert_same(seen.result, model(*QKV).detach())


def test_a_scale_read_out_of_a_tensor() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        number = scale.item()
        return torch.softmax(q @ k.mT * number, -1) @ v

    scale = torch.tensor(0.3)
    for scalars in (False, True):
        with torch._dynamo.config.patch(capture_scalar_outputs=scalars):
            seen = capture(function, (*QKV, scale))
        assert (len(seen.fused), seen.reasons) == (1, [])
        assert_same(seen.result, function(*QKV, scale))


def test_one_function_for_several_dtypes() -> None:
    torch._dynamo.reset()
    compiled = attncc.compile(attend)
    for dtype, loose in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)):
        args = [x.to(dtype) for x in QKV]
        expected = attend(*(x.double() for x in args)).to(dtype)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(*args), expected, atol=loose, rtol=loose)
