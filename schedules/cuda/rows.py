"""How rows of keys and values lie in shared memory, and how tensor cores read them as right operands.

Rows are 16-bit numbers, or codes of one byte, which stay codes in memory and become numbers in registers. `ldmatrix`
knows no bytes before sm_100. It is told of pairs of them, and what it then deals out to the lanes is right but for an
order: of columns in a row of keys, which does not matter to a sum over columns where the query rows have the same;
and of columns of the result, which are stored where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attncc._tvm import tirx
from attncc.algorithm.storage import memory_dtype
from attncc.schedules.cuda import codes
from attncc.schedules.cuda.device import Registers, div, mod
from attncc.schedules.cuda.room import CODES, chunks


class Rows:
    """Rows of `width` numbers of `dtype`, in chunks of 16 bytes."""

    chunk = 8
    """Elements of a chunk."""

    def __init__(self, dtype: str, width: int) -> None:
        self.dtype, self.width = dtype, width
        self.memory = memory_dtype(dtype)
        self.chunks = chunks(width, self.chunk)
        self.pitch = self.chunks * self.chunk
        """Elements between rows: whole groups of the chunks that the swizzle permutes."""
        self.steps = -(-width // 16)
        self.loads = -(-width // (2 * self.chunk))
        """Of matrices two chunks wide."""

    def twist(self, row: Any) -> Any:
        """What a row's chunks are flipped by: those in the same place of eight neighbouring rows meet in no bank."""
        return mod(row, 8) if self.chunks % 8 == 0 else mod(div(row, 2), 4)

    def place(self, row: Any, chunk: Any) -> Any:
        """Where a chunk of a row lies."""
        return row * self.pitch + tirx.bitwise_xor(chunk, self.twist(row)) * self.chunk

    def query_columns(self, lane: Any) -> tuple[Any, Any]:
        """The first columns of the two pairs that a lane reads of each 16 of a query row."""
        return mod(lane, 4) * 2, mod(lane, 4) * 2 + 8

    def arrange(self, q: Registers, at: int) -> None:
        """Bring what was read there, in registers `at` to `at + 3`, into the order of the columns of keys."""

    def column(self, lane: Any, at: int) -> Any:
        """The column of the result that register `at` of a lane belongs to."""
        return at // 4 * 8 + mod(lane, 4) * 2 + at % 2

    def keys(self, load: int, b: Registers) -> Iterator[tuple[int, int, Registers, int]]:
        """Of 16 keys in `b`: step of the sum over columns, half of the keys, and the registers to multiply by."""
        for half in range(2):
            yield load, half, b, half * 2

    def values(self, load: int, b: Registers) -> Iterator[tuple[int, Registers, int]]:
        """Of 16 values in `b`: number of the result's 8-column tile, and the registers to multiply by."""
        for half in range(2):
            yield load * 2 + half, b, half * 2


class CodeRows(Rows):
    """Rows of `width` codes, which become numbers of `to`; `width` is a multiple of 16."""

    chunk = CODES

    def __init__(self, dtype: str, width: int, to: str, name: str) -> None:
        super().__init__(dtype, width)
        self.to = to
        self.numbers = Registers(f"numbers_{name}", 2, "uint32")

    def query_columns(self, lane: Any) -> tuple[Any, Any]:
        return mod(lane, 4) * 4, mod(lane, 4) * 4 + 2

    def arrange(self, q: Registers, at: int) -> None:
        for row in range(2):
            self.numbers[0], self.numbers[1] = _regrouped(q[at + row], q[at + row + 2])
            q[at + row], q[at + row + 2] = self.numbers[0], self.numbers[1]

    def column(self, lane: Any, at: int) -> Any:
        return at // 8 * 16 + mod(lane, 4) * 4 + at % 2 * 2 + at // 4 % 2

    def keys(self, load: int, b: Registers) -> Iterator[tuple[int, int, Registers, int]]:
        """A register holds four columns of a key: the even two become one operand's half, the odd two the other's."""
        for step in range(load * 2, min(load * 2 + 2, self.steps)):
            for half in range(2):
                for odd in range(2):
                    self.numbers[odd] = codes.pair(self.dtype, self.to, b[half * 2 + step % 2], odd)
                yield step, half, self.numbers, 0

    def values(self, load: int, b: Registers) -> Iterator[tuple[int, Registers, int]]:
        """A register holds two columns of two keys: the even belong to one tile of the result, the odd to another."""
        for chunk in range(load * 2, min(load * 2 + 2, self.steps)):
            for odd in range(2):
                for n in range(2):
                    self.numbers[n] = codes.pair(self.dtype, self.to, b[chunk % 2 * 2 + n], odd)
                yield chunk * 2 + odd, self.numbers, 0


def rows(kept: str | None, dtype: str, width: int, name: str) -> Rows:
    """Rows of keys or values that are kept in codes, or as numbers of `dtype`."""
    return Rows(dtype, width) if kept is None else CodeRows(kept, width, dtype, name)


def _regrouped(first: Any, second: Any) -> tuple[Any, Any]:
    """Four 16-bit numbers in two registers as the even two and the odd two."""
    low, high = tirx.const(0xFFFF, "uint32"), tirx.const(0xFFFF0000, "uint32")
    shift = tirx.const(16, "uint32")
    even = tirx.bitwise_or(tirx.bitwise_and(first, low), tirx.shift_left(second, shift))
    return even, tirx.bitwise_or(tirx.shift_right(first, shift), tirx.bitwise_and(second, high))
