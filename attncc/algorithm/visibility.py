"""Which keys count, as far as only the data can tell: what a kernel evaluates to find the keys that it has to visit.

Bounds from the form of a mask (`bounds`) know nothing of what tensors hold. Where a mask reads a tensor by key position
(padding, documents, a mask that is a tensor), or a bias may hold -inf, a kernel can look for the first and the last key
that count before it reads any key: that costs some bytes a key.

Hidden keys may count after all: they have the weight of `fill`, or of a bias such as finfo.min, in rows that see
nothing larger. A kernel that leaves them out then has to make sure that each row's maximum is above `safe_maximum`, and
to visit all keys where it is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from attncc import expr as ex
from attncc.algorithm.bounds import Bounds, key_bounds
from attncc.spec import AttentionSpec

MARGIN = 110.0
"""A key whose x is this far below its row's maximum has probability 0: float32's exp ends at -87.3."""
HIDDEN_BIAS = -3.0e38
"""A bias that hides a key: -inf, or the lowest numbers of float32 and bfloat16."""
SAFE_MAXIMUM = -1e30
"""Above this maximum, a key with a hiding bias has probability 0 whatever its score."""


def visible(spec: AttentionSpec) -> ex.Expr | None:
    """A condition in b, h, i and j on what tensors hold, false for keys that do not count; None where there is none."""
    parts = [part for part in _conjuncts(spec.mask) if _reads_by_key(part)] if spec.mask is not None else []
    parts += [not_hiding(bias) for bias in biases(spec)]
    return functools.reduce(functools.partial(ex.op, "and"), parts) if parts else None


def by_data(spec: AttentionSpec) -> bool:
    """Whether only data tell how many keys a batch or head has."""
    bounds = key_bounds(spec.mask, by_row=True)
    read = any(isinstance(node, ex.Load) for end in (bounds.lo, bounds.hi) for node in end.walk())
    return read or visible(spec) is not None


def safe_maximum(spec: AttentionSpec) -> float | None:
    """What a row's maximum must be above for hidden keys to weigh nothing; None where they never weigh anything."""
    limits = [SAFE_MAXIMUM] if biases(spec) else []
    if spec.normalizer == "softmax" and math.isfinite(spec.fill) and _hides(spec):
        limits.append(spec.fill + MARGIN)
    return max(limits, default=None)


def row_bounds(spec: AttentionSpec) -> Bounds | None:
    """The bounds of one row i, where they read a tensor by it (`j <= position[i]`); None where they do not."""
    found = key_bounds(spec.mask, by_row=True)
    by_row = [node for end in (found.lo, found.hi) for node in end.walk() if _reads(node, "i")]
    return found if by_row else None


def biases(spec: AttentionSpec) -> list[ex.Expr]:
    """The terms of x, beside the score's, that read a tensor by key position: they may hold -inf, and hide keys."""
    if spec.normalizer != "softmax":
        return []
    terms = [term for term in _terms(spec.score_mod) if _reads_by_key(term)]
    return [term for term in terms if not any(isinstance(node, ex.Score) for node in term.walk())]


def not_hiding(bias: ex.Expr) -> ex.Expr:
    """Whether `bias` hides no key; NaN does not."""
    return ex.op("not", ex.op("le", bias, ex.Const(HIDDEN_BIAS, "float32")), dtype="bool")


def _hides(spec: AttentionSpec) -> bool:
    """Whether anything is known of the mask that hides keys."""
    bounds = key_bounds(spec.mask, by_row=True)
    everything = key_bounds(None)
    return (bounds.lo, bounds.hi) != (everything.lo, everything.hi) or visible(spec) is not None


def _conjuncts(node: ex.Expr) -> Iterator[ex.Expr]:
    """The conditions of which `node` is the conjunction."""
    if isinstance(node, ex.Op) and node.name == "and" and all(a.dtype == "bool" for a in node.operands):
        for operand in node.operands:
            yield from _conjuncts(operand)
    else:
        yield node


def _terms(node: ex.Expr) -> Iterator[ex.Expr]:
    match node:
        case ex.Op("add", operands) if node.dtype in ex.FLOATS:
            for operand in operands:
                yield from _terms(operand)
        case ex.Op("cast", (operand,)) if node.dtype in ex.FLOATS and operand.dtype in ex.FLOATS:
            yield from _terms(operand)
        case _:
            yield node


def _reads_by_key(node: ex.Expr) -> bool:
    """Whether a tensor is read at a position that is j, or that says where j is in a coarser order (j // 32).

    Positions such as j - i are those of a table of distances, which hides nothing.
    """
    return any(_reads(part, "j") for part in node.walk())


def _reads(node: ex.Expr, axis: str) -> bool:
    if not isinstance(node, ex.Load):
        return False
    return any({n.axis for n in at.walk() if isinstance(n, ex.Index)} == {axis} for at in node.index)
