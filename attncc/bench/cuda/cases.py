"""What is measured on a GPU: sizes, and attentions as functions that FlexAttention takes as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attncc.bench.caches import quantised, restored

Function = Callable[..., Tensor]
TOKENS, WIDTH = 16384, 2048
"""Batch times length, and heads times columns, of the grid of the FlashAttention-3 paper (Shah et al., 2024)."""
LENGTHS, DIMS = (512, 1024, 2048, 4096, 8192, 16384), (64, 128, 256)


@dataclass(frozen=True)
class GpuCase:
    """One attention: q [batch, heads, q_len, head_dim], k and v [batch, kv_heads, kv_len, head_dim]."""

    group: str
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    kind: str = "full"
    dtype: str = "bfloat16"
    cache: str | None = None
    """dtype of the codes that keys and values are kept in, with a scale for each token of each head."""

    @property
    def label(self) -> str:
        """Short and complete."""
        heads = f"H{self.heads}" if self.heads == self.kv_heads else f"H{self.heads}/{self.kv_heads}"
        lengths = f"S{self.q_len}" if self.q_len == self.kv_len else f"Sq{self.q_len} Skv{self.kv_len}"
        cache = f" {self.cache} cache" if self.cache else ""
        return f"B{self.batch} {heads} {lengths} D{self.head_dim} {self.dtype} {self.kind}{cache}"

    @property
    def decode(self) -> bool:
        """Whether reading keys and values decides the time."""
        return self.q_len == 1

    @property
    def bytes(self) -> int:
        """Of keys and values, and of their scales, each read once."""
        size: int = getattr(torch, self.cache or self.dtype).itemsize
        scale = torch.float32.itemsize if self.cache else 0
        return 2 * self.batch * self.kv_heads * self.kv_len * (self.head_dim * size + scale)

    def inputs(self, device: str, seed: int = 0) -> tuple[Tensor, ...]:
        """q, k and v of unit variance; in memory [B, S, H, D], as projections make them, caches [B, H, S, D].

        Of a quantised cache: q, the codes of k and v, and their scales.
        """
        generator = torch.Generator(device).manual_seed(seed)

        def rows(heads: int, length: int) -> Tensor:
            shape = (self.batch, length, heads, self.head_dim)
            made = torch.randn(shape, generator=generator, device=device).to(getattr(torch, self.dtype))
            laid_out = made.transpose(1, 2)
            return laid_out.contiguous() if self.decode else laid_out

        q, k, v = (rows(*size) for size in ((self.heads, self.q_len), *[(self.kv_heads, self.kv_len)] * 2))
        if self.cache is None:
            return q, k, v
        (k, k_scale), (v, v_scale) = (quantised(t, self.cache) for t in (k, v))
        return q, k, v, k_scale, v_scale

    def attention(self, device: str) -> Attention:
        """What `kind` means at these sizes."""
        return KINDS[self.kind](self, device)


@dataclass(frozen=True)
class Attention:
    """Functions of the score and of positions, in FlexAttention's signatures; None where there is none."""

    score_mod: Function | None = None
    mask_mod: Function | None = None
    causal: bool = False
    """Whether the mask is the causal one, which SDPA knows by name."""
    matrix: Tensor | None = None
    """Of a bilinear score."""

    @property
    def plain(self) -> bool:
        """Whether SDPA computes it."""
        return self.score_mod is None and self.matrix is None and (self.causal or self.mask_mod is None)


def _causal(b: Any, h: Any, i: Any, j: Any) -> Tensor:
    found: Tensor = j <= i
    return found


def _alibi(case: GpuCase, device: str) -> Attention:
    slopes = torch.exp2(-8.0 * torch.arange(1, case.heads + 1, device=device) / case.heads)

    def bias(score: Tensor, b: Any, h: Any, i: Any, j: Any) -> Tensor:
        return score + slopes[h] * (j - i)

    return Attention(bias, _causal)


def _soft_cap(case: GpuCase, device: str) -> Attention:
    def cap(score: Tensor, b: Any, h: Any, i: Any, j: Any) -> Tensor:
        return 30.0 * torch.tanh(score / 30.0)

    return Attention(cap, _causal)


def _window(case: GpuCase, device: str) -> Attention:
    def near(b: Any, h: Any, i: Any, j: Any) -> Tensor:
        found: Tensor = (j <= i) & (i - j < 1024)
        return found

    return Attention(None, near)


def _documents(case: GpuCase, device: str) -> Attention:
    cuts = torch.randperm(case.kv_len - 1, generator=torch.Generator().manual_seed(0))[:7] + 1
    numbers = torch.zeros(case.kv_len, dtype=torch.int64).index_fill(0, cuts, 1).cumsum(0).to(device)

    def same(b: Any, h: Any, i: Any, j: Any) -> Tensor:
        found: Tensor = (j <= i) & (numbers[i] == numbers[j])
        return found

    return Attention(None, same)


def _bilinear(case: GpuCase, device: str) -> Attention:
    matrix = torch.randn(case.head_dim, case.head_dim, device=device) / case.head_dim**0.5
    return Attention(matrix=matrix.to(getattr(torch, case.dtype)))


KINDS: dict[str, Callable[[GpuCase, str], Attention]] = {
    "full": lambda case, device: Attention(),
    "causal": lambda case, device: Attention(None, _causal, causal=True),
    "ALiBi": _alibi, "soft cap": _soft_cap, "window 1024": _window, "8 documents": _documents, "bilinear": _bilinear,
}  # fmt: skip


def plain(given: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in `dtype`, of the inputs of a case."""
    q, k, v, *scales = given
    if scales:
        k, v = (restored(codes, scale, dtype) for codes, scale in zip((k, v), scales, strict=True))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def cases(quick: bool = False) -> tuple[GpuCase, ...]:
    """Everything that is measured; `quick` leaves a sample of it."""
    grid = [
        GpuCase("prefill", TOKENS // length, WIDTH // dim, WIDTH // dim, length, length, dim, kind)
        for dim in DIMS
        for kind in ("full", "causal")
        for length in LENGTHS
    ]
    decode = [
        GpuCase("decode", batch, heads, kv_heads, 1, kv_len, dim)
        for batch, heads, kv_heads, kv_len, dim in (
            (1, 32, 8, 2048, 128), (1, 32, 8, 8192, 128), (1, 64, 8, 65536, 128), (8, 32, 8, 8192, 128),
            (16, 32, 32, 2048, 128), (8, 32, 4, 16384, 64),
        )
    ]  # fmt: skip
    decode += [replace(case, cache=cache) for case in decode[2:4] for cache in ("int8", "float8_e4m3fn")]
    kinds = [
        GpuCase("scores and masks", 2, WIDTH // dim, WIDTH // dim, 4096, 4096, dim, kind)
        for dim in (64, 128)
        for kind in ("ALiBi", "soft cap", "window 1024", "8 documents", "bilinear")
    ]
    others = [GpuCase("others", 2, 16, 16, 2048, 2048, 64, kind, "float32") for kind in ("full", "causal")]
    others += [GpuCase("others", 8, 16, 16, 1, 2048, 64, dtype="float32")]
    others += [GpuCase("others", 2, 16, 16, 2048, 2048, 100, "full", "bfloat16")]
    everything = (*grid, *decode, *kinds, *others)
    return everything[3::6] if quick else everything
