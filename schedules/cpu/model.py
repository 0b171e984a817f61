"""What a CPU holds and how fast it multiplies, as far as tile sizes follow from it.

The families' default decisions come from here, so that a machine is described once, by `attncc.target.Target`: the
width and number of its vector registers, and its caches. Each function says what bounds the size that it gives. Tuning
starts from these sizes and searches around them (`near`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc.algorithm.transpose import Turning

ROWS = 64
"""Query rows of a tile. Every element of k and v that comes out of L2 is multiplied with all of them, so L2 is read at
one to two bytes a cycle where the cores multiply at their peak; more rows would only waste more at the ends of short
sequences."""
KEYS = 128
"""Keys of a step, and twice as many of halved operands, which are multiplied twice as fast. A step rescales and copies
the output tile, some four vector operations a column: that many keys keep it at 2% of the products."""

LONGEST_SUM = 64
"""Terms of a score that are summed one after the other, where head_dim is more than twice as large."""


@dataclass(frozen=True)
class RegisterTile:
    """Sums that a product keeps in registers: `vectors` of queries times `rows` scalars of the other operand."""

    vectors: int
    rows: int


def lanes(target: Target, size: int) -> int:
    """Numbers of `size` bytes in a vector register."""
    return target.vector_bits // (8 * size)


def turning(target: Target) -> Turning:
    """How LLVM turns squares well. SVE zips registers whole, AVX2 halves of them; NEON and AVX-512 take any square."""
    from attncc.algorithm.transpose import ANY, Turning

    if target.sve_bits:
        return Turning(rows=(128, target.sve_bits))
    if target.arch == "x86_64" and target.vector_bits == 256:
        return Turning(rows=(128, 256), lane=128)
    return ANY


def registers(target: Target) -> int:
    """Vector registers: 32 on AVX-512 and AArch64, 16 on older x86."""
    return 32 if target.vector_bits == 512 or target.arch == "aarch64" else 16


def register_tile(target: Target) -> RegisterTile:
    """The sums that hide the latency of multiply-adds, with few loads for each, and room for operands beside them.

    A multiply-add takes 4 or 5 cycles, and two (on AArch64 four) start in one: 10 to 16 independent sums. A step of
    the reduction loads a vector for each of `vectors` and a scalar for each of `rows`: at most 5 loads to 8
    multiply-adds, where two or three of each start in a cycle.
    """
    return RegisterTile(2, 8) if registers(target) >= 32 else RegisterTile(3, 4)


def query_block(vectors: int, lanes: int) -> int:
    """Rows of a tile: whole register tiles, at most `ROWS` where that holds one."""
    return max(ROWS // (vectors * lanes), 1) * vectors * lanes


def key_block(spec: AttentionSpec, target: Target, queries: int, size: int, least: int) -> int:
    """Keys of a step, for operands of `size` bytes: a power of two times `least`, up to `KEYS`, that fits L2.

    What a step touches: its keys and values, scores (float32, or wider) and probabilities, queries, and the output
    before and after.
    """
    wide = max(size, 4)
    fixed = queries * (spec.head_dim * size + 2 * spec.value_dim * wide)
    each = queries * (wide + size) + (spec.head_dim + spec.value_dim) * size
    keys = least
    while 2 * keys <= KEYS * wide // size and fixed + 2 * keys * each <= target.l2:
        keys *= 2
    return keys


def window_edge(queries: int, least: int) -> int:
    """Keys of an edge step under a window: a power of two times `least`, up to a tile's `queries`, by which both ends
    of what is visible move from tile to tile. Each end is then one step, not several small ones."""
    keys = least
    while 2 * keys <= queries:
        keys *= 2
    return keys


def beyond_l2(spec: AttentionSpec, target: Target, size: int) -> int:
    """Keys of a head that, with their values of `size` bytes an element, no longer stay in L2 from tile to tile."""
    return max(1, target.l2 // ((spec.head_dim + spec.value_dim) * size))


def divided(head_dim: int) -> bool:
    """Whether a score is the sum of sums over parts of a large head: rounding errors grow with the length of a sum."""
    return head_dim > 2 * LONGEST_SUM


def columns(value_dim: int, most: int) -> int:
    """Columns of a register tile: the largest divisor of value_dim up to `most`, or `most`, which pads the output."""
    divisor = max(n for n in range(1, most + 1) if value_dim % n == 0)
    return divisor if 2 * divisor > most or value_dim <= most else most


def near(default: int, others: Iterable[int]) -> tuple[int, ...]:
    """Candidates of a decision, in order: its default and some others."""
    return tuple(sorted({default, *others}))
