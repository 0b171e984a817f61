"""Scales of the rows of values: factors of weights where they differ by key, else of the result.

Weights are multiplied by tensor cores as 16-bit floats. Those of float16 have all their digits from 6e-5 to 65504,
and a scale may be 1e-6: there, weights are relative to the largest scale so far, as they are to the largest score.
"""

from __future__ import annotations

from typing import Any, cast

from attncc import expr as ex
from attncc._tvm import tirx
from attncc.algorithm.lower_expr import lower
from attncc.schedules.cuda.device import Registers, choose, maximum, number, over_quad
from attncc.schedules.cuda.scores import Rows, Scores
from attncc.schedules.cuda.softmax import OnlineSoftmax
from attncc.spec import AttentionSpec

_LARGEST = 3.0e38


class ValueScales:
    """The scales of a tile's values, for the two rows of a thread."""

    def __init__(self, spec: AttentionSpec, scores: Scores, keys: int) -> None:
        self.scale, self.scores = spec.value_scale, scores
        self.by_key = self.scale is not None and any(node == ex.Index("j") for node in self.scale.walk())
        self.relative = self.by_key and spec.dtype == "float16"
        if self.by_key:
            self.scales = Registers("value_scales", keys // 2)
        if self.relative:
            self.largest, self.before = Registers("largest_scale", 2), Registers("scale_before", 2)
            self.largest.fill(0.0)

    def weigh(self, tile: Registers, rows: Rows, key: Any, softmax: OnlineSoftmax) -> None:
        """Multiply weights by scales, between `softmax.update` and its `rescale`; `key` is as in `Scores`."""
        if not self.by_key:
            return
        for n in self.scores.each(tile.count, key, self.scale):
            self.scales[n] = self._value(rows, n)
        if self.relative:
            self._raise(softmax)
        for n in range(tile.count):
            scale = self.scales[n] * (number(1.0) / self._base(n // 2 % 2)) if self.relative else self.scales[n]
            tile[n] = tile[n] * scale

    def factor(self, rows: Rows, row: int) -> Any:
        """What a row of the result is to be multiplied by in the end."""
        if self.scale is None:
            return number(1.0)
        if not self.by_key:
            return self._value(rows, 2 * row)
        return self._base(row) if self.relative else number(1.0)

    def _value(self, rows: Rows, n: int) -> Any:
        return lower(cast(ex.Expr, self.scale), self.scores.env(self.scores.position(rows, n)))

    def _raise(self, softmax: OnlineSoftmax) -> None:
        """The largest scales so far, this tile's included; earlier results become relative to them."""
        for row in range(2):
            self.before[row] = self.largest[row]
            for n in range(self.scales.count):
                if n // 2 % 2 == row:
                    self.largest[row] = maximum(self.largest[row], tirx.abs(self.scales[n]))
            over_quad(self.largest[row], maximum, (self.largest, row))
            self.largest[row] = tirx.min(self.largest[row], number(_LARGEST))  # infinity over itself would be NaN
            softmax.factor[row] = softmax.factor[row] * (self.before[row] / self._base(row))

    def _base(self, row: int) -> Any:
        largest = self.largest[row]
        return choose(largest > number(0.0), largest, number(1.0))
