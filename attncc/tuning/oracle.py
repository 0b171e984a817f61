"""Whether a candidate computes the attention: held against float64 where that is affordable, and everywhere else
against the default's kernel, which has passed the same test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncc import reference
from attncc.runtime.operands import Operands
from attncc.spec import AttentionSpec

ULP = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number."""
PRODUCTS = 1 << 25
"""Multiply-adds in float64 that a check may take."""
CHUNK = 1 << 23
"""Of them at a time: each is a number in memory."""
HEADS = 3


@dataclass
class Oracle:
    """What the outputs of one call should be. Raises ValueError by `check` where they are not."""

    spec: AttentionSpec
    operands: Operands
    trusted: Sequence[Tensor] | None = None
    """Outputs of the kernel that has passed, of which every element counts."""
    expected: Mapping[str, Tensor] = field(init=False)
    only: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.only = _chosen(self.spec, self.operands)
        parts = _chunks(self.only, self.operands)
        found = [reference.outputs(self.spec, *self.operands, only=part) for part in parts]
        self.expected = {name: torch.cat([part[name] for part in found], dim=2) for name in found[0]}
        heaviest = float(self.expected["weights"].abs().sum(-1).nan_to_num().max())  # a softmax's are 1 in all
        self.scale = _largest(self.spec, self.operands) * max(1.0, heaviest)

    def check(self, outputs: Sequence[Tensor]) -> None:
        """Raise ValueError for outputs that are not the attention's, in the words of the first difference."""
        for name, given in zip(self.spec.outputs, outputs, strict=True):
            b, h, i = (self.only[axis] for axis in "bhi")
            _near(name, given[b][:, h][:, :, i], self.expected[name], self._bound(name, given))
        for n, (name, given) in enumerate(zip(self.spec.outputs, outputs, strict=True)):
            if self.trusted is not None:  # both may err, each to its side
                _near(name, given, self.trusted[n], 2 * self._bound(name, given))

    def _bound(self, name: str, given: Tensor) -> float:
        """The largest error that an output may have, as the tests of the kernels have it."""
        unit = (16 if self.spec.dtype in ("float32", "float64") else 3) * ULP[self.spec.dtype]
        if name == "out":
            return unit * self.scale
        if name == "weights":
            return unit
        finite = self.expected["max"][self.expected["max"].isfinite()].abs()
        top = max(1.0, float(finite.max())) if finite.numel() else 1.0
        total = max(1.0, float(self.expected["sum"].nan_to_num().max())) if name == "sum" else 1.0
        return 16 * ULP[str(given.dtype)[6:]] * top * total


def _near(name: str, given: Tensor, expected: Tensor, bound: float) -> None:
    """Raise ValueError where NaN or infinity stand in other places, or a number is off by more than `bound`."""
    if not torch.equal(given.isnan(), expected.isnan()):
        raise ValueError(f"wrong result: {name} is NaN, or never written, where it should not be")
    same = (given == expected) | given.isnan()
    error = float((given.double() - expected).masked_fill(same, 0.0).abs().max()) if given.numel() else 0.0
    if not error <= bound:
        raise ValueError(f"wrong result: {name} is off by {error:.3g}, and {bound:.3g} is allowed")


def _chosen(spec: AttentionSpec, operands: Operands) -> dict[str, Tensor]:
    """Batches, heads and rows that are worked out in float64: those at the ends, and some between."""
    q, k = operands[:2]
    batch, heads, rows = q.shape[:3]
    each = k.shape[2] * (spec.head_dim + spec.value_dim)
    counts = {"b": min(batch, 2), "h": min(heads, HEADS)}
    affordable = max(1, PRODUCTS // (each * counts["b"] * counts["h"]))
    return {
        "b": _spread(batch, counts["b"]), "h": _spread(heads, counts["h"]), "i": _spread(rows, min(rows, affordable)),
    }  # fmt: skip


def _spread(size: int, count: int) -> Tensor:
    """`count` different numbers below `size`: a third of them from either end, the rest at random."""
    third = min(max(1, count // 3), count // 2)
    ends = torch.cat([torch.arange(third), torch.arange(size - third, size)])
    between = torch.arange(third, size - third)
    drawn = between[torch.randperm(len(between), generator=torch.Generator().manual_seed(2))[: count - len(ends)]]
    return torch.cat([ends, drawn]).sort().values


def _chunks(only: Mapping[str, Tensor], operands: Operands) -> list[dict[str, Tensor]]:
    """The choice in parts of as many rows as fit into `CHUNK`."""
    k, v = operands[1:3]
    a_row = only["b"].numel() * only["h"].numel() * k.shape[2] * max(k.shape[3], v.shape[3])
    return [{**only, "i": rows} for rows in only["i"].split(max(1, CHUNK // a_row))]


def _largest(spec: AttentionSpec, operands: Operands) -> float:
    """The largest absolute value that a row may mix."""
    q, k, v, extras, scalars, integers = operands
    finite = v.double()[v.double().isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    if spec.value_scale is None:
        return largest
    counts = {"B": q.shape[0], "H": q.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    names = (*(e.name for e in spec.extras), *spec.scalars, *spec.integers)
    where = dict(zip(names, (*extras, *scalars, *integers), strict=True))
    scale = reference.evaluate(spec.value_scale, {**where, **counts, **reference.grid(counts)})
    return largest * float(scale.abs().max())
