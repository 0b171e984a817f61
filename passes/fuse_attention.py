"""Fuse score, softmax and weighted sum into one Attention.

    %s = contract{b, h, i, j | d} %q[b, h, i, d] * %k[b, h, j, d]
    %x = map  f(%s[b, h, i, j], …)
    %m = reduce{b, h, i | j} max %x;  %e = map exp(%x - %m);  %z = reduce{b, h, i | j} sum %e;  %p = map %e / %z
    %o = contract{b, h, i, e | j} %p[b, h, i, j] * %v[b, h, j, e]          →  %o = attention{…} %q, %k, %v

Layout, rank and grouping of heads are in the axes (`roles`), scale, bias and mask in f (`simplify`, `build_spec`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.build_spec import SpecBuilder
from attncc.passes.codes import Rows, rows
from attncc.passes.leaks import Candidate, known_values, with_outputs
from attncc.passes.operand_dtype import before_cast, common_dtype
from attncc.passes.pointwise import check_pointwise, is_attention, match_pointwise, split_zero
from attncc.passes.read import Reader, is_parameter
from attncc.passes.refused import Refused
from attncc.passes.roles import Roles, assign, axes_of
from attncc.passes.score_product import NO_PRODUCT, ScoreProduct, covered, score_products
from attncc.passes.simplify import ABSORBING, conjuncts, simplify, split_mask
from attncc.passes.softmax import match_softmax
from attncc.passes.split_scores import merge_split_scores
from attncc.passes.weights import Weights
from attncc.spec import DOT, AttentionSpec
from attncc.symbolic import Dim, product, value


def fuse_attention(graph: ir.Graph) -> ir.Graph:
    """The graph with every weighted sum that can be fused replaced by an Attention of the same name."""
    fused, _ = examine(graph)
    return graph.with_nodes(fused, "fuse_attention").without_dead()


def examine(graph: ir.Graph) -> tuple[list[ir.Node], dict[str, Refused]]:
    """The attentions of a graph with their further outputs, and by product why others are none."""
    if _LAST and _LAST[0][0] is graph:
        return _LAST[0][1]
    candidates: dict[str, Candidate] = {}
    refused: dict[str, Refused] = {}
    for node in graph:
        if isinstance(node, ir.Contract):
            found = _candidate(graph, node)
            if isinstance(found, Candidate):
                candidates[node.name] = found
            elif found is not None:
                refused[node.name] = found
    result = _standing(graph, candidates, refused), refused
    _LAST[:] = [(graph, result)]
    return result


_LAST: list[tuple[ir.Graph, tuple[list[ir.Node], dict[str, Refused]]]] = []
"""The graph that was examined last: what is fused and what is not are asked for one after the other."""


def _candidate(graph: ir.Graph, contract: ir.Contract) -> Candidate | Refused | None:
    """The attention that a product is, why it is none, or None for one that has nothing to do with attention."""
    try:
        while True:
            try:
                return _fused(graph, contract)
            except ix.NeedsSplit as split:
                contract = contract.split(split.axis, split.inner)  # type: ignore[assignment]
    except Refused as reason:
        return reason
    except LookupError:
        return None
    except ValueError as error:  # a size that no expression can say
        return Refused(str(error), contract.name)


def _standing(graph: ir.Graph, candidates: dict[str, Candidate], refused: dict[str, Refused]) -> list[ir.Node]:
    """The attentions that nothing else depends on the inside of; those that fall take with them what relied on them."""
    while True:
        made: list[ir.Node] = []
        covers = {name: {name, *c.covers} for name, c in candidates.items()}
        for name, candidate in candidates.items():
            others = {n for other, nodes in covers.items() if other != name for n in nodes}
            try:
                made += with_outputs(graph, candidate, others, {n.name for n in made if isinstance(n, ir.Output)})
            except Refused as reason:
                refused[name] = reason
                del candidates[name]
                break
        else:
            return made


def _fused(graph: ir.Graph, contract: ir.Contract) -> Candidate:
    """The attention that a product is. Raises Refused, and LookupError where no operand can be its weights."""
    if len(contract.operands) != 2 or not contract.reduced:
        raise LookupError("not a weighted sum")
    # What sums up many products is no score; to read it at every layer would cost the square of their number.
    both = (contract.operands, contract.operands[::-1])
    pairs = [pair for pair in both if len(graph.products[pair[0].value]) < ir.MANY]
    for access, v in pairs:
        reader = Reader(graph, contract.sizes)
        weights = match_softmax(reader, contract, access)
        if weights is not None:
            return _attention(reader, contract, _scored(reader, contract, weights, v), (access, v))
    for access, v in pairs:
        reader = Reader(graph, contract.sizes)
        weights = None if is_parameter(graph, v) else match_pointwise(reader, contract, access)
        if weights is None:
            continue
        try:
            scored = _scored(reader, contract, weights, v)
            roles = scored.roles(contract, access, v)
        except Refused:  # a product of the right shape is not even nearly an attention
            continue
        if is_attention(scored.graph, scored.weights.x, scored.score, v, roles):
            check_pointwise(reader, contract, weights.x)
            return _attention(reader, contract, scored, (access, v))
    raise LookupError("no operand is a weight of attention")


_NOTHING = ex.Const(0.0, "float32")
_EXP_IS_ZERO = -750.0
"""Below this, exp is 0 in float64 and in all smaller dtypes."""


@dataclass(frozen=True)
class _Scored:
    """Weights with the product of queries and keys in them, and the graph with the nodes that this takes."""

    graph: ir.Graph
    weights: Weights
    score: ScoreProduct
    products: frozenset[str]
    made: tuple[ir.Node, ...] = ()

    def roles(self, contract: ir.Contract, access: ir.Access, v: ir.Access) -> Roles:
        """The roles of the contract's axes. Raises Refused."""
        others = ex.substitute(self.weights.x, lambda part: _NOTHING if part == self.score.load else None)
        positions = frozenset(leaf.axis for leaf in others.walk() if isinstance(leaf, ex.Index))
        return assign(contract, access, self.score.q, self.score.k, v, positions)


