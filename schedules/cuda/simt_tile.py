"""Sizes of the tile that a thread block of the SIMT kernel works on. Needs no TVM."""

from __future__ import annotations

from typing import Any

from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec

THREADS = 128
WARP = 32
LANES = 16
"""Threads that share a row: half a warp."""
THREAD_ROWS = THREADS // LANES
"""Rows of the smallest tile."""
_WIDE_COLUMNS = 4
"""Columns side by side of a thread's result, where rows are long: 16 bytes of float32."""


class Tile:
    """A tile of `rows` query rows and `keys` keys, and how its rows lie in shared memory."""

    def __init__(self, spec: AttentionSpec, decisions: Decisions) -> None:
        self.rows, self.keys = decisions["rows"], decisions["keys"]
        self.dtype = "float64" if spec.dtype == "float64" else "float32"
        self.thread_rows, self.thread_keys = self.rows // THREAD_ROWS, self.keys // LANES
        self.wide = _WIDE_COLUMNS if spec.value_dim > 2 * LANES else 1
        self.columns = -(-spec.value_dim // (LANES * self.wide)) * self.wide
        """Of the result, of each thread."""
        self.pitch_k = -(-spec.head_dim // WARP) * WARP + 4
        """Elements between rows of q and k: 16-byte reads of eight neighbouring rows meet in no bank."""
        self.pitch_v = max(self.columns * LANES, -(-spec.value_dim // WARP) * WARP)
        self.pitch_p = self.keys + 4

    @property
    def shared_bytes(self) -> int:
        """Of queries, of keys or values, and of weights."""
        elements = self.rows * (self.pitch_k + self.pitch_p) + self.keys * max(self.pitch_k, self.pitch_v)
        return elements * (8 if self.dtype == "float64" else 4)

    def column(self, lane: Any, at: int) -> Any:
        """The column that register `at` of a thread's result belongs to."""
        return at // self.wide * (LANES * self.wide) + lane * self.wide + at % self.wide
