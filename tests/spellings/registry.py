"""How a spelling is stated: a function, the sizes it is for, and what has to come of it.

The names of its parameters say what it gets (`INPUTS`): `q`, `k`, `v` are [B, H, S, D] unless the spelling says
`layout`, `keep` is a padding mask, and so on. A spelling written for heads first is tried in several layouts: its
inputs arrive in another one and are transposed before, as the models around it would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

D, E = 8, 8
SCALE = D**-0.5
LAYOUTS: dict[str, tuple[int, ...]] = {"bhsd": (0, 1, 2, 3), "bshd": (0, 2, 1, 3), "sbhd": (2, 0, 1, 3)}
"""Where the dimensions of memory are in [B, H, S, D]."""


@dataclass(frozen=True)
class Sizes:
    """Batch, query heads, key heads, queries, keys, row sizes."""

    b: int = 3
    h: int = 4
    g: int = 4
    s: int = 7
    t: int = 11
    d: int = D
    e: int = E


@dataclass(frozen=True)
class Spelling:
    """A way to write attention, and what is expected of it: `sites` fused, or refused for `reason`."""

    name: str
    function: Callable[..., Any]
    sizes: Sizes
    other: Sizes
    """Other batch and lengths, for which nothing may be compiled anew."""
    dtype: torch.dtype = torch.float32
    sites: int = 1
    reason: str = ""
    beside: str = ""
    """Why a further site, beside those that are fused, is refused."""
    layout: str | None = None
    """The layout that the function itself is written for; None: heads first, and it does not care."""
    once: bool = True
    """Whether the same graph serves other batches and lengths; not where Python computes with a length."""
    alike: float = 1e-5
    """How near to eager float32 the float64 oracle comes."""

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts in which its inputs may arrive."""
        return (self.layout, "strided") if self.layout is not None else ("bhsd", "bshd", "sbhd")

    def inputs(self, layout: str, sizes: Sizes) -> list[Any]:
        """Arguments in this layout; the same random ones at every call."""
        generator = torch.Generator().manual_seed(len(self.name) + sizes.s)
        made = []
        for name in inspect.signature(self.function).parameters:
            value = INPUTS[name](sizes, generator)
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                value = value.to(self.dtype)
            if name in ("q", "k", "v"):
                order = LAYOUTS.get(self.layout or layout, (0, 1, 2, 3))
                value = value.permute(order).contiguous()
                if layout == "strided":
                    value = value.mT.contiguous().mT
            elif layout == "strided" and isinstance(value, Tensor) and value.ndim > 1:
                value = value.mT.contiguous().mT
            made.append(value)
        return made

    def program(self, layout: str) -> Callable[..., Any]:
        """The function of inputs in this layout."""
        if self.layout is not None or layout == "bhsd":
            return self.function
        names = list(inspect.signature(self.function).parameters)
        back = [LAYOUTS[layout].index(p) for p in range(4)]
        function = self.function

        def program(*args: Any) -> Any:
            args = tuple(x.permute(back) if n in ("q", "k", "v") else x for n, x in zip(names, args, strict=True))
            out = function(*args)
            if isinstance(out, Tensor) and out.ndim == 4:
                return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)
            return out

        return program


SPELLINGS: dict[str, Spelling] = {}


