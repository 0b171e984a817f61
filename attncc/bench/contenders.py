"""The ways to compute an attention that `attncc bench` compares: each takes q, k, v of a `Case`.

One that has no such attention raises `Absent` with the reason. Where a case wants more than the attention (`outputs`),
all give a tuple.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import attncc
from attncc.bench import engines, masks
from attncc.bench.caches import quantised, restored
from attncc.bench.cases import Case
from attncc.bench.engines import Absent
from attncc.bench.scores import ADDITIVE, written_out

Attention = Callable[[Tensor, Tensor, Tensor], Any]


def eager(case: Case) -> Attention:
    """Two matmuls and a softmax, as a model spells them out."""
    group = case.heads // case.kv_heads
    keep, mod = case.visible(case.all_rows), case.score_mod()
    weight, rows = case.weight() if case.bilinear else None, case.all_rows

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = (q if weight is None else q @ weight) @ k.transpose(-2, -1) / case.head_dim**0.5
        if mod is not None:
            scores = written_out(mod, scores, rows).to(q.dtype)
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        weights = scores.softmax(dim=-1)
        out = weights @ v
        if case.outputs == "lse":
            return out, scores.logsumexp(-1)
        return (out, weights) if case.outputs else out

    return _restoring(case, attention)


def inductor(case: Case) -> Attention:
    """The same under `torch.compile` with PyTorch's own compiler."""
    compiled: Attention = torch.compile(eager(case), dynamic=False, fullgraph=True)
    return compiled


def captured(case: Case) -> Attention:
    """The same under `torch.compile` with attncc's."""
    compiled: Attention = torch.compile(eager(case), backend="attncc", dynamic=False, fullgraph=True)
    return compiled


def sdpa(case: Case) -> Attention:
    """`scaled_dot_product_attention`; masks but the causal one alone, and biases, are written out beforehand.

    Biases are float32, which SDPA takes for queries of any dtype: in bfloat16, ALiBi's are off by several units.
    """
    return _sdpa(case, case.only_causal and case.score is None)


def sdpa_tensor(case: Case) -> Attention:
    """The same with every mask as a tensor."""
    return _sdpa(case, False)


def sdpa_graph(case: Case) -> Attention:
    """The same behind Dynamo's guards, which `captured` has too."""
    compiled: Attention = torch.compile(sdpa(case), backend="eager", dynamic=False, fullgraph=True)
    return compiled


def _sdpa(case: Case, by_flag: bool) -> Attention:
    if case.outputs:
        raise Absent(f"gives no {case.outputs}")
    causal, grouped = by_flag and case.causal, case.heads != case.kv_heads
    mask, weight = None if causal else additive_mask(case), case.weight() if case.bilinear else None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if weight is not None:
            q = q @ weight
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)

    return _restoring(case, attention)


def _restoring(case: Case, attention: Attention) -> Attention:
    """`attention` on a quantised cache, where there is one, whose rows are restored in every call."""
    if case.cache is None:
        return attention

    def on_rows(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, *(restored(codes, scales, q.dtype) for codes, scales in (cache(k), cache(v))))

    cache = Quantising(case.cache)
    return on_rows


