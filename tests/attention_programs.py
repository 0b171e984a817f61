"""Generates attention programs: every choice that people make in writing attention, and single steps made wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from attention_masks import HIDINGS, Mask, Pick, a_mask, hide
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("bhsd", "bshd", "packed", "sbhd", "batch of heads")
MEMORIES = ("dense", "offset", "expanded", "strided")
PRODUCTS = ("matmul", "einsum", "bmm", "keys first", "sum", "baddbmm", "keys in parts")
SCALES = ("none", "query", "keys", "both", "scores", "division", "tensor", "shape", "in place")
BIASES = ("none", "by head", "alibi", "soft cap", "table", "full", "clamp")
SOFTMAXES = (
    "method", "function", "wider", "by hand", "in place scores", "without maximum", "logsumexp", "log_softmax",
    "divided after", "plus one", "sink column", "sigmoid", "relu", "shifted",
)  # fmt: skip
GROUPS = ("none", "expand", "interleave", "five dimensions", "one key head", "by index")
OUTPUTS = ("as is", "merged heads", "einsum", "transposed", "values in parts")
RESULTS = ("out", "weights", "mean weights", "logsumexp", "maximum")
WRONG = (
    "softmax over queries", "softmax over heads", "weights transposed", "weights scaled by key", "weights masked",
    "unnormalised", "changed in place", "wrong maximum", "dropout", "weights rolled", "scores summed up",
    "scores sorted", "two softmaxes", "sum with epsilon", "half of the keys", "values of the query", "scores masked by"
    " scores", "query changed between", "key changed after", "weights rounded", "normalised twice", "sum of queries",
)  # fmt: skip
PLAIN = ("method", "function", "wider", "by hand")
"""Softmaxes whose weights are a result like any other."""
HARMLESS = ("half of the keys", "values of the query", "scores masked by scores", "query changed between",
            "unnormalised", "key changed after", "normalised twice", "weights scaled by key",
            "weights masked")  # fmt: skip
"""Wrong steps that make another attention, which may be fused: only the result counts."""


@dataclass(frozen=True)
class Program:
    """One way of writing attention; `wrong` names the step that makes it something else."""

    layout: str
    memory: str
    product: str
    scale: str
    mask: Mask | None
    hiding: str
    bias: str
    softmax: str
    group: str
    output: str
    result: str
    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    large: bool
    wrong: str = ""

    def inputs(self) -> tuple[Tensor, ...]:
        """q, k, v in the layout, and the tensors that masks and biases take."""
        g = torch.Generator().manual_seed(self.queries * 31 + self.keys)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).float()

        keys = self.queries if self.layout == "packed" else self.keys
        key_heads = {"none": self.heads, "one key head": 1}.get(self.group, self.heads // 2)
        if self.layout == "packed":
            tensors = [rand(self.batch, self.queries, (self.heads + 2 * key_heads) * self.size)]
        else:
            shapes = ((self.heads, self.queries), (key_heads, keys), (key_heads, keys))
            tensors = [self.laid(rand(self.batch, h, s, self.size)) for h, s in shapes]
        if self.large:
            tensors[0] = tensors[0] * 20
        seen = rand(self.batch, 1, self.queries, keys) > -0.5
        if self.queries > 1:
            seen[0, 0, 1] = False  # a row that sees no key
        numbers = torch.arange(keys)[None] // 3 + torch.arange(self.batch)[:, None]
        lengths = torch.arange(self.batch) + max(keys - 3, 1)
        bias = rand(self.batch, self.heads, self.queries, keys)
        given = (*(self.stored(x) for x in tensors), seen, numbers, lengths, bias, rand(24, self.heads))
        return (*given, rand(self.heads), torch.tensor(0.4))

    def laid(self, x: Tensor) -> Tensor:
        order = {"bshd": (0, 2, 1, 3), "sbhd": (2, 0, 1, 3)}.get(self.layout, (0, 1, 2, 3))
        x = x.permute(order).contiguous()
        return x.flatten(0, 1) if self.layout == "batch of heads" else x

    def stored(self, x: Tensor) -> Tensor:
        """The same values in another place of memory, but for `expanded`, where the first counts for all."""
        if self.memory == "offset":
            return torch.cat([x[:1], x])[1:]
        if self.memory == "expanded" and self.layout != "batch of heads":
            return x[:1].expand_as(x)
        return x.mT.contiguous().mT if self.memory == "strided" else x

    def heads_first(self, x: Tensor) -> Tensor:
        order = {"bshd": (0, 2, 1, 3), "sbhd": (1, 2, 0, 3)}.get(self.layout, (0, 1, 2, 3))
        x = x.unflatten(0, (self.batch, -1)) if self.layout == "batch of heads" else x
        return x.permute(order)

    def __call__(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The program itself: what `torch.compile` traces."""
        *tensors, seen, numbers, lengths, bias, table, slopes, factor = args
        if self.layout == "packed":
            key_heads = (tensors[0].shape[-1] // self.size - self.heads) // 2
            heads = tensors[0].unflatten(-1, (-1, self.size)).transpose(1, 2)
            q, k, v = heads.split([self.heads, key_heads, key_heads], dim=1)
        else:
            q, k, v = (self.heads_first(x) for x in tensors)
        q, k, v = self.grouped(q, k, v)
        if self.scale in ("query", "both"):
            q = q * 0.5
        elif self.scale == "shape":
            q = q / q.shape[-1] ** 0.5
        if self.scale in ("keys", "both"):
            k = k / 2.0
        if self.wrong == "query changed between":
            q = q + q.roll(1, -2)
        if self.wrong in ("key changed after", "half of the keys"):
            k = k.clone()
        x = self.scaled(self.scores(q, k), factor)
        if self.wrong == "key changed after":
            k.mul_(3)
            v = v + k
        x = self.biased(x, bias, table, slopes)
        if self.mask is not None:
            visible = self.mask(x.shape[-2], x.shape[-1], seen, numbers, lengths)
            x = hide(self.hiding, x, visible.unsqueeze(1) if self.group == "five dimensions" else visible)
        if self.wrong == "half of the keys":
            x, v = x[..., ::2], v[..., ::2, :]
        elif self.wrong in SCORE_STEPS:
            x = SCORE_STEPS[self.wrong](x)
        out, p = self.attended(x, v, slopes)
        if self.group == "five dimensions":
            out = out.flatten(1, 2)
        if self.output == "merged heads":
            out = out.transpose(1, 2).flatten(2)
        elif self.output == "transposed":
            out = out.mT.contiguous()
        more = {"weights": lambda: p, "mean weights": lambda: p.mean(1), "logsumexp": lambda: x.logsumexp(-1),
                "maximum": lambda: x.amax(-1)}  # fmt: skip
        return (out, more[self.result]()) if self.result in more else out

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.group == "expand":
            k, v = (x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for x in (k, v))
        elif self.group == "interleave":
            k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        elif self.group == "by index":
            k, v = (x[:, torch.arange(self.heads) // 2] for x in (k, v))
        elif self.group == "five dimensions":
            q, k, v = q.unflatten(1, (-1, 2)), k[:, :, None], v[:, :, None]
        return q, k, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if self.product == "einsum":
            return torch.einsum("...id,...jd->...ij", q, k)
        if self.product == "keys first":
            return (k @ q.mT).mT
        if self.product == "keys in parts" and self.has_parts(k.shape[-2]):
            return torch.cat([q @ k[..., :-1, :].mT, q @ k[..., -1:, :].mT], -1)
        if self.product == "sum":
            return (q[..., :, None, :] * k[..., None, :, :]).sum(-1)
        if self.product in ("bmm", "baddbmm") and q.shape[:-2] == k.shape[:-2]:
            a, b = q.flatten(0, -3), k.flatten(0, -3).mT
            nothing = torch.zeros((), dtype=a.dtype).expand(a.shape[0], a.shape[1], b.shape[2])
            flat = torch.bmm(a, b) if self.product == "bmm" else torch.baddbmm(nothing, a, b, beta=0.5)
            return flat.view(*q.shape[:-1], k.shape[-2])
        return q @ k.mT

    def has_parts(self, keys: int) -> bool:
        """Whether keys can lie in two tensors and be seen as one attention: under a softmax, more than two of them."""
        return keys > 2 and self.softmax not in ("sigmoid", "relu")

    def scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        if self.scale == "in place":
            x *= 0.3
            return x
        return {"scores": 0.3 * x, "division": x / 1.7, "tensor": x * factor}.get(self.scale, x)

    def biased(self, x: Tensor, bias: Tensor, table: Tensor, slopes: Tensor) -> Tensor:
        five = self.group == "five dimensions"
        i, j = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None]
        if self.bias == "soft cap":
            return 5.0 * torch.tanh(x / 5.0)
        if self.bias == "clamp":
            return x.clamp(-2.0, 2.0)
        if self.bias == "full":
            return x + (bias.unflatten(1, (-1, 2)) if five else bias)
        if self.bias == "table":
            by_head = table[(i - j) % 24].permute(2, 0, 1)
            return x + (by_head.unflatten(0, (-1, 2)) if five else by_head)
        by_head = slopes.view((-1, 2, 1, 1) if five else (-1, 1, 1))
        return {"alibi": x - by_head * (i - j).abs(), "by head": x + by_head}.get(self.bias, x)

    def attended(self, x: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum, and the weights."""
        if self.softmax == "divided after" and not self.wrong:
            e = (x - x.amax(-1, keepdim=True)).exp()
            total = e.sum(-1, keepdim=True)
            return self.weighted(e, v) / total, e / total
        p = self.weights(x, slopes)
        return self.weighted(p, v), p

    def weights(self, x: Tensor, slopes: Tensor) -> Tensor:
        over = {"softmax over queries": -2, "softmax over heads": 1}.get(self.wrong, -1)
        if self.wrong == "wrong maximum":
            e = torch.exp(x - x.amax(-2, keepdim=True))
            return e / e.sum(-1, keepdim=True)
        if self.wrong == "unnormalised":
            return torch.exp(x - x.amax(-1, keepdim=True))
        if self.wrong == "sum with epsilon":
            e = torch.exp(x - x.amax(-1, keepdim=True))
            return e / (e.sum(-1, keepdim=True) + 0.25)
        if self.wrong == "sum of queries":
            e = torch.exp(x - x.amax((-1, -2), keepdim=True))
            return e / e.sum((-1, -2), keepdim=True)
        p = self.softmaxed(x, over, slopes)
        return WEIGHT_STEPS[self.wrong](p) if self.wrong in WEIGHT_STEPS else p

    def softmaxed(self, x: Tensor, over: int, slopes: Tensor) -> Tensor:
        """The weights in one of the spellings; all but the last five are softmaxes."""
        if self.softmax == "wider":
            return F.softmax(x.double(), dim=over).to(x.dtype)
        if self.softmax == "by hand":
            e = (x - x.amax(over, keepdim=True)).exp()
            return e / e.sum(over, keepdim=True)
        if self.softmax == "without maximum" and not self.large:
            return x.exp() / x.exp().sum(over, keepdim=True)
        if self.softmax == "in place scores":
            x = x.clone()
            x += 1.0
        elif self.softmax == "shifted":
            x = x - x.amax(over, keepdim=True).detach()
        if self.softmax == "logsumexp":
            return (x - x.logsumexp(over, keepdim=True)).exp()
        if self.softmax == "log_softmax":
            return x.log_softmax(over).exp()
        if self.softmax == "plus one":
            return F.pad(x, (0, 1)).softmax(-1)[..., :-1]
        if self.softmax == "sink column":
            sink = slopes.view((-1, 2, 1, 1) if self.group == "five dimensions" else (-1, 1, 1))
            return torch.cat([x, sink.expand(*x.shape[:-1], 1)], -1).softmax(-1)[..., :-1]
        if self.softmax == "sigmoid":
            return x.sigmoid()
        if self.softmax == "relu":
            return x.relu() / x.shape[-1]
        return F.softmax(x, dim=over) if self.softmax == "function" else x.softmax(over)

    def weighted(self, p: Tensor, v: Tensor) -> Tensor:
        if self.wrong == "weights transposed":
            return p.mT @ v
        if self.wrong == "values of the query":
            return torch.einsum("...ij,...ije->...ie", p, v[..., None, :, :] * p.shape[-2])
        if self.output == "einsum":
            return torch.einsum("...ij,...je->...ie", p, v)
        if self.output == "values in parts" and self.has_parts(v.shape[-2]):
            return p[..., :-1] @ v[..., :-1, :] + p[..., -1:] @ v[..., -1:, :]
        return p @ v


def _changed(p: Tensor) -> Tensor:
    p = p.contiguous()
    p[..., -1:] += 1
    return p


Step = Callable[[Tensor], Tensor]
SCORE_STEPS: dict[str, Step] = {
    "scores summed up": lambda x: x.cumsum(-1),
    "scores sorted": lambda x: x.sort(-1).values,
    "scores masked by scores": lambda x: x.masked_fill(x < 0, -1e9),
}
WEIGHT_STEPS: dict[str, Step] = {
    "weights scaled by key": lambda p: p * torch.arange(p.shape[-1]),
    "weights masked": lambda p: p.tril(),
    "changed in place": _changed,
    "dropout": lambda p: F.dropout(p, 0.5, training=True),
    "weights rolled": lambda p: p.roll(1, -1),
    "two softmaxes": lambda p: p.softmax(-1),
    "weights rounded": lambda p: (p * 8).round() / 8,
    "normalised twice": lambda p: p / p.sum(-1, keepdim=True),
}


def a_program(pick: Pick, wrong: bool = False) -> Program:
    """One program of all combinations of choices; `wrong` ones have a step that makes them something else."""
    layout, step = pick(LAYOUTS), pick(WRONG) if wrong else ""
    queries = pick((2, 3, 5, 7))
    keys = queries if layout == "packed" or step == "weights transposed" else pick((2, 5, 7, 11))
    softmax = pick(SOFTMAXES[:8] if wrong else SOFTMAXES)
    mask = a_mask(pick) if pick((False, True, True, True)) else None
    hiding = pick(HIDINGS)
    if softmax == "relu" and mask is not None:
        hiding = "fill -inf"  # a finite number would do as well, an infinite bias would not: relu(-inf) is 0
    elif softmax == "logsumexp" or (softmax == "without maximum" and hiding in ("add little", "scaled")):
        # Where all is hidden, eager loses the logarithm of -1e9 + 2; exp(-1e4) is 0, but -1e4 no number that hides.
        hiding = "where"
    result = pick((*RESULTS, *["out"] * 8)) if not wrong and softmax not in ("sigmoid", "relu") else "out"
    # Two matrices with relu between them are a multilayer perceptron as well: a batch tells which it is.
    batch = pick((2, 3) if softmax in ("sigmoid", "relu") else (1, 2, 3))
    return Program(
        layout, pick(MEMORIES), pick(PRODUCTS), pick(SCALES), mask, hiding, pick(BIASES), softmax, pick(GROUPS),
        pick(OUTPUTS), result, batch, pick((2, 4, 6)), queries, keys, pick((2, 4, 8)), pick((0, 0, 1)) == 1, step,
    )  # fmt: skip


def numbered(number: int, wrong: bool = False) -> Program:
    """The program of a number, the same for ever."""
    return a_program(Random(f"{'wrong' if wrong else 'right'} {number}").choice, wrong)


@st.composite
def programs(draw: st.DrawFn, wrong: bool = False) -> Program:
    """Programs that hypothesis draws, other ones whenever a constant somewhere in the sources changes."""
    return a_program(lambda choices: draw(st.sampled_from(choices)), wrong)
