"""Small words over TVM's IRBuilder: a named loop nest with one block in it, and a scope of its own for several.

Everything is built by program, not parsed: a kernel's S-TIR takes milliseconds, and a spec's expressions drop in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from attncc._tvm import Buffer, IRBuilder, T, Var


@contextmanager
def stage(name: str, axes: str, **extents: int) -> Iterator[list[Var]]:
    """A loop nest with one block inside: `stage("qk", "SSR", n=64, m=32, d=128)` gives the block's axes n, m and d.

    `axes` says of each whether it is spatial (S) or reduced (R). The body must be the block's single statement, after
    a `T.init()` where it reduces.
    """
    with T.grid(*extents.values()) as found:
        loops = list(found) if len(extents) > 1 else [found]
        for axis, loop in zip(extents, loops, strict=True):
            IRBuilder.name(axis, loop)
        with T.sblock(name):
            bound = T.axis.remap(axes, loops)
            values = list(bound) if len(extents) > 1 else [bound]
            for axis, value in zip(extents, values, strict=True):
                IRBuilder.name(f"v{axis}", value)
            yield values


@contextmanager
def scope(name: str) -> Iterator[None]:
    """A block around several stages, so that schedule primitives see a pipeline that nothing outside interferes with.

    It stands in a unit loop with an opaque axis: in a bare sequence, TVM 0.27 would schedule it in place in the source
    function.
    """
    with repeat(name, 1):
        yield


@contextmanager
def repeat(name: str, extent: Any) -> Iterator[Var]:
    """A serial loop whose iterations depend on each other, and a block around its body; gives the iteration."""
    with T.serial(extent) as loop:
        IRBuilder.name(f"{name}_loop", loop)
        with T.sblock(name):
            value = T.axis.opaque(extent, loop)
            IRBuilder.name(f"v{name}", value)
            yield value


def accesses(reads: Iterable[Buffer], writes: Iterable[Buffer]) -> None:
    """State that the open block may touch all of these buffers; TVM would find regions in terms of lets inside it."""
    T.reads(*(_whole(buffer) for buffer in reads))
    T.writes(*(_whole(buffer) for buffer in writes))


def _whole(buffer: Buffer) -> Any:
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)] if len(buffer.shape) else buffer[()]


def tile(name: str, shape: tuple[int, ...], dtype: str) -> Buffer:
    """A scratch buffer that belongs to the block that is open."""
    buffer = T.sblock_alloc_buffer(shape, dtype, layout=None)
    IRBuilder.name(name, buffer)
    return buffer


def let(name: str, value: Any) -> Var:
    """`value`, evaluated once, under a name."""
    variable = T.Bind(value)
    IRBuilder.name(name, variable)
    return variable


def store(buffer: Buffer, indices: list[Any], value: Any) -> None:
    """buffer[indices] = value."""
    T.buffer_store(buffer, value, indices)
