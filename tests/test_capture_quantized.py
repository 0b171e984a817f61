"""Attention over quantised caches in PyTorch programs: fused over the codes, and never over a dequantised copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from capture import capture, capture_directly
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

B, H, G, KEYS, D = 2, 4, 2, 23, 8
Program = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def inputs(dtype: torch.dtype, code: torch.dtype, scale: tuple[int, ...], heads: int = H) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    q = torch.randn(B, H, 3, D, dtype=dtype)
    if code == torch.int8:
        k, v = (torch.randint(-128, 128, (B, heads, KEYS, D), dtype=code) for _ in range(2))
    else:
        k, v = (torch.randn(B, heads, KEYS, D).to(code) for _ in range(2))
    return q, k, v, *((0.5 + torch.rand(scale)).to(dtype) / 64 for _ in range(2))


def softmax_of(scores: Tensor) -> Tensor:
    return torch.softmax(scores / math.sqrt(D), dim=-1)


def scaled_keys(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    return softmax_of(q @ (k.to(q.dtype) * ks).transpose(-1, -2)) @ (v.to(q.dtype) * vs)


def scaled_scores(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    scores = (q @ k.to(q.dtype).transpose(-1, -2)) * ks.transpose(-1, -2)
    return softmax_of(scores) @ (vs * v.to(q.dtype))


def divided(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    return softmax_of(q @ (k.to(q.dtype) / (1 / ks)).mT) @ (v.to(q.dtype) / (1 / vs))


def through_sdpa(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    return sdpa(q, k.to(q.dtype) * ks, v.to(q.dtype) * vs, is_causal=True)


def in_float32(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    keys, values = (k.float() * ks.float()).to(q.dtype), (v.float() * vs.float()).to(q.dtype)
    return sdpa(q, keys, values)


def by_einsum(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, torch.mul(k, ks))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return torch.einsum("bhij,bhjd->bhid", softmax_of(scores.masked_fill(~mask, -math.inf)), torch.mul(v, vs))


PROGRAMS: list[Program] = [scaled_keys, scaled_scores, divided, through_sdpa, in_float32]


def check(program: Program, args: tuple[Tensor, ...], codes: tuple[str | None, str | None]) -> None:
    seen = capture_directly(program, args, dynamic=True)
    assert len(seen.fused) == 1, seen.reasons
    spec = seen.fused[0].spec
    assert spec is not None
    assert (spec.key_dtype, spec.value_dtype) == codes, str(spec)
    wide = [a.double() if a.dtype != torch.int8 else a for a in args]
    expected = program(*wide)
    assert seen.result.dtype == args[0].dtype
    size = args[2].double().abs().max() * args[4].double().abs().max()
    ulp = 2.0**-23 if args[0].dtype == torch.float32 else 2.0**-8
    assert (seen.result.double() - expected).abs().max() <= 8 * ulp * size
    # nothing as large as the cache is made of it
    for graph in seen.graphs:
        made = [n for n in graph.graph.nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
        assert not [n for n in made if n.meta["val"].is_floating_point() and n.meta["val"].shape[-2:] == (KEYS, D)]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_scales_by_token(program: Program, code: torch.dtype) -> None:
    name = str(code).removeprefix("torch.")
    check(program, inputs(torch.float32, code, (B, H, KEYS, 1)), (name, name))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("scale", [(), (1,), (H, 1, 1), (B, H, 1, 1), (KEYS, 1)])
def test_other_scales(program: Program, scale: tuple[int, ...]) -> None:
    if program is scaled_scores and len(scale) < 2:
        pytest.skip("has no transpose")
    check(program, inputs(torch.bfloat16, torch.int8, scale), ("int8", "int8"))


def test_products_that_promote() -> None:
    """int8 times float32 is float32 without a cast in the program."""
    check(by_einsum, inputs(torch.float32, torch.int8, (B, H, KEYS, 1)), ("int8", "int8"))


def test_groups() -> None:
    """Key heads repeated for their query heads, codes and scales alike."""

    def expanded(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        keys, values = (
            (t.to(q.dtype) * s)[:, :, None].expand(-1, -1, H // G, -1, -1).reshape(B, H, -1, D)
            for t, s in ((k, ks), (v, vs))
        )
        return softmax_of(q @ keys.mT) @ values

    def gqa(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        return sdpa(q, k.to(q.dtype) * ks, v.to(q.dtype) * vs, enable_gqa=True)

    for program in (expanded, gqa):
        q, k, v, ks, vs = inputs(torch.float32, torch.int8, (B, G, KEYS, 1), heads=G)
        seen = capture_directly(program, (q, k, v, ks, vs))
        (found,) = seen.fused
        assert found.spec is not None and found.spec.group == H // G and found.spec.key_dtype == "int8"
        assert torch.allclose(seen.result, program(q, k, v, ks, vs), atol=1e-5)


def test_one_of_both() -> None:
    def keys_alone(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        return softmax_of(q @ (k.to(q.dtype) * ks).mT) @ v

    q, k, _, ks, vs = inputs(torch.float32, torch.int8, (B, H, KEYS, 1))
    args = (q, k, torch.randn(B, H, KEYS, D), ks, vs)
    seen = capture_directly(keys_alone, args)
    (found,) = seen.fused
    assert found.spec is not None and (found.spec.key_dtype, found.spec.value_dtype) == ("int8", None)
    assert torch.allclose(seen.result, keys_alone(*args), atol=1e-5)


@pytest.mark.parametrize("what", ["columns", "zero points"])
def test_what_is_no_factor_of_a_row(what: str) -> None:
    """Such a cache is dequantised by PyTorch, and the attention over it fused as before."""

    def program(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        if what == "columns":
            return sdpa(q, k.to(q.dtype) * ks, v.to(q.dtype) * vs)
        return sdpa(q, (k.to(q.dtype) - 3) * ks, (v.to(q.dtype) - vs) * vs)

    args = inputs(torch.float32, torch.int8, (H, 1, D))
    seen = capture_directly(program, args)
    (found,) = seen.fused
    assert found.spec is not None and (found.spec.key_dtype, found.spec.value_dtype) == (None, None)
    assert torch.allclose(seen.result, program(*args), atol=1e-5)


def test_a_cache_that_is_written() -> None:
    """The codes of new rows go into the cache before it is read."""

    def step(q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        new = (q[:, :, :1] * 40).round().clamp(-127, 127).to(torch.int8)
        k[:, :, 5:6] = new
        return sdpa(q, k.to(q.dtype) * ks, v.to(q.dtype) * vs)

    args = inputs(torch.float32, torch.int8, (B, H, KEYS, 1))
    seen = capture(step, [a.clone() for a in args])
    (found,) = seen.fused
    assert found.spec is not None and found.spec.key_dtype == "int8"
    assert torch.allclose(seen.result, step(*args), atol=1e-5)
