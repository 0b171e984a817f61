"""The arguments of every CUDA kernel, in one order: the contract between generated code and the runtime.

    q, k, v     [B, H, Sq, D], [B, G, Skv, D], [B, G, Skv, E] in the spec's dtype, G = H / group; k and v in their own
                where they have one, float8 as uint8
    t0, t1 …    the spec's extras; any sizes and strides (0 where broadcast), rank 0 allowed
    out         [B, H, Sq, E] in the spec's dtype
    out_max …   the spec's other outputs, contiguous: max and sum [B, H, Sq], weights [B, H, Sq, Skv]
    w0, w1 …    contiguous scratch tensors, float32 or int32
    s0, s1 …    float64 scalars
    n0, n1 …    int64 scalars
    processors  int32: how many thread blocks a persistent kernel starts

Sizes and strides are symbolic int64. The last stride of q, k, v and out is 1, the others are multiples of 16 bytes,
and so is the address of the first element: rows are copied 16 bytes at a time. A kernel that is declared `strided`
takes any strides and addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attncc._tvm import Buffer, IRBuilder, T, Var, tirx
from attncc.algorithm.storage import memory_dtype
from attncc.schedules.cuda.device import bind, layout
from attncc.spec import AttentionSpec

POINTER_ALIGNMENT = 16
"""Bytes."""


@dataclass(frozen=True)
class Arguments:
    """The declared arguments of a kernel under construction."""

    q: Buffer
    k: Buffer
    v: Buffer
    extras: Mapping[str, Buffer]
    out: Buffer
    more: Mapping[str, Buffer]
    """The other outputs of the spec, by name."""
    workspaces: tuple[Buffer, ...]
    scalars: Mapping[str, Any]
    """By name: s0, … in the compute dtype, n0, … as int64."""
    processors: Var
    sizes: Mapping[str, Any]
    """int64 by name: B, H, G, Sq, Skv."""
    batch: Any
    heads: Any
    kv_heads: Any
    q_len: Any
    kv_len: Any
    """The same sizes in int32, which is what index arithmetic costs least in."""


def declare(
    spec: AttentionSpec, workspaces: Sequence[tuple[Any, ...]] = (), strided: bool = False, scratch: str = "float32"
) -> Arguments:
    """Declare the arguments of `spec`'s kernel in the PrimFunc frame that is open, before its device code.

    A workspace is given by its sizes: numbers, or names of sizes ("B", "splits"); `scratch` is the dtype of all.
    """
    names = ("B", "H", "G", "Sq", "Skv")
    sizes: dict[str, Any] = {name: Var(name, "int64") for name in names}
    batch, heads, kv_heads, q_len, kv_len = (sizes[name] for name in names)
    rows = _strided if strided else _rows
    q = rows("q", (batch, heads, q_len, spec.query_dim or spec.head_dim), spec.dtype)
    k = rows("k", (batch, kv_heads, kv_len, spec.head_dim), memory_dtype(spec.key_dtype or spec.dtype))
    v = rows("v", (batch, kv_heads, kv_len, spec.value_dim), memory_dtype(spec.value_dtype or spec.dtype))
    extras = {}
    for extra in spec.extras:
        shape = tuple(Var(f"{extra.name}_size{n}", "int64") for n in range(extra.rank))
        strides = tuple(Var(f"{extra.name}_stride{n}", "int64") for n in range(extra.rank))
        extras[extra.name] = _argument(extra.name, shape, extra.dtype, strides, 1)
    out = rows("out", (batch, heads, q_len, spec.value_dim), spec.dtype)
    compute = "float64" if spec.dtype == "float64" else "float32"
    more = {}
    for name in spec.outputs[1:]:
        shape = (batch, heads, q_len, kv_len) if name == "weights" else (batch, heads, q_len)
        more[name] = _argument(f"out_{name}", shape, spec.dtype if name == "weights" else compute, None, 1)
    made = []
    for number, shape in enumerate(workspaces):
        for size in shape:
            if isinstance(size, str) and size not in sizes:
                sizes[size] = Var(size, "int64")
        given = tuple(sizes[s] if isinstance(s, str) else s for s in shape)
        made.append(_argument(f"w{number}", given, scratch, None, POINTER_ALIGNMENT))
    floats = {name: T.arg(name, T.float64()) for name in spec.scalars}
    integers = {name: T.arg(name, T.int64()) for name in spec.integers}
    processors = T.arg("processors", T.int32())
    scalars = {name: bind(f"{name}_f{compute[-2:]}", tirx.Cast(compute, n)) for name, n in floats.items()} | integers
    short = [bind(f"{name}_i32", tirx.Cast("int32", sizes[name])) for name in names]
    return Arguments(q, k, v, extras, out, more, tuple(made), scalars, processors, sizes, *short)


def _rows(name: str, shape: tuple[Any, ...], dtype: str) -> Buffer:
    """A tensor whose rows are dense: every stride symbolic but the last, which is 1."""
    strides = tuple(Var(f"{name}_stride{n}", "int64") for n in range(len(shape) - 1))
    return _argument(name, shape, dtype, (*strides, 1), POINTER_ALIGNMENT)


def _strided(name: str, shape: tuple[Any, ...], dtype: str) -> Buffer:
    """A tensor with any strides, anywhere."""
    shape = tuple(tirx.const(size, "int64") if isinstance(size, int) else size for size in shape)
    return _argument(name, shape, dtype, tuple(Var(f"{name}_stride{n}", "int64") for n in range(len(shape))), 1)


def _argument(name: str, shape: tuple[Any, ...], dtype: str, strides: tuple[Any, ...] | None, align: int) -> Buffer:
    handle = T.arg(f"{name}_handle", T.handle())
    if strides:
        buffer = T.match_buffer(handle, shape, dtype, strides=list(strides), align=align, layout=layout(shape, strides))
    else:
        buffer = T.match_buffer(handle, shape, dtype, align=align)
    IRBuilder.name(name, buffer)
    return buffer
