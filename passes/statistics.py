"""Reductions over the keys of a weighted sum: what they reduce, at the place of the product that uses the weights."""

from __future__ import annotations

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.logform import uncast
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import axes_of
from attncc.symbolic import equal, product

_PASSED = ir.Map | ir.View | ir.Concat | ir.Gather | ir.Reduce


class Statistics:
    """The reductions behind the weights `weights` of `contract`. `used` has the names of those that were asked for."""

    def __init__(self, reader: Reader, contract: ir.Contract, weights: ex.Expr) -> None:
        self.reader, self.contract = reader, contract
        self.keys = set(contract.reduced)
        self.used: dict[str, None] = {}
        self._scores = {leaf.tensor for leaf in weights.walk() if isinstance(leaf, ex.Load) and self._moves(leaf)}
        self._computed = {t for t in self._scores if isinstance(reader.graph.nodes[t], ir.Contract | ir.Reduce)}
        self._behind: dict[tuple[str, bool], bool] = {}

    def __call__(self, expr: ex.Expr) -> bool:
        """Whether an expression is a value of the row that is made of such reductions."""
        found = False
        for node in expr.walk():
            if isinstance(node, ex.Index) and node.axis in self.keys:
                return False
            found = found or (isinstance(node, ex.Load) and self.is_reduction(node))
        return found

    def is_reduction(self, load: ex.Load) -> bool:
        """Whether a leaf is a reduction over what the weights are made of."""
        return isinstance(self.reader.graph.nodes[load.tensor], ir.Reduce) and self._reads_scores(load.tensor)

    def is_made_of_scores(self, load: ex.Load) -> bool:
        """Whether a leaf is a reduction of products of queries and keys, not of a mask or bias alone."""
        node = self.reader.graph.nodes[load.tensor]
        return isinstance(node, ir.Reduce) and self._reads_scores(load.tensor, computed=True)

    def reduced(self, load: ex.Load, kind: str) -> ex.Expr | None:
        """What a leaf is the reduction of, over the keys of the contract; None where it is no such reduction.

        Raises Refused where it runs over other positions, and `index.NeedsSplit` as `Reader.read` does.
        """
        node, access = self.reader.graph.nodes[load.tensor], self.reader.accesses.get(load)
        if not isinstance(node, ir.Reduce) or node.kind != kind or access is None:
            return None
        self.used[load.tensor] = None
        bound = bind(access, node, self.reader.sizes)
        if bound is None:
            return None
        contract = self.contract
        sizes = [node.sizes[a] for a in node.reduced]
        if not equal(product(sizes), product(contract.sizes[a] for a in contract.reduced)):
            raise Refused("the softmax runs over other positions than the product with V sums over", load.tensor)
        if len(node.reduced) == 1:
            bound[node.reduced[0]] = ix.merged(contract.reduced, contract.sizes)
        elif len(node.reduced) == len(contract.reduced):
            bound.update({a: ix.axis(b) for a, b in zip(node.reduced, contract.reduced, strict=True)})
        elif len(contract.reduced) == 1:
            raise ix.NeedsSplit(contract.reduced[0], product(sizes[1:]))
        else:
            return None
        return uncast(self.reader.read(node.operand.substitute(bound)))

    def over_another_axis(self, expr: ex.Expr) -> bool:
        """Whether weights are divided by a sum that moves along the keys: it runs over another axis."""
        return any(
            isinstance(n, ex.Load) and self._moves(n) and self.is_reduction(n) for n in expr.walk()
        )  # fmt: skip

    def _moves(self, load: ex.Load) -> bool:
        access = self.reader.accesses.get(load)
        return access is None or bool(axes_of(access) & self.keys)

    def _reads_scores(self, name: str, computed: bool = False) -> bool:
        """Whether a value is made of the leaves of the weights, or of those that are `computed`, by no product."""
        key, leaves = (name, computed), self._computed if computed else self._scores
        if key not in self._behind:
            self._behind[key] = False
            nodes = self.reader.graph.nodes
            self._behind[key] = any(
                r in leaves or (isinstance(nodes[r], _PASSED) and self._reads_scores(r, computed))
                for r in nodes[name].reads
            )
        return self._behind[key]
