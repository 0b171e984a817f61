"""Ways to compute a `GpuCase`, each as a call of q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import attncc
from attncc.bench.cuda.cases import Attention, GpuCase, plain
from attncc.runtime.cuda import dispatch
from attncc.schedules.cuda.families import CUDA

Call = Callable[..., Tensor]
"""Of the inputs of a case."""
OURS, OURS_MMA = "attncc", "attncc mma.sync"
BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_EAGER_BYTES = 8 << 30
"""Of scores in float32, from which on eager attention is left out."""


def contenders(case: GpuCase, attention: Attention) -> dict[str, Call]:
    """By name, those that compute such a case; ours first."""
    found: dict[str, Call] = {OURS: ours(case, attention)}
    if by_mma(case):
        found[OURS_MMA] = _by_mma(found[OURS])
    if case.cache is not None:
        flash = _sdpa(case, attention, SDPBackend.FLASH_ATTENTION)
        return {**found, "restored, SDPA flash": lambda *given: flash(*plain(given, getattr(torch, case.dtype)))}
    if attention.plain:
        found |= {name: _sdpa(case, attention, backend) for name, backend in BACKENDS.items()}
    elif attention.matrix is not None:
        matrix, flash = attention.matrix, _sdpa(case, Attention(), SDPBackend.FLASH_ATTENTION)
        found["product, SDPA flash"] = lambda q, k, v: flash(q @ matrix, k, v)
    else:
        found["FlexAttention"] = _flex(case, attention)
    if case.batch * case.heads * case.q_len * case.kv_len * 4 <= _EAGER_BYTES and case.group != "prefill":
        found["eager"] = _eager(case, attention)
    return found


def by_mma(case: GpuCase) -> bool:
    """Whether the kernels for older GPUs are measured as well."""
    return case.group == "prefill" and case.head_dim <= 128


def ours(case: GpuCase, attention: Attention) -> Call:
    """`attncc.attention`."""
    mask = None if attention.causal else attention.mask_mod
    given: dict[str, Any] = {"score_mod": attention.score_mod, "mask_mod": mask, "bilinear": attention.matrix}
    given |= {"is_causal": attention.causal, "enable_gqa": case.heads != case.kv_heads}

    def call(q: Tensor, k: Tensor, v: Tensor, *scales: Tensor) -> Tensor:
        scaled = dict(zip(("k_scale", "v_scale"), scales, strict=False))
        out: Tensor = attncc.attention(q, k, v, **given, **scaled)
        return out

    return call


def _by_mma(call: Call) -> Call:
    """The same on the family that every GPU since Ampere has."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with families("cuda.prefill.mma"):
            return call(q, k, v)

    return run


@contextmanager
def families(*names: str) -> Iterator[None]:
    """Only those families take calls."""
    dispatch.use(tuple(family for family in CUDA if family.name in names))
    try:
        yield
    finally:
        dispatch.use(CUDA)


def _sdpa(case: GpuCase, attention: Attention, backend: SDPBackend) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            grouped = case.heads != case.kv_heads
            return scaled_dot_product_attention(q, k, v, is_causal=attention.causal, enable_gqa=grouped)

    return call


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(case: GpuCase, attention: Attention) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = None
    if attention.mask_mod is not None:
        blocks = create_block_mask(attention.mask_mod, None, None, case.q_len, case.kv_len)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = case.heads != case.kv_heads
        out: Tensor = _compiled_flex()(q, k, v, attention.score_mod, blocks, enable_gqa=grouped)
        return out

    return call


def _eager(case: GpuCase, attention: Attention) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return exactly(case, attention, q, k, v, q.dtype)

    return call


def exactly(case: GpuCase, attention: Attention, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The attention straight from its formula, in `dtype`; positions of q count from its first row."""
    group = case.heads // case.kv_heads
    wide = [t.to(dtype) for t in (q, k, v)]
    if attention.matrix is not None:
        wide[0] = wide[0] @ attention.matrix.to(dtype)
    left = wide[0].unflatten(1, (case.kv_heads, group))
    scores = (left @ wide[1].unsqueeze(2).mT * case.head_dim**-0.5).flatten(1, 2)
    b, h, i, j = _positions(scores)
    if attention.score_mod is not None:
        scores = attention.score_mod(scores, b, h, i, j)
    if attention.mask_mod is not None:
        scores = scores.masked_fill(~attention.mask_mod(b, h, i, j), float("-inf"))
    weights = scores.softmax(-1).to(dtype).unflatten(1, (case.kv_heads, group))
    return (weights @ wide[2].unsqueeze(2)).flatten(1, 2)


def _positions(scores: Tensor) -> list[Tensor]:
    sizes = scores.shape
    return [
        torch.arange(size, device=scores.device).view([-1 if d == dim else 1 for d in range(4)])
        for dim, size in enumerate(sizes)
    ]
