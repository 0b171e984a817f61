"""Attentions of every kind that a spec can state, small enough for the float64 oracle; all kernel tests share them.

`case(name, dtype, …)` makes a call of the attention `name`. Extras are views with strides of their own where models
have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from kernel_harness import Case, make_case
from torch import Tensor

from attncc import expr as ex
from attncc.spec import AttentionSpec, Extra

B, H, ROW, KEY = (ex.Index(axis) for axis in ex.AXES)
SQ, SKV = ex.Size("Sq"), ex.Size("Skv")
S0, N0 = ex.Scalar("s0", "float64"), ex.Scalar("n0", "int64")


def num(value: float, dtype: str = "float32") -> ex.Expr:
    return ex.Const(value, dtype)


def whole(value: int) -> ex.Expr:
    return ex.Const(value, "int64")


def as_float(node: ex.Expr) -> ex.Expr:
    return ex.op("cast", node, dtype="float32")


def load(name: str, *index: ex.Expr, dtype: str = "float32") -> ex.Expr:
    return ex.Load(name, index, dtype)


SCALED = ex.op("mul", ex.Score(), num(0.125))
POSITION = ex.op("add", ROW, ex.op("sub", SKV, SQ))
"""Position of a query row when the queries are the last of the keys."""
CAUSAL = ex.op("le", KEY, POSITION)
DISTANCE = ex.op("sub", KEY, POSITION)


@dataclass(frozen=True)
class Sizes:
    """Run-time sizes of a case; `heads` counts query heads."""

    batch: int
    heads: int
    q_len: int
    kv_len: int


Make = Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Attention:
    """Fields of the spec beside dtype, head sizes and group, and how to make what it reads."""

    fields: dict[str, Any]
    extras: Make = lambda sizes, generator: ()
    scalars: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()


def normal(*shape: str | int) -> Make:
    """One float32 tensor; dimensions are fields of `Sizes` or numbers."""

    def make(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn([getattr(sizes, n) if isinstance(n, str) else n for n in shape], generator=generator),)

    return make


def transposed_bias(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """[H, Sq, Skv] as a view of [Skv, Sq, H] memory: no stride is 1 where a kernel would like it."""
    return (torch.randn(sizes.kv_len, sizes.q_len, sizes.heads, generator=generator).permute(2, 1, 0),)


def lengths(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Key lengths by batch; the first batch sees nothing."""
    values = torch.randint(0, sizes.kv_len + 1, (sizes.batch,), generator=generator)
    values[0] = 0
    return (values,)