def _scored(reader: Reader, contract: ir.Contract, weights: Weights, v: ir.Access) -> _Scored:
    """The weights with one product of queries and keys: several are joined, or else the first is taken."""
    graph = reader.graph
    products, refused = score_products(reader, contract, weights.x, v)
    merged = merge_split_scores(graph, contract, weights.x, products)
    if merged is not None:
        x, score, made = merged
        names = frozenset(p.load.tensor for p in products)
        return _Scored(graph.with_nodes(made), replace(weights, x=x), score, names, tuple(made))
    if not products:
        raise refused or Refused(NO_PRODUCT, contract.name)
    return _Scored(graph, weights, products[0], frozenset([products[0].load.tensor]))


def _attention(
    reader: Reader, contract: ir.Contract, scored: _Scored, operands: tuple[ir.Access, ir.Access]
) -> Candidate:
    access, v = operands
    graph, weights, score, sizes = scored.graph, scored.weights, scored.score, scored.score.sizes
    roles = scored.roles(contract, access, v)
    covers = covered(reader, weights, scored.products)
    roles = _with_fixed_group(graph, roles, score)
    axes_by_role = {"b": roles.b, "h": roles.h, "i": roles.i, "j": roles.j}
    q, entered = before_cast(graph, score.q, sizes)
    k = rows(graph, score.k, sizes, score.inner) if score.element is None else Rows(*before_cast(graph, score.k, sizes))
    values = rows(graph, v, sizes, roles.e)
    dtype = common_dtype(contract.name, [entered, k.dtype, values.dtype])
    weights = weights if k.scale is None else replace(weights, x=_times(weights.x, score.load, k.scale))
    builder = SpecBuilder(graph, axes_by_role, sizes, "float64" if dtype == "float64" else "float32", score.load)
    x, mask, fill, empty_row = _masked(weights, score.load, contract.name)
    score_mod = builder.convert(x)
    mask = None if mask is None else builder.convert(mask)
    value_scale = None if values.scale is None else builder.convert(values.scale)
    sink = None if weights.sink is None else builder.convert(simplify(weights.sink, score.load))
    static: list[tuple[Dim, int]] = []

    def fixed(axes: tuple[str, ...], what: str) -> int:
        size = product(sizes[a] for a in axes)
        known = value(size, graph.hints)
        if known is None:
            raise Refused(f"the {what} is not a fixed number", contract.name)
        if not isinstance(size, int):
            static.append((size, known))
        return known

    bilinear, weight = None, score.weight
    if weight is not None:
        weight, kind = before_cast(graph, weight, sizes)
        rank = 3 if axes_of(weight) - {*score.inner, *score.rows} else 2
        bilinear = builder.extra(weight.value, (None,) * rank, kind)
        builder.extras.pop()  # passed as `weight`, which says where its axes are
    element = DOT if score.element is None else builder.element(score.element, score.inner)
    spec = AttentionSpec(
        dtype=dtype,
        element=element,
        head_dim=fixed(score.inner, "head size"),
        value_dim=fixed(roles.e, "head size of the values"),
        group=fixed(roles.r, "number of query heads a key head serves"),
        bilinear=bilinear,
        query_dim=fixed(score.rows, "row size of the queries") if bilinear is not None else None,
        score_mod=score_mod,
        mask=mask,
        fill=fill,
        normalizer=weights.normalizer,
        sink=sink,
        key_dtype=k.codes,
        value_dtype=values.codes,
        value_scale=value_scale,
        empty_row=empty_row,
        extras=tuple(builder.declared),
        scalars=tuple(f"s{n}" for n in range(len(builder.scalars))),
        integers=tuple(f"n{n}" for n in range(len(builder.integers))),
    )
    if any(e.dtype not in ex.DTYPES for e in builder.declared):
        raise Refused("the mask or bias has a dtype that no kernel reads", contract.name)
    all_roles = (*axes_by_role.items(), ("r", roles.r), ("d", score.inner), ("c", score.rows), ("e", roles.e))
    attention = ir.Attention(
        contract.name, contract.dtype, tuple(sizes.items()), contract.dims,
        q, k.access, values.access, weight, tuple(builder.extras), spec, all_roles,
        tuple(builder.scalars), tuple(builder.integers), tuple(static), covers,
    )  # fmt: skip
    known = known_values(graph, access, sizes, weights.rows)
    return Candidate(attention, scored.products, frozenset(covers), known, scored.made)


