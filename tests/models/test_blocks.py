"""Attention as other libraries write it: timm's blocks, x-transformers' options, the two attentions of a decoder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sampling import one_in
from torch import Tensor, nn

import attncc
from attncc.rewrite import Found

DIM, HEADS = 64, 4


class TimmAttention(nn.Module):
    """timm's vision transformer: packed projections, unbound, normed queries and keys, the scale on the queries."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), fused
        self.q_norm, self.k_norm = nn.LayerNorm(DIM // HEADS), nn.LayerNorm(DIM // HEADS)
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        else:
            attn = (q * (c // HEADS) ** -0.5) @ k.transpose(-2, -1)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class WindowAttention(nn.Module):
    """timm's Swin: windows in the batch, a gathered table of relative biases, the mask of shifted windows."""

    def __init__(self, window: int = 4, windows: int = 4) -> None:
        super().__init__()
        n = window * window
        self.qkv, self.windows = nn.Linear(DIM, 3 * DIM), windows
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.register_buffer("mask", torch.where(torch.rand(windows, n, n) > 0.3, 0.0, -100.0))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attn = q * (c // HEADS) ** -0.5 @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        attn = attn + bias.unsqueeze(0)
        attn = attn.view(-1, self.windows, HEADS, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(-1, HEADS, n, n).softmax(dim=-1)
        return (attn @ v).transpose(1, 2).reshape(b, n, c)


class PoolAttention(nn.Module):
    """timm's attention pooling: one learned query over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.q = nn.Parameter(torch.randn(1, 1, DIM)), nn.Linear(DIM, DIM)
        self.kv = nn.Linear(DIM, 2 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(self.latent.expand(b, -1, -1)).reshape(b, 1, HEADS, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c)


class ClassAttention(nn.Module):
    """CaiT's: the class token attends to all."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(b, 1, HEADS, c // HEADS).permute(0, 2, 1, 3) * (c // HEADS) ** -0.5
        k = self.k(x).reshape(b, n, HEADS, c // HEADS).permute(0, 2, 1, 3)
        v = self.v(x).reshape(b, n, HEADS, c // HEADS).permute(0, 2, 1, 3)
        attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return (attn @ v).transpose(1, 2).reshape(b, 1, c)


class XTransformers(nn.Module):
    """x-transformers' Attend with its options: similarities by einsum, biases, masks of finfo.max, memory keys."""

    def __init__(self, causal: bool = False, alibi: bool = False, memory: int = 0, one_kv_head: bool = False,
                 cosine: bool = False, soft_cap: float = 0.0, cross: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.causal, self.alibi, self.cosine, self.soft_cap, self.cross = causal, alibi, cosine, soft_cap, cross
        self.to_q = nn.Linear(DIM, DIM, bias=False)
        kv = DIM // HEADS if one_kv_head else DIM
        self.to_k, self.to_v = nn.Linear(DIM, kv, bias=False), nn.Linear(DIM, kv, bias=False)
        self.kv_heads = 1 if one_kv_head else HEADS
        self.memory = nn.Parameter(torch.randn(2, self.kv_heads, memory, DIM // HEADS)) if memory else None
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1))

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        b, n, _ = x.shape
        source = context if self.cross else x
        q = self.to_q(x).reshape(b, n, HEADS, -1).transpose(1, 2)
        k, v = (
            f(source).reshape(b, source.shape[1], self.kv_heads, -1).transpose(1, 2) for f in (self.to_k, self.to_v)
        )
        if self.memory is not None:
            first_k, first_v = (m.unsqueeze(0).expand(b, -1, -1, -1) for m in self.memory)
            k, v = torch.cat((first_k, k), dim=-2), torch.cat((first_v, v), dim=-2)
            if mask is not None:
                mask = nn.functional.pad(mask, (self.memory.shape[2], 0), value=True)
        scale = (DIM // HEADS) ** -0.5
        if self.cosine:
            q, k, scale = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1), 10.0
        if self.kv_heads == 1:
            dots = torch.einsum("bhid,bjd->bhij", q, k.squeeze(1)) * scale
        else:
            dots = torch.einsum("bhid,bhjd->bhij", q, k) * scale
        i, j = dots.shape[-2:]
        if self.alibi:
            rows, columns = torch.arange(j - i, j), torch.arange(j)
            dots = dots - self.slopes[:, None, None] * (columns[None, None, :] - rows[None, :, None]).abs()
        if self.soft_cap:
            dots = (dots / self.soft_cap).tanh() * self.soft_cap
        hidden = -torch.finfo(dots.dtype).max
        if mask is not None:
            dots = dots.masked_fill(~mask[:, None, None, :], hidden)
        if self.causal:
            dots = dots.masked_fill(torch.ones((i, j), dtype=torch.bool).triu(j - i + 1), hidden)
        attn = dots.softmax(dim=-1, dtype=torch.float32).type(dots.dtype)
        if self.kv_heads == 1:
            out = torch.einsum("bhij,bjd->bhid", attn, v.squeeze(1))
        else:
            out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return out.transpose(1, 2).reshape(b, n, DIM)


class DecoderBlock(nn.Module):
    """A decoder's two attentions, over itself and over an encoder's states, by PyTorch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.over = (nn.MultiheadAttention(DIM, HEADS, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, states: Tensor, padding: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.own(x, x, x, attn_mask=causal, need_weights=False)[0]
        return x + self.over(x, states, states, key_padding_mask=padding, need_weights=False)[0]


def padding(length: int) -> Tensor:
    seen = torch.ones(2, length, dtype=torch.bool)
    seen[1, length // 2 :] = False
    return seen


x, states = torch.randn(2, 13, DIM), torch.randn(2, 19, DIM)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor | None, ...], int]] = {
    "timm": (lambda: TimmAttention(fused=False), (x,), 1),
    "timm, fused": (lambda: TimmAttention(fused=True), (x,), 1),
    "timm, windows": (WindowAttention, (torch.randn(8, 16, DIM),), 1),
    "timm, pooling": (PoolAttention, (x,), 1),
    "timm, class token": (ClassAttention, (x,), 1),
    "x-transformers": (XTransformers, (x, padding(13)), 1),
    "x-transformers, causal with memory": (lambda: XTransformers(causal=True, memory=5), (x, padding(13)), 1),
    "x-transformers, ALiBi": (lambda: XTransformers(causal=True, alibi=True), (x,), 1),
    "x-transformers, one key head": (lambda: XTransformers(causal=True, one_kv_head=True), (x, padding(13)), 1),
    "x-transformers, cosine": (lambda: XTransformers(cosine=True), (x,), 1),
    "x-transformers, soft cap": (lambda: XTransformers(causal=True, soft_cap=20.0), (x,), 1),
    "x-transformers, cross": (lambda: XTransformers(cross=True), (x, padding(19), states), 1),
    "decoder block": (DecoderBlock, (x, states, ~padding(19)), 2),
}


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", one_in(2, BLOCKS))
def test_blocks_of_other_libraries(name: str, dynamic: bool, found: list[Found]) -> None:
    make, arguments, sites = BLOCKS[name]
    block = make().eval()
    actual = attncc.compile(block, dynamic=dynamic)(*arguments)
    assert [site.reason for site in found] == [""] * sites
    exact = block.double()(*[a.double() if a is not None and a.is_floating_point() else a for a in arguments])
    torch.testing.assert_close(actual.double(), exact, atol=2e-6 * float(exact.abs().max()), rtol=1e-5)
