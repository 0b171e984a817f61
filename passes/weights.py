"""What the weights of a weighted sum are, as far as it has been recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc import expr as ex
from attncc import ir


@dataclass(frozen=True)
class Weights:
    """x, how weights are made of it, what a row of nothing but -inf gives, the nodes that are its sums and maxima."""

    x: ex.Expr
    normalizer: str = "softmax"
    empty_row: str = "zero"
    reductions: tuple[str, ...] = ()
    sink: ex.Expr | None = None
    """x of a further column of the softmax that has no value."""
    shifted: bool = True
    """Whether the original subtracts the maximum: if not, it overflows where this does not."""
    rows: Mapping[str, tuple[str, ir.Access]] = field(default_factory=dict)
    """Of the reductions, the maximum of x ("max") and the sum of exp(x - maximum) ("sum"), and where they are read."""
    seen: tuple[ex.Expr, ...] = ()
    """Conditions under which the weights are 0 although the softmax runs over these keys too."""