def _times(x: ex.Expr, score: ex.Load, factor: ex.Expr) -> ex.Expr:
    """x with the score times a factor in the place of the score."""
    scaled = ex.op("mul", score, factor, dtype=score.dtype)
    return ex.substitute(x, lambda part: scaled if part == score else None)


def _masked(weights: Weights, score: ex.Load, name: str) -> tuple[ex.Expr, ex.Expr | None, float, str]:
    """Score modification, mask, fill and what an empty row gives. Raises Refused."""
    x = simplify(weights.x, score)
    if weights.normalizer == "none":
        x, mask = split_zero(x, score)
        return x, mask, -math.inf if mask is None else 0.0, "zero"
    x, mask, fill = split_mask(x if weights.shifted else _vanishing(x), lambda tree: score in tree.walk())
    seen = {part for condition in weights.seen for part in conjuncts(simplify(condition, score))}
    seen -= {part for part in seen if isinstance(part, ex.Const) and part.value}  # a mask of ones hides nothing
    if seen:
        if mask is None or fill > ABSORBING or seen != set(conjuncts(mask)):
            raise Refused("the weights are changed between the softmax and the product with V", name)
        return x, mask, -math.inf, "zero"
    return x, mask, fill, weights.empty_row if mask is None or fill == -math.inf else "zero"


def _vanishing(x: ex.Expr) -> ex.Expr:
    """x with -inf for a finite number that hides keys, of a softmax that subtracts no maximum: there exp makes 0 of
    both, and 0 / 0 of a row that sees no key."""
    match x:
        case ex.Op("where", (condition, yes, no)):
            return ex.op("where", condition, _vanishing(yes), _vanishing(no))
        case ex.Const(value) if value < _EXP_IS_ZERO:
            return ex.Const(-math.inf, x.dtype)
    return x


def _with_fixed_group(graph: ir.Graph, roles: Roles, score: ScoreProduct) -> Roles:
    """A group has a fixed size and queries of its own; what has not becomes a plain axis, with K and V broadcast."""
    if set(roles.r) <= axes_of(score.q) and value(product(score.sizes[a] for a in roles.r), graph.hints) is not None:
        return roles
    return replace(roles, r=())