class Quantising:
    """Codes and scales of the tensors that it is called with, made once."""

    def __init__(self, cache: str) -> None:
        """`cache` is a name in `caches.CACHES`."""
        self.cache = cache
        self.made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, G, S, D] and scales [B, G, S] of `rows`."""
        kept = self.made.get(id(rows))
        if kept is None:
            kept = self.made[id(rows)] = (
                rows,
                *quantised(rows, self.cache),
            )  # kept alive, so that its id stays its own
        return kept[1:]


def additive_mask(case: Case) -> Tensor | None:
    """Mask and bias of `case` written out: boolean, or float32 where there is a bias; None where there is neither.

    Raises `Absent` for a score that is not a sum with something.
    """
    keep, mod = case.visible(case.all_rows), case.score_mod()
    if mod is None:
        return keep
    if case.score not in ADDITIVE:
        raise Absent(f"has no {case.score}")
    bias = written_out(mod, torch.zeros(1, case.heads, case.q_len, case.kv_len), case.all_rows)
    return bias if keep is None else bias.masked_fill(~keep, -math.inf)


def flex(case: Case) -> Attention:
    """FlexAttention, compiled, with a BlockMask; of all keys where there is no mask."""
    from torch.nn.attention.flex_attention import create_block_mask, noop_mask

    batch = None if case.padded is None else case.batch
    mod = masks.mask_mod(case) or noop_mask
    return _flex(case, create_block_mask(mod, batch, None, case.q_len, case.kv_len, device="cpu"), case.score_mod())


def flex_dense(case: Case) -> Attention:
    """The same without: the mask is part of the score function."""
    keep, mod = masks.mask_mod(case), case.score_mod()
    if keep is None:
        return _flex(case, None, mod)

    def score_mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(keep(b, h, i, j), s if mod is None else mod(s, b, h, i, j), -math.inf)

    return _flex(case, None, score_mod)


def _flex(case: Case, blocks: Any, score_mod: Any) -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    if case.outputs == "weights":
        raise Absent("gives no weights")
    if case.cache is not None:
        raise Absent("has no quantised cache")
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped, lse = case.heads != case.kv_heads, case.outputs == "lse"
    weight = case.weight() if case.bilinear else None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
        if weight is not None:
            q = q @ weight
        return compiled(q, k, v, score_mod=score_mod, block_mask=blocks, enable_gqa=grouped, return_lse=lse)

    return attention


def fused(case: Case) -> Attention:
    """`attncc.attention`; a mask is a `mask_mod`, a bias a `score_mod`, neither ever written out."""
    mask_mod = None if case.only_causal else masks.mask_mod(case)
    named: dict[str, Any] = {
        "is_causal": case.causal and mask_mod is None,
        "enable_gqa": case.heads != case.kv_heads,
        "mask_mod": mask_mod,
        "score_mod": case.score_mod(),
        "bilinear": case.weight() if case.bilinear else None,
        "return_lse": case.outputs == "lse",
        "return_weights": case.outputs == "weights",
    }
    options = {name: value for name, value in named.items() if value is not None and value is not False}

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attncc.attention(q, k, v, **options)

    if case.cache is not None:
        return _on_codes(case.cache, options)
    return attention if case.threads is None else _on_threads(attention, case.threads)


def _on_codes(name: str, options: dict[str, Any]) -> Attention:
    cache = Quantising(name)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
        (k_codes, k_scale), (v_codes, v_scale) = cache(k), cache(v)
        return attncc.attention(q, k_codes, v_codes, k_scale=k_scale, v_scale=v_scale, **options)

    return attention


def _on_threads(attention: Attention, threads: int) -> Attention:
    def limited(q: Tensor, k: Tensor, v: Tensor) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return attention(q, k, v)
        finally:
            torch.set_num_threads(before)

    return limited


def openvino(case: Case) -> Attention:
    """OpenVINO's attention, in the dtype of the case."""
    return engines.openvino(case, additive_mask)


def onnxruntime(case: Case) -> Attention:
    """ONNX Runtime's."""
    return engines.onnxruntime(case, additive_mask)


CONTENDERS: Mapping[str, Callable[[Case], Attention]] = {
    "eager": eager,
    "sdpa": sdpa,
    "sdpa-tensor": sdpa_tensor,
    "sdpa-graph": sdpa_graph,
    "flex": flex,
    "flex-dense": flex_dense,
    "inductor": inductor,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "captured": captured,
    "attncc": fused,
}
"""By the name that tables show. attncc comes last."""
DEFAULT = ("eager", "sdpa", "flex", "inductor", "attncc")
"""Those of a single shape, where none are asked for."""
