"""A tile of prefill: a block of query rows of one head, its sizes, and the buffers that live as long as it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T
from attncc.algorithm import numeric
from attncc.algorithm.lower_expr import Env
from attncc.algorithm.signature import Signature, compute_dtype
from attncc.algorithm.storage import storage_dtype, unpack
from attncc.algorithm.transpose import ANY, Turning
from attncc.algorithm.visibility import biases
from attncc.spec import AttentionSpec


@dataclass(frozen=True)
class Tiling:
    """What the algorithm must know of a schedule: the tile sizes baked into it, and how tiles are stored."""

    queries: int
    """Query rows of a tile."""
    keys: int
    """Keys of a full step."""
    columns: int
    """Columns of the output tile, at least value_dim; those past it are scratch."""
    dtype: str
    """dtype of the q, k, v and probability tiles: what the products multiply. Sums are in the compute dtype."""

    edge_keys: int = 0
    """Keys of an edge step, which `keys` is a multiple of; 0 for `keys`. Diagonals and short sequences waste less."""
    ahead: int = 0
    """Rows of k between what is multiplied and what memory is asked for (`prefetch`); 0 where it is not asked."""
    turning: Turning = ANY
    """How squares of vectors are turned over."""

    @property
    def edge(self) -> int:
        """Keys of an edge step."""
        return self.edge_keys or self.keys

    @property
    def storage(self) -> str:
        """dtype of the buffers of those tiles."""
        return storage_dtype(self.dtype)


@dataclass(frozen=True)
class Tile:
    """A tile under construction: where it is, and the buffers that live as long as it does."""

    spec: AttentionSpec
    tiling: Tiling
    signature: Signature
    scalars: Mapping[str, Any]
    """The spec's run-time scalars, in the compute dtype."""
    batch: Any
    kv_head: Any
    head: Any
    first_row: Any
    query: Buffer
    """[head_dim, queries]"""
    scores: Buffer
    """[keys, queries]: x"""
    probabilities: Buffer
    """[keys, queries]"""
    output: Buffer
    """[columns, queries]: the sum of p v so far, over the sum of p"""
    new_output: Buffer
    maximum: Buffer
    """[queries]: the largest x so far"""
    new_maximum: Buffer
    base: Buffer
    """[queries]: what is subtracted from x; the maximum, or 0 where that is -inf"""
    total: Buffer
    """[queries]: the sum of p so far"""
    new_total: Buffer
    decay: Buffer
    """[queries]: what a step multiplies earlier sums with"""
    inverse: Buffer
    """[queries]: 1 / the final sum, or what an empty row gives"""

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """All that the key loop reads."""
        return (*self.signature.inputs, self.query, *self.writes)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """All that the key loop writes, and reads again."""
        products = (self.scores, self.probabilities, self.output, self.new_output)
        if not self.softmax:
            return products
        return (*products, self.maximum, self.new_maximum, self.base, self.total, self.new_total, self.decay)

    @property
    def unit(self) -> float:
        """What the tile's scores, and their maximum, are multiples of: a constant factor of x, or 1."""
        return _parts(self.spec)[1]

    @property
    def score_mod(self) -> ex.Expr:
        """x in this unit."""
        return _parts(self.spec)[0]

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return compute_dtype(self.spec)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised; else x itself is the weight, and the statistics have no use."""
        return self.spec.normalizer == "softmax"

    def unpack(self, value: Any) -> Any:
        """An element of a q, k, v or probability tile, in the compute dtype."""
        return unpack(self.tiling.dtype, self.dtype, value)

    def row(self, query: Any) -> Any:
        """Position of a query row; rows past the end repeat the last one."""
        return T.min(self.first_row + query, self.signature.sizes["Sq"] - 1)

    def env(self, query: Any, key: Any, score: Any) -> Env:
        """What the leaves of score_mod and mask are, for a query of the tile and the position of a key."""
        index = {"b": self.batch, "h": self.head, "i": self.row(query), "j": key}
        return Env(self.dtype, index, self.signature.sizes, self.scalars, self.signature.extras, score)

    def element_env(self, column: Any, elements: Mapping[str, Any]) -> Env:
        """What the leaves of `element` are, for a column of q and k."""
        index = {"b": self.batch, "h": self.head, "d": numeric.cast("int64", column)}
        return Env(self.dtype, index, self.signature.sizes, self.scalars, self.signature.extras, None, elements)


def _parts(spec: AttentionSpec) -> tuple[ex.Expr, float]:
    """score_mod without its last, constant factor, and that factor: the exponential multiplies anyway.

    1 where x is compared with anything but x itself: a finite fill, a sink, a bias that may hide keys. Factors above 1
    stay as well: they can make an x infinite.
    """
    comparable = spec.mask is None or math.isinf(spec.fill)
    if spec.normalizer == "softmax" and comparable and spec.sink is None and not biases(spec):
        match spec.score_mod:
            case ex.Op("mul", (ex.Const(factor), rest)) | ex.Op("mul", (rest, ex.Const(factor))):
                if rest.dtype in ex.FLOATS and 0 < factor <= 1:
                    return rest, float(factor)
    return spec.score_mod, 1.0
