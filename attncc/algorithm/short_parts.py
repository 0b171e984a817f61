"""What the kernels for few keys and their work tables agree on. Known without TVM, as a launch is."""

from __future__ import annotations

from dataclasses import dataclass

RUN_BITS = 16
"""Bits of the number of chunks in a run.

A run is one number: its first chunk, how many chunks there are (in `RUN_BITS` bits), and in the last bit whether keys
have to be packed, which is not so where the tile before it of the same thread had the same."""


@dataclass(frozen=True)
class Tiling:
    """What the algorithm must know of a schedule: the tile sizes baked into it."""

    rows: int
    """Query rows of a chunk, and of a register tile."""
    lanes: int
    """Keys, or columns of v, in a vector."""
    keys: int
    """The most keys that there may be: a multiple of `lanes`."""
    pairs: int
    """Neighbouring terms that a product takes at once: 1, or 2 for bfloat16, which is then kept as it is."""
    key_sets: int
    """Vectors of keys in a register tile of the scores."""
    column_sets: int
    """Most vectors of columns in a register tile of the output."""
