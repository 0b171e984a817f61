"""The arguments of every attention kernel, in one order: the contract between generated code and the runtime.

    work      int32 [n_tiles, 4]
    q, k, v   [B, H, Sq, query_dim], [B, G, Skv, head_dim], [B, G, Skv, value_dim] in the spec's dtype, G = H / group;
              k and v in their own where they have one, float8 as uint8
    t0, t1 …  the spec's extras; any sizes and strides (0 where broadcast), rank 0 allowed
    out       [B, H, Sq, value_dim] in the spec's dtype
    max, sum  [B, H, Sq] in the compute dtype, contiguous: only where the spec's outputs name them
    weights   [B, H, Sq, Skv] in the spec's dtype, contiguous: likewise
    w0, w1 …  contiguous scratch tensors in the compute dtype
    s0, s1 …  float64 scalars
    n0, n1 …  int64 scalars
    launcher  int64: address of the function that runs parallel loops, 0 for TVM's own pool

Sizes and strides are symbolic int64: one kernel serves all lengths, and offsets may pass 2^31 elements. The last stride
of q, k, v and out is 1. Alignment is declared as one element: TVM would otherwise assume 64 bytes, unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from attncc._tvm import Buffer, IRBuilder, T, Var
from attncc.algorithm.storage import memory_dtype
from attncc.spec import AttentionSpec

NAME = "attention"
"""Global symbol of every kernel."""

BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Of an element of an argument."""

# Sets the kernel's own copy of the hook that TVM's parallel loops call. It is inlined, and costs a store a call.
_USE_LAUNCHER = """
@__TVMBackendParallelLaunch = external global ptr
define i32 @attncc_use_launcher(i64 %address) alwaysinline {
  %given = icmp ne i64 %address, 0
  br i1 %given, label %store, label %done
store:
  %launcher = inttoptr i64 %address to ptr
  store ptr %launcher, ptr @__TVMBackendParallelLaunch
  br label %done
done:
  ret i32 0
}
"""


@dataclass(frozen=True)
class Signature:
    """The declared arguments of a kernel under construction."""

    work: Buffer
    q: Buffer
    k: Buffer
    v: Buffer
    extras: Mapping[str, Buffer]
    """By name: t0, t1, …"""
    out: Buffer
    more: Mapping[str, Buffer]
    """The further outputs, by name: max, sum, weights."""
    workspaces: tuple[Buffer, ...]
    scalars: Mapping[str, Var]
    """By name: s0, … (float64) and n0, … (int64)."""
    launcher: Var
    sizes: Mapping[str, Any]
    """Symbolic int64 by name: B, H, G, Sq, Skv."""

    @property
    def inputs(self) -> tuple[Buffer, ...]:
        """The buffers that a kernel only reads."""
        return (self.work, self.q, self.k, self.v, *self.extras.values())

    @property
    def outputs(self) -> tuple[Buffer, ...]:
        """The buffers that a kernel is asked to fill."""
        return (self.out, *self.more.values())


def compute_dtype(spec: AttentionSpec) -> str:
    """The dtype of scores, statistics and accumulators: float64 for a float64 spec, else float32."""
    return "float64" if spec.dtype == "float64" else "float32"


def declare(spec: AttentionSpec, workspace_ranks: Sequence[int] = ()) -> Signature:
    """Declare the arguments of `spec`'s kernel in the PrimFunc frame that is open.

    Workspaces are contiguous tensors of the given ranks, all of symbolic sizes. Function attributes are set as well.
    """
    T.func_attr({"tirx.noalias": True, "global_symbol": NAME})
    sizes = {name: _size(name) for name in ("B", "H", "G", "Sq", "Skv")}
    batch, heads, kv_heads, q_len, kv_len = sizes.values()
    work = _argument("work", (_size("n_tiles"), 4), "int32", [])
    q = _rows("q", (batch, heads, q_len, spec.query_dim or spec.head_dim), spec.dtype)
    k = _rows("k", (batch, kv_heads, kv_len, spec.head_dim), memory_dtype(spec.key_dtype or spec.dtype))
    v = _rows("v", (batch, kv_heads, kv_len, spec.value_dim), memory_dtype(spec.value_dtype or spec.dtype))
    extras = {}
    for extra in spec.extras:
        shape = tuple(_size(f"{extra.name}_size{n}") for n in range(extra.rank))
        strides = [_size(f"{extra.name}_stride{n}") for n in range(extra.rank)]
        extras[extra.name] = _argument(extra.name, shape, extra.dtype, strides)
    out = _rows("out", (batch, heads, q_len, spec.value_dim), spec.dtype)
    more = {}
    for name in spec.outputs[1:]:
        shape, dtype = (batch, heads, q_len), compute_dtype(spec)
        if name == "weights":
            shape, dtype = (*shape, kv_len), spec.dtype
        more[name] = _argument(f"row_{name}" if name != "weights" else name, shape, dtype, [])
    workspaces = []
    for number, rank in enumerate(workspace_ranks):
        shape = tuple(_size(f"w{number}_size{n}") for n in range(rank))
        workspaces.append(_argument(f"w{number}", shape, compute_dtype(spec), []))
    scalars = {name: T.arg(name, T.float64()) for name in spec.scalars}
    scalars |= {name: T.arg(name, T.int64()) for name in spec.integers}
    launcher = T.arg("launcher", T.int64())
    return Signature(work, q, k, v, extras, out, more, tuple(workspaces), scalars, launcher, sizes)


def use_launcher(signature: Signature) -> None:
    """Run the parallel loops of this kernel on the launcher it is given. The first statement of a kernel's body."""
    import_llvm(_USE_LAUNCHER)
    T.evaluate(T.call_extern("int32", "attncc_use_launcher", signature.launcher))


def import_llvm(text: str) -> None:
    """Make the LLVM IR functions of `text` callable (`T.call_extern`) in the rest of the frame that is open.

    They are linked into the kernel's module, and `alwaysinline` ones vanish into their callers.
    """
    frame = T.attr(0, "pragma_import_llvm", text)
    frame.add_callback(partial(frame.__exit__, None, None, None))  # closes with its parent
    frame.__enter__()


def _size(name: str) -> Var:
    return Var(name, "int64")


def _rows(name: str, shape: tuple[Any, ...], dtype: str) -> Buffer:
    """A tensor whose rows are dense: every stride symbolic but the last, which is 1."""
    strides = [_size(f"{name}_stride{n}") for n in range(len(shape) - 1)]
    return _argument(name, shape, dtype, [*strides, 1])


def _argument(name: str, shape: tuple[Any, ...], dtype: str, strides: list[Any]) -> Buffer:
    handle = T.arg(f"{name}_handle", T.handle())
    buffer = T.match_buffer(handle, shape, dtype, strides=strides or None, align=BYTES[dtype], layout=None)
    IRBuilder.name(name, buffer)
    return buffer