def keep(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A boolean mask [B, 1, Sq, Skv], expanded over heads with stride 0; its first row sees nothing."""
    mask = torch.rand(sizes.batch, 1, sizes.q_len, sizes.kv_len, generator=generator) < 0.5
    mask[:, :, 0] = False
    return (mask.expand(-1, sizes.heads, -1, -1),)


def documents(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(0, 3, (sizes.batch, sizes.kv_len), generator=generator, dtype=torch.int32),)


def windows(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(1, 40, (sizes.heads,), generator=generator),)


def padding(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """[B, Skv], as the tokenizer gives it: the first batch is padded on the left, the others on the right."""
    keys = torch.arange(sizes.kv_len)
    real = (keys < max(1, sizes.kv_len // 3)).expand(sizes.batch, -1).clone()
    real[0] = keys >= sizes.kv_len - max(1, sizes.kv_len // 4)
    return (real,)


def positions(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Where the query rows stand in a cache that is filled up to them."""
    return (torch.arange(sizes.q_len) + max(0, sizes.kv_len // 2 - sizes.q_len),)


def float_mask(hidden: float) -> Make:
    """[B, 1, Sq, Skv], 0 or `hidden`, expanded over heads: a third is filled. The first row of all sees nothing."""

    def make(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        mask = torch.zeros(sizes.batch, 1, sizes.q_len, sizes.kv_len)
        mask[..., max(1, sizes.kv_len // 3) :] = hidden
        mask[0, :, 0] = hidden
        return (mask.expand(-1, sizes.heads, -1, -1),)

    return make


def partial_sinks(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A sink for each row, some of them -inf."""
    sinks = torch.randn(sizes.batch, sizes.heads, sizes.q_len, generator=generator)
    sinks[:, :, ::3] = -math.inf
    return (sinks,)


def scales(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
    """[B, H, Skv] for the keys, and for the values, as views of [B, Skv, H] memory: of codes up to 128."""
    shape = (sizes.batch, sizes.kv_len, sizes.heads)
    return tuple((torch.rand(shape, generator=generator) / 64).transpose(1, 2) for _ in range(2))


ATTENTIONS: dict[str, Attention] = {
    "plain": Attention({"score_mod": SCALED}),
    "unscaled": Attention({}),
    "run-time scale": Attention({"score_mod": ex.op("mul", ex.Score(), S0), "scalars": ("s0",)}, scalars=(0.3,)),
    "causal": Attention({"score_mod": SCALED, "mask": CAUSAL}),
    "causal, NaN rows": Attention(
        {"score_mod": SCALED, "mask": ex.op("lt", KEY, ex.op("sub", ROW, whole(1))), "empty_row": "nan"}
    ),
    "causal, finite fill": Attention({"score_mod": SCALED, "mask": CAUSAL, "fill": -1e4}),
    "strict causal, finfo.min": Attention(
        {"score_mod": SCALED, "mask": ex.op("lt", KEY, ROW), "fill": torch.finfo(torch.float32).min}
    ),
    "window": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("and", CAUSAL, ex.op("gt", KEY, ex.op("sub", POSITION, N0))),
            "integers": ("n0",),
        },
        integers=(9,),
    ),
    "window by head": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("and", CAUSAL, ex.op("gt", KEY, ex.op("sub", POSITION, load("t0", H, dtype="int64")))),
            "extras": (Extra("t0", "int64", 1),),
        },
        windows,
    ),
    "prefix-LM": Attention(
        {"score_mod": SCALED, "mask": ex.op("or", ex.op("lt", KEY, N0), CAUSAL), "integers": ("n0",)}, integers=(11,)
    ),
    "key lengths": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("lt", KEY, load("t0", B, dtype="int64")),
            "extras": (Extra("t0", "int64", 1),),
        },
        lengths,
    ),
    "boolean mask": Attention(
        {
            "score_mod": SCALED,
            "mask": load("t0", B, H, ROW, KEY, dtype="bool"),
            "extras": (Extra("t0", "bool", 4),),
        },
        keep,
    ),
    "documents": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("eq", load("t0", B, KEY, dtype="int32"), load("t0", B, POSITION, dtype="int32")),
            "extras": (Extra("t0", "int32", 2),),
        },
        documents,
    ),
    "padding": Attention(
        {"score_mod": SCALED, "mask": load("t0", B, KEY, dtype="bool"), "extras": (Extra("t0", "bool", 2),)}, padding
    ),
    "static cache": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("le", KEY, load("t0", ROW, dtype="int64")),
            "extras": (Extra("t0", "int64", 1),),
        },
        positions,
    ),
    "sliding cache, finfo.min": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op(
                "and",
                ex.op("le", KEY, load("t0", ROW, dtype="int64")),
                ex.op("gt", KEY, ex.op("sub", load("t0", ROW, dtype="int64"), whole(20))),
            ),
            "fill": torch.finfo(torch.float32).min,
            "extras": (Extra("t0", "int64", 1),),
        },
        positions,
    ),
    "padding, causal, -1e9": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("and", CAUSAL, load("t0", B, KEY, dtype="bool")),
            "fill": -1e9,
            "extras": (Extra("t0", "bool", 2),),
        },
        padding,
    ),
    "float mask, -inf": Attention(
        {"score_mod": ex.op("add", SCALED, load("t0", B, H, ROW, KEY)), "extras": (Extra("t0", "float32", 4),)},
        float_mask(-math.inf),
    ),
    "float mask, finfo.min": Attention(
        {
            "score_mod": ex.op("add", SCALED, load("t0", B, H, ROW, KEY)),
            "mask": CAUSAL,
            "extras": (Extra("t0", "float32", 4),),
        },
        float_mask(torch.finfo(torch.float32).min),
    ),
    "blocks": Attention(
        {"score_mod": SCALED, "mask": ex.op("eq", ex.op("mod", ex.op("floordiv", KEY, whole(5)), whole(3)), whole(1))}
    ),
    "bias": Attention(
        {"score_mod": ex.op("add", SCALED, load("t0", H, ROW, KEY)), "extras": (Extra("t0", "float32", 3),)},
        transposed_bias,
    ),
    "alibi": Attention(
        {
            "score_mod": ex.op("add", SCALED, ex.op("mul", load("t0", H), as_float(DISTANCE))),
            "mask": CAUSAL,
            "extras": (Extra("t0", "float32", 1),),
        },
        normal("heads"),
    ),
    "relative bias": Attention(
        {
            "score_mod": ex.op(
                "add",
                SCALED,
                load("t0", H, ex.op("add", ex.op("min", ex.op("max", DISTANCE, whole(-7)), whole(7)), whole(7))),
            ),
            "extras": (Extra("t0", "float32", 2),),
        },
        normal("heads", 15),
    ),
    "soft cap": Attention(
        {
            "score_mod": ex.op("mul", ex.op("tanh", ex.op("div", SCALED, S0)), S0),
            "mask": CAUSAL,
            "scalars": ("s0",),
        },
        scalars=(2.0,),
    ),
    "functions": Attention(
        {
            "score_mod": ex.op(
                "where",
                ex.op("gt", ex.Score(), num(0.0)),
                ex.op("log1p", ex.op("abs", ex.Score())),
                ex.op("sub", ex.op("erf", ex.Score()), ex.op("sigmoid", as_float(KEY))),
            )
        }
    ),
    "bilinear": Attention(
        {"score_mod": SCALED, "bilinear": "t0", "query_dim": 6, "extras": (Extra("t0", "float32", 2),)},
    ),
    "bilinear by head": Attention(
        {"score_mod": SCALED, "bilinear": "t0", "query_dim": 6, "mask": CAUSAL, "extras": (Extra("t0", "float32", 3),)},
    ),
    "sink by head": Attention(
        {
            "score_mod": SCALED,
            "mask": CAUSAL,
            "fill": -1e4,
            "sink": load("t0", H),
            "extras": (Extra("t0", "float32", 1),),
        },
        normal("heads"),
    ),
    "plus one": Attention(
        {
            "score_mod": SCALED,
            "sink": num(0.0),
            "mask": ex.op("lt", KEY, ex.op("sub", ROW, whole(1))),
            "outputs": ("out", "max", "sum"),
        }
    ),
    "sink of some rows": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("lt", KEY, ex.op("sub", ROW, whole(1))),
            "sink": load("t0", B, H, ROW),
            "extras": (Extra("t0", "float32", 3),),
            "empty_row": "nan",
        },
        partial_sinks,
    ),
    "sigmoid": Attention(
        {"score_mod": ex.op("sigmoid", ex.op("sub", SCALED, num(3.0))), "normalizer": "none"},
    ),
    "relu, causal": Attention(
        {
            "score_mod": ex.op("max", SCALED, num(0.0)),
            "normalizer": "none",
            "mask": ex.op("lt", KEY, ex.op("sub", ROW, whole(1))),
            "fill": 0.0,
            "outputs": ("out", "weights"),
        },
    ),
    "statistics": Attention({"score_mod": SCALED, "outputs": ("out", "max", "sum")}),
    "weights, NaN rows": Attention(
        {
            "score_mod": SCALED,
            "mask": ex.op("lt", KEY, ex.op("sub", ROW, whole(1))),
            "outputs": ("out", "max", "sum", "weights"),
            "empty_row": "nan",
        },
    ),
    "weights, finite fill": Attention(
        {"score_mod": SCALED, "mask": CAUSAL, "fill": torch.finfo(torch.float32).min, "outputs": ("out", "weights")},
    ),
    "additive by column": Attention(
        {
            "element": ex.op(
                "mul",
                ex.op("tanh", ex.op("add", ex.Elem("q"), ex.Elem("k"))),
                load("t0", H, ex.Index("d")),
            ),
            "extras": (Extra("t0", "float32", 2),),
        },
        normal("heads", 16),
    ),
    "additive": Attention(
        {"element": ex.op("mul", ex.op("tanh", ex.op("add", ex.Elem("q"), ex.Elem("k"))), num(0.5))},
    ),
    "int8 cache, scales by token": Attention(
        {
            "score_mod": ex.op("mul", SCALED, load("t0", B, H, KEY)),
            "mask": CAUSAL,
            "key_dtype": "int8",
            "value_dtype": "int8",
            "value_scale": load("t1", B, H, KEY),
            "extras": (Extra("t0", "float32", 3), Extra("t1", "float32", 3)),
        },
        scales,
    ),
    "float8 cache, scales by head": Attention(
        {
            "score_mod": ex.op("mul", SCALED, load("t0", H)),
            "key_dtype": "float8_e4m3fn",
            "value_dtype": "float8_e5m2",
            "value_scale": load("t0", H),
            "outputs": ("out", "max", "sum", "weights"),
            "extras": (Extra("t0", "float32", 1),),
        },
        normal("heads"),
    ),
    "negative distance": Attention(
        {
            "element": ex.op(
                "mul",
                ex.op("pow", ex.op("sub", ex.Elem("q"), ex.Elem("k")), num(2.0)),
                num(-0.5),
            )
        }
    ),
}


def case(
    name: str,
    dtype: str,
    sizes: tuple[int, int, int, int],
    *,
    dims: tuple[int, int] = (16, 16),
    group: int = 1,
    seed: int = 0,
    **more: Any,
) -> Case:
    """A call of `ATTENTIONS[name]` with (batch, key heads, query rows, keys) and (head_dim, value_dim)."""
    attention, (batch, kv_heads, q_len, kv_len) = ATTENTIONS[name], sizes
    spec = AttentionSpec(dtype, *dims, group, **attention.fields)
    generator = torch.Generator().manual_seed(seed + 1)
    extras = attention.extras(Sizes(batch, kv_heads * group, q_len, kv_len), generator)
    if spec.bilinear is not None:
        leading = (kv_heads * group,) if spec.extras[0].rank == 3 else ()
        weight = torch.randn(*leading, spec.query_dim or dims[0], dims[0], generator=generator)
        extras = (weight / math.sqrt(dims[0]),)
    numbers = {"scalars": attention.scalars, "integers": attention.integers}
    return make_case(spec, batch, kv_heads, q_len, kv_len, extras=extras, seed=seed, **numbers, **more)
