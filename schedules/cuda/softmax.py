"""The softmax over key tiles that arrive one after another (online softmax), in the registers of a tensor-core tile.

Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import math
from typing import Any

from attncc._tvm import tirx
from attncc.schedules.cuda.device import Registers, choose, exp2, maximum, mod, number, over_quad
from attncc.spec import AttentionSpec


class OnlineSoftmax:
    """Maxima and sums of a thread's two rows.

    A thread holds a quarter of each row's scores; sums are combined over the quad once, at the end. Sums and maxima of
    a row run in `chains` chains, 1 or 2: one waits for the latency of every addition, two take four registers more.
    """

    def __init__(self, spec: AttentionSpec, unit: float, name: str = "", chains: int = 2) -> None:
        self.spec, self.unit, self.chains = spec, unit, chains
        self.running = spec.normalizer == "softmax"
        self.exact = math.isfinite(spec.fill) or unit > 1.0
        """Subtract before multiplying: -3e38 times the unit, rounded, is no match for the same unrounded, or overflows.
        What is not exact takes one operation less, for scores below 1e9 / unit: beyond, roundings exceed the exponent.
        """
        if self.running:
            self.maxima = Registers(f"maxima{name}", 2)
            self.sums = Registers(f"sums{name}", 2 * chains)
            self.factor = Registers(f"factor{name}", 2)
            """What earlier results are to be multiplied by, after `update`."""
            self.partial = Registers(f"partial{name}", 2 * chains)
            self.shift = Registers(f"shift{name}", 2)

    def start(self, sinks: tuple[Any, Any] | None = None, lane: Any = None) -> None:
        """Begin a row. A sink counts once: in the quad's first lane."""
        if not self.running:
            return
        self.sums.fill(0.0)
        self.maxima.fill(-math.inf)
        for row, sink in enumerate(sinks or ()):
            self.maxima[row] = sink
            counts = tirx.all(tirx.EQ(mod(lane, 4), 0), self.maxima[row] > number(-math.inf))
            self.sums[row] = choose(counts, number(1.0), number(0.0))

    def update(self, tile: Registers) -> None:
        """Turn a tile of scores into weights, unnormalized, relative to the new maxima."""
        if not self.running:
            return
        for row in range(2):
            self.partial[row] = self.maxima[row]
            if self.chains == 2:
                self.partial[row + 2] = self.maxima[row]
        for n in range(tile.count):
            at = self.chain(n)
            self.partial[at] = maximum(self.partial[at], tile[n])
        for row in range(2):
            largest = self.partial[row]
            if self.chains == 2:
                largest = maximum(largest, self.partial[row + 2])
            over_quad(largest, maximum, (self.partial, row))
            new = self.partial[row]
            # -inf - -inf would be NaN: while a row has seen no key, its weights are relative to 0, and are 0
            base = choose(new > number(-math.inf), new, number(0.0))
            self.shift[row] = base if self.exact else base * number(self.unit)
            # Exactly 1 where the maximum stays, for it is multiplied by as often as there are tiles.
            self.factor[row] = exp2((self.maxima[row] - base) * number(self.unit))
            self.maxima[row] = new
            for part in range(row, 2 * self.chains, 2):
                self.sums[part] = self.sums[part] * self.factor[row]
        for n in range(tile.count):
            tile[n] = self._weight(tile[n], n // 2 % 2)
            at = self.chain(n)
            self.sums[at] = self.sums[at] + tile[n]

    def _weight(self, value: Any, row: int) -> Any:
        if self.exact:
            return exp2((value - self.shift[row]) * number(self.unit))
        return exp2(value * number(self.unit) - self.shift[row])  # one fused operation

    def chain(self, n: int) -> int:
        """Which sum register n of a tile goes to."""
        return n // 2 % 2 + (n % 2 * 2 if self.chains == 2 else 0)

    def rescale(self, result: Registers, first: int = 0, count: int | None = None) -> None:
        """Bring a result so far (or a part of its registers) to the new maxima."""
        if self.running:
            for n in range(first, result.count if count is None else first + count):
                result[n] = result[n] * self.factor[n // 2 % 2]

    def finish(self) -> None:
        """Combine the sums of the quad. Afterwards `inverse` is of use."""
        if self.running:
            for row in range(2):
                self.combine_sums(row)
                empty = number(math.nan if self.spec.empty_row == "nan" else 0.0)
                nothing = tirx.EQ(self.sums[row], number(0.0))  # and not `> 0`: NaN is to stay NaN
                self.factor[row] = choose(nothing, empty, number(1.0) / self.sums[row])

    def combine_sums(self, row: int) -> None:
        """The sum of a row's weights, in all four lanes that share it."""
        total = self.sums[row] + self.sums[row + 2] if self.chains == 2 else self.sums[row]
        over_quad(total, lambda a, b: a + b, (self.sums, row))

    def inverse(self, row: int) -> Any:
        """What a row of the result is to be multiplied by in the end."""
        return self.factor[row] if self.running else number(1.0)