def spelling(
    *, same: bool = False, one: bool = False, g: int = 4, h: int = 4, **expected: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function. `same`: as many keys as queries; `one`: a single query; `g`: key heads, `h`: query heads."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        assert name not in SPELLINGS, name
        small = Sizes(h=h, g=g, s=1 if one else 7, t=7 if same else 11)
        large = replace(small, b=5, s=1 if one else 13, t=13 if same else 17)
        SPELLINGS[name] = Spelling(name, function, small, large, **expected)
        return function

    return register


def _rows(z: Sizes, g: torch.Generator, heads: int, length: int, width: int) -> Tensor:
    return torch.randn(z.b, heads, length, width, generator=g)


def _seen(z: Sizes, g: torch.Generator, *shape: int) -> Tensor:
    """A mask that shows something in every row."""
    mask = torch.rand(*shape, z.t, generator=g) > 0.4
    mask[..., 0] = True
    return mask


def _keep(z: Sizes) -> Tensor:
    """[B, T], padding at the end of every text but the first."""
    return torch.arange(z.t)[None] < z.t - 2 * torch.arange(z.b)[:, None]


def _normal(*shape: str) -> Callable[[Sizes, torch.Generator], Tensor]:
    return lambda z, g: torch.randn([getattr(z, n) for n in shape], generator=g)


INPUTS: dict[str, Callable[[Sizes, torch.Generator], Any]] = {
    "q": lambda z, g: _rows(z, g, z.h, z.s, z.d),
    "k": lambda z, g: _rows(z, g, z.g, z.t, z.d) + 0.1,
    "v": lambda z, g: _rows(z, g, z.g, z.t, z.e) - 0.2,
    "x": lambda z, g: torch.randn(z.b, z.s, z.h * z.d, generator=g),
    "memory": lambda z, g: torch.randn(z.b, z.t, z.h * z.d, generator=g),
    "packed": lambda z, g: torch.randn(z.b, z.s, 3 * z.h * z.d, generator=g),
    "image": lambda z, g: torch.randn(z.b, z.d, z.s, 5, generator=g),
    "channels": lambda z, g: torch.randn(z.b, z.d * z.h, z.s, generator=g),
    "wq": lambda z, g: torch.randn(z.h * z.d, z.h * z.d, generator=g) / 6,
    "wk": lambda z, g: torch.randn(z.h * z.d, z.h * z.d, generator=g) / 6,
    "wv": lambda z, g: torch.randn(z.h * z.d, z.h * z.d, generator=g) / 6,
    "wo": lambda z, g: torch.randn(z.h * z.d, z.h * z.d, generator=g) / 6,
    "wqkv": lambda z, g: torch.randn(3 * z.h * z.d, z.h * z.d, generator=g) / 6,
    "bqkv": lambda z, g: torch.randn(3 * z.h * z.d, generator=g),
    # masks
    "mask": lambda z, g: _seen(z, g, z.s),
    "mask4": lambda z, g: _seen(z, g, z.b, 1, z.s),
    "hidden": lambda z, g: ~_seen(z, g, z.b, z.s),
    "keep": lambda z, g: _keep(z),
    "keep_rows": lambda z, g: torch.arange(z.s)[None] < z.s - torch.arange(z.b)[:, None],
    "attention_mask": lambda z, g: _keep(z).long(),
    "float_mask": lambda z, g: _keep(z).float(),
    "lengths": lambda z, g: z.t - 2 * torch.arange(z.b),
    "additive": lambda z, g: torch.zeros(z.b, 1, z.s, z.t).masked_fill(~_seen(z, g, z.b, 1, z.s), float("-inf")),
    "triangle": lambda z, g: torch.ones(1, 1, 32, 32).tril(),
    "documents": lambda z, g: (torch.arange(z.t) // 4)[None].expand(z.b, -1).contiguous(),
    "tokens": lambda z, g: torch.randint(0, 4, (z.b, z.t), generator=g),
    "prefix": lambda z, g: 1 + torch.arange(z.b),
    "blocks": lambda z, g: torch.rand(8, 8, generator=g) > 0.5,
    "tree": lambda z, g: torch.eye(z.t, dtype=torch.bool)[: z.s] | (torch.rand(z.s, z.t, generator=g) > 0.5),
    # scores
    "scale": lambda z, g: torch.tensor(0.3),
    "temperature": lambda z, g: torch.rand(z.h, 1, 1, generator=g) + 0.5,
    "slopes": lambda z, g: 2.0 ** -torch.arange(1.0, z.h + 1),
    "bias": _normal("h", "s", "t"),
    "bias4": _normal("b", "h", "s", "t"),
    "table": lambda z, g: torch.randn(64, z.h, generator=g),
    "relative": lambda z, g: torch.randint(0, 64, (z.s, z.t), generator=g),
    "positions": lambda z, g: torch.randn(z.s + z.t, z.d, generator=g),
    "pair_keys": _normal("s", "t", "d"),
    "w": lambda z, g: torch.randn(z.d, z.d, generator=g) / 2,
    "w_heads": lambda z, g: torch.randn(z.h, z.d, z.d, generator=g) / 2,
    "energy": _normal("d"),
    "q_rope": lambda z, g: _rows(z, g, z.h, z.s, 4),
    "k_rope": lambda z, g: _rows(z, g, 1, z.t, 4),
    "latent": lambda z, g: torch.randn(z.b, z.t, 6, generator=g),
    "w_up": lambda z, g: torch.randn(z.h, z.d, 6, generator=g) / 2,
    "w_up_v": lambda z, g: torch.randn(z.h, z.e, 6, generator=g) / 2,
    "mixer": lambda z, g: torch.randn(z.h, z.h, generator=g),
    "sinks": _normal("h"),
    "lam": lambda z, g: torch.rand(z.h, 1, 1, generator=g),
    "q2": lambda z, g: _rows(z, g, z.h, z.s, z.d),
    "k2": lambda z, g: _rows(z, g, z.g, z.t, z.d),
    "state": lambda z, g: torch.randn(z.b, z.d, generator=g),
    "latents": lambda z, g: torch.randn(5, z.d, generator=g),
    # caches
    "past_k": lambda z, g: _rows(z, g, z.g, 6, z.d),
    "past_v": lambda z, g: _rows(z, g, z.g, 6, z.e),
    "cache_k": lambda z, g: torch.zeros(z.b, z.g, 24, z.d),
    "cache_v": lambda z, g: torch.zeros(z.b, z.g, 24, z.e),
    "at": lambda z, g: torch.arange(3, 3 + z.t),
    "query_at": lambda z, g: torch.arange(3 + z.t - z.s, 3 + z.t),
}
