"""Generates attention programs: every choice that people make in writing attention, and single steps made wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("bhsd", "bshd", "packed", "flat", "sbhd")
PRODUCTS = ("matmul", "einsum", "bmm", "keys first")
SCALES = ("none", "query", "keys", "both", "scores", "division", "tensor")
MASKS = (
    "none",
    "causal where",
    "causal fill",
    "causal added",
    "window",
    "given bool",
    "given float",
    "padding",
    "bottom right",
)
BIASES = ("none", "by head", "alibi", "soft cap")
SOFTMAXES = ("method", "function", "float32", "by hand", "in place scores")
GROUPS = ("none", "expand", "interleave", "five dimensions", "one key head")
OUTPUTS = ("as is", "merged heads", "einsum")
WRONG = (
    "softmax over queries", "softmax over heads", "weights transposed", "weights scaled by row", "weights masked",
    "unnormalised", "weights returned", "scores returned", "changed in place", "wrong maximum", "dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """One way of writing attention; `wrong` names the step that makes it something else."""

    layout: str
    product: str
    scale: str
    mask: str
    bias: str
    softmax: str
    group: str
    output: str
    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    wrong: str = ""

    def inputs(self) -> tuple[Tensor, ...]:
        """q, k, v in the layout, and the tensors that masks and biases take."""
        g = torch.Generator().manual_seed(self.queries * 31 + self.keys)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).float()

        keys = self.queries if self.layout == "packed" else self.keys
        key_heads = {"none": self.heads, "one key head": 1}.get(self.group, self.heads // 2)
        if self.layout == "packed":
            tensors = (rand(self.batch, self.queries, (self.heads + 2 * key_heads) * self.size),)
        else:
            tensors = tuple(
                self._laid(rand(self.batch, h, s, self.size))
                for h, s in ((self.heads, self.queries), (key_heads, keys), (key_heads, keys))
            )
        seen = rand(self.batch, 1, self.queries, keys) > -0.5
        if self.queries > 1:
            seen[0, 0, 1] = False  # a row that sees no key
        padding = torch.arange(keys)[None] < torch.arange(self.batch)[:, None] + max(keys - 3, 1)
        return (*tensors, seen, rand(self.queries, keys), padding, rand(self.heads), torch.tensor(0.4))

    def _laid(self, x: Tensor) -> Tensor:
        order = {"bshd": (0, 2, 1, 3), "sbhd": (2, 0, 1, 3)}.get(self.layout, (0, 1, 2, 3))
        x = x.permute(order).contiguous()
        return x.flatten(2) if self.layout == "flat" and self.size < 0 else x

    def heads_first(self, x: Tensor) -> Tensor:
        order = {"bshd": (0, 2, 1, 3), "sbhd": (1, 2, 0, 3)}.get(self.layout, (0, 1, 2, 3))
        return x.permute(order)

    def __call__(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The program itself: what `torch.compile` traces."""
        *tensors, seen, bias, padding, slopes, factor = args
        if self.layout == "packed":
            key_heads = (tensors[0].shape[-1] // self.size - self.heads) // 2
            heads = tensors[0].unflatten(-1, (-1, self.size)).transpose(1, 2)
            q, k, v = heads.split([self.heads, key_heads, key_heads], dim=1)
        else:
            q, k, v = (self.heads_first(x) for x in tensors)
        q, k, v = self.grouped(q, k, v)
        if self.scale in ("query", "both"):
            q = q * 0.5
        if self.scale in ("keys", "both"):
            k = k / 2.0
        x = self.scores(q, k)
        if self.scale == "scores":
            x = 0.3 * x
        elif self.scale == "division":
            x = x / 1.7
        elif self.scale == "tensor":
            x = x * factor
        x = self.biased(x, slopes, bias)
        x = self.masked(x, seen, bias, padding)
        p = self.weights(x)
        out = self.weighted(p, v)
        if self.group == "five dimensions":
            out = out.flatten(1, 2)
        if self.output == "merged heads":
            out = out.transpose(1, 2).flatten(2)
        if self.wrong in ("weights returned", "scores returned"):
            return out, (p if self.wrong == "weights returned" else x)
        return out

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.group == "expand":
            k, v = (x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for x in (k, v))
        elif self.group == "interleave":
            k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        elif self.group == "five dimensions":
            q, k, v = q.unflatten(1, (-1, 2)), k[:, :, None], v[:, :, None]
        return q, k, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.product == "einsum":
            return torch.einsum("...id,...jd->...ij", q, k)
        if self.product == "keys first":
            return (k @ q.mT).mT
        if self.product == "bmm" and q.shape[:-2] == k.shape[:-2]:
            flat = torch.bmm(q.flatten(0, -3), k.flatten(0, -3).mT)
            return flat.view(*q.shape[:-1], k.shape[-2])
        return q @ k.mT

    def biased(self, x: Tensor, slopes: Tensor, bias: Tensor) -> Tensor:
        if self.bias == "none":
            return x
        if self.bias == "soft cap":
            return 5.0 * torch.tanh(x / 5.0)
        shape = (-1, 2, 1, 1) if self.group == "five dimensions" else (-1, 1, 1)
        slopes = slopes.view(shape)
        if self.bias == "alibi":
            i, j = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None]
            return x - slopes * (i - j).abs()
        return x + slopes

    def masked(self, x: Tensor, seen: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
        s, t = x.shape[-2:]
        i, j = torch.arange(s)[:, None], torch.arange(t)[None]
        batched = (slice(None), None, None, None) if self.group == "five dimensions" else (slice(None), None, None)
        if self.mask == "causal where":
            return torch.where(j <= i, x, -1e9)
        if self.mask == "causal fill":
            return x.masked_fill(torch.ones(s, t, dtype=torch.bool).triu(1), float("-inf"))
        if self.mask == "causal added":
            return x + torch.zeros(s, t).masked_fill(j > i, torch.finfo(torch.float32).min)
        if self.mask == "window":
            return x.masked_fill(~((j <= i) & (j > i - 3)), float("-inf"))
        if self.mask == "bottom right":
            return torch.where(j - i <= t - s, x, torch.finfo(torch.float32).min)
        if self.mask == "given bool":
            return x.masked_fill(~(seen[:, None] if x.ndim == 5 else seen), float("-inf"))
        if self.mask == "given float":
            return x + bias
        if self.mask == "padding":
            return x.masked_fill(~padding[batched], -1e30)
        return x

    def weights(self, x: Tensor) -> Tensor:
        over = {"softmax over queries": -2, "softmax over heads": 1}.get(self.wrong, -1)
        if self.wrong == "wrong maximum":
            e = torch.exp(x - x.amax(-2, keepdim=True))
            return e / e.sum(-1, keepdim=True)
        if self.wrong == "unnormalised":
            return torch.exp(x - x.amax(-1, keepdim=True))
        if self.softmax == "function":
            p = F.softmax(x, dim=over)
        elif self.softmax == "float32":
            p = F.softmax(x.double(), dim=over).to(x.dtype)
        elif self.softmax == "by hand":
            e = (x - x.amax(over, keepdim=True)).exp()
            p = e / e.sum(over, keepdim=True)
        elif self.softmax == "in place scores":
            x = x.clone()
            x += 1.0
            p = x.softmax(over)
        else:
            p = x.softmax(over)
        if self.wrong == "weights scaled by row":
            p = p * torch.arange(p.shape[-1])
        elif self.wrong == "weights masked":
            p = p.tril()
        elif self.wrong == "changed in place":
            p = p.contiguous()
            p[..., -1:] += 1
        elif self.wrong == "dropout":
            p = F.dropout(p, 0.5, training=True)
        return p

    def weighted(self, p: Tensor, v: Tensor) -> Tensor:
        if self.wrong == "weights transposed":
            return p.mT @ v
        if self.output == "einsum":
            return torch.einsum("...ij,...je->...ie", p, v)
        return p @ v


def programs(wrong: bool = False) -> st.SearchStrategy[Program]:
    """Programs with every combination of choices; `wrong` ones have one step that makes them something else."""

    def build(draw: Callable[[st.SearchStrategy[object]], object]) -> Program:
        pick = lambda choices: draw(st.sampled_from(choices))  # noqa: E731
        layout, wrong_step = pick(LAYOUTS), pick(WRONG) if wrong else ""
        queries = pick((2, 3, 5, 7))
        keys = queries if layout == "packed" or wrong_step == "weights transposed" else pick((2, 5, 7, 11))
        return Program(
            layout, pick(PRODUCTS), pick(SCALES), pick(MASKS), pick(BIASES), pick(SOFTMAXES), pick(GROUPS),
            pick(OUTPUTS), pick((1, 2, 3)), pick((2, 4, 6)), queries, keys, pick((2, 4, 8)), wrong_step,
        )  # fmt: skip

    return st.composite(build)()
