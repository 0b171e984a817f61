"""Fuse score, softmax and weighted sum into one Attention.

    %s = contract{b, h, i, j | d} %q[b, h, i, d] * %k[b, h, j, d]
    %x = map  f(%s[b, h, i, j], …)
    %m = reduce{b, h, i | j} max %x;  %e = map exp(%x - %m);  %z = reduce{b, h, i | j} sum %e;  %p = map %e / %z
    %o = contract{b, h, i, e | j} %p[b, h, i, j] * %v[b, h, j, e]          →  %o = attention{…} %q, %k, %v

Layout, rank and grouping of heads are in the axes (`roles`), scale, bias and mask in f (`simplify`, `build_spec`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.build_spec import SpecBuilder
from attncc.passes.fold_views import bind
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import Roles, assign, axes_of
from attncc.passes.simplify import simplify, split_mask
from attncc.passes.softmax import Softmax, match_softmax
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim, product, value


@dataclass(frozen=True)
class _Score:
    """The score product seen from the weighted sum: operands over its axes, W if bilinear, sizes of all axes."""

    load: ex.Load
    q: ir.Access
    k: ir.Access
    weight: ir.Access | None
    sizes: dict[str, Dim]
    inner: tuple[str, ...]
    """The axis of the head dimension, then of W's rows."""


def fuse_attention(graph: ir.Graph) -> ir.Graph:
    """The graph with every weighted sum that can be fused replaced by an Attention of the same name."""
    tried = [why_not(graph, node) for node in graph if isinstance(node, ir.Contract)]
    fused = [node for node in tried if isinstance(node, ir.Attention)]
    return graph.with_nodes(fused, "fuse_attention").without_dead()


def why_not(graph: ir.Graph, contract: ir.Contract) -> ir.Attention | Refused | None:
    """The Attention that a product is, why it is none, or None for a product that has nothing to do with a softmax."""
    try:
        return fuse(graph, contract)
    except Refused as refused:
        return refused
    except LookupError:
        return None


def fuse(graph: ir.Graph, contract: ir.Contract) -> ir.Attention:
    """The Attention that a product is. Raises Refused, and LookupError where no operand is a softmax."""
    while True:
        try:
            return _fused(graph, contract)
        except ix.NeedsSplit as split:
            contract = contract.split(split.axis, split.inner)  # type: ignore[assignment]


def _fused(graph: ir.Graph, contract: ir.Contract) -> ir.Attention:
    if len(contract.operands) != 2 or not contract.reduced:
        raise LookupError("not a weighted sum")
    reader = Reader(graph, contract.sizes)
    for weights, v in (contract.operands, contract.operands[::-1]):
        softmax = match_softmax(reader, contract, weights)
        if softmax is not None:
            return _attention(reader, contract, softmax, weights, v)
    raise LookupError("no operand is a softmax")


def _attention(
    reader: Reader, contract: ir.Contract, softmax: Softmax, weights: ir.Access, v: ir.Access
) -> ir.Attention:
    graph = reader.graph
    score = _score(reader, contract, softmax.x)
    covers = _covered(reader, contract, softmax, score.load.tensor)
    roles = _with_fixed_group(graph, assign(contract, weights, score.q, score.k, v), score)
    sizes = score.sizes
    axes_by_role = {"b": roles.b, "h": roles.h, "i": roles.i, "j": roles.j}
    q, k, v = (_uncast(graph, a) for a in (score.q, score.k, v))
    dtype = _common_dtype(graph, q, k, v)
    builder = SpecBuilder(graph, axes_by_role, sizes, "float64" if dtype == "float64" else "float32", score.load)
    x, mask, fill = split_mask(
        simplify(softmax.x, score.load), lambda tree: any(node == score.load for node in tree.walk())
    )
    score_mod = builder.convert(x)
    mask = None if mask is None else builder.convert(mask)
    static: list[tuple[Dim, int]] = []

    def fixed(axes: tuple[str, ...], what: str) -> int:
        size = product(sizes[a] for a in axes)
        known = value(size, graph.hints)
        if known is None:
            raise Refused(f"the {what} is not a fixed number", contract.name)
        if not isinstance(size, int):
            static.append((size, known))
        return known

    bilinear = None
    if score.weight is not None:
        rank = 3 if axes_of(score.weight) - set(score.inner) else 2
        bilinear = builder.extra(score.weight.value, (None,) * rank, graph.nodes[score.weight.value].dtype)
        builder.extras.pop()  # passed as `weight`, which says where its axes are
    rows = score.inner[1:] or score.inner
    spec = AttentionSpec(
        dtype=dtype,
        head_dim=fixed(score.inner[:1], "head size"),
        value_dim=fixed(roles.e, "head size of the values"),
        group=fixed(roles.r, "number of query heads a key head serves"),
        bilinear=bilinear,
        query_dim=fixed(rows, "row size of the queries") if bilinear is not None else None,
        score_mod=score_mod,
        mask=mask,
        fill=fill,
        empty_row=softmax.empty_row if mask is None or fill == -float("inf") else "zero",
        extras=tuple(builder.declared),
        scalars=tuple(f"s{n}" for n in range(len(builder.scalars))),
        integers=tuple(f"n{n}" for n in range(len(builder.integers))),
    )
    if any(e.dtype not in ex.DTYPES for e in builder.declared):
        raise Refused("the mask or bias has a dtype that no kernel reads", contract.name)
    all_roles = (*axes_by_role.items(), ("r", roles.r), ("d", score.inner[:1]), ("c", rows), ("e", roles.e))
    return ir.Attention(
        contract.name, contract.dtype, tuple(sizes.items()), contract.dims,
        q, k, v, score.weight, tuple(builder.extras), spec, all_roles,
        tuple(builder.scalars), tuple(builder.integers), tuple(static), covers,
    )  # fmt: skip


def _covered(reader: Reader, contract: ir.Contract, softmax: Softmax, score: str) -> tuple[str, ...]:
    """The nodes between score product and weighted sum. Raises Refused where anything else reads one of them."""
    inside = {score, *reader.through, *softmax.reductions}
    covered = {score}
    for name in reader.graph.nodes:
        if name in inside and any(r in covered for r in reader.graph.nodes[name].reads):
            covered.add(name)
    for name in covered:
        others = [u.name for u in reader.graph.users(name) if u.name not in covered and u.name != contract.name]
        if name in reader.graph.outputs:
            others.append("the caller")
        if others:
            what = "scores" if name == score else "attention weights"
            raise Refused(f"the {what} are also used by {others[0]}, and a fused kernel does not return them", name)
    return tuple(name for name in reader.graph.nodes if name in covered)


def _score(reader: Reader, contract: ir.Contract, x: ex.Expr) -> _Score:
    """The product of queries and keys in a score: of several, the first that fits. Raises Refused."""
    loads = dict.fromkeys(leaf for leaf in x.walk() if isinstance(leaf, ex.Load))
    refused: Refused | None = None
    for load in loads:
        node = reader.graph.nodes[load.tensor]
        access = reader.accesses.get(load)
        if not isinstance(node, ir.Contract) or access is None:
            continue
        bound = bind(access, node, reader.sizes)
        if bound is None:
            continue
        try:
            return _operands(reader, contract, node, load, bound)
        except Refused as reason:
            refused = refused or reason
    notes = [n.note for n in (reader.graph.nodes[x.tensor] for x in loads) if isinstance(n, ir.Opaque) and n.note]
    why = f" ({notes[0]})" if notes else ""
    raise refused or Refused(f"the softmax is not over a product of queries and keys{why}", contract.name)


def _operands(
    reader: Reader, contract: ir.Contract, node: ir.Contract, load: ex.Load, bound: dict[str, ix.Linear]
) -> _Score:
    keys = set(contract.reduced)
    fresh = ir.fresh_axes((*contract.sizes, *node.sizes), len(node.reduced))
    bound = {**bound, **{a: ix.axis(f) for a, f in zip(node.reduced, fresh, strict=True)}}
    sizes = {**contract.sizes, **{f: node.sizes[a] for a, f in zip(node.reduced, fresh, strict=True)}}
    operands = [a.substitute(bound) for a in node.operands]
    weight = operands.pop(1) if len(operands) == 3 else None
    if len(operands) != 2 or len(fresh) != (1 if weight is None else 2):
        raise Refused("the score is not a product of two tensors over one axis", node.name)
    moving = [bool(axes_of(a) & keys) for a in operands]
    if moving[0] == moving[1]:
        side = "both operands of the score product move" if moving[0] else "no operand of the score product moves"
        raise Refused(f"{side} along the axis of the softmax", node.name)
    k, q = operands if moving[0] else operands[::-1]
    inner = tuple(sorted(fresh, key=lambda a: a not in axes_of(k)))
    if weight is not None and not axes_of(weight) - set(inner) <= set(contract.sizes):
        raise Refused("the matrix of the score has an axis that the output lacks", node.name)
    return _Score(load, q, k, weight, sizes, inner)


def _with_fixed_group(graph: ir.Graph, roles: Roles, score: _Score) -> Roles:
    """A group has a fixed size and queries of its own; what has not becomes a plain axis, with K and V broadcast."""
    if set(roles.r) <= axes_of(score.q) and value(product(score.sizes[a] for a in roles.r), graph.hints) is not None:
        return roles
    return replace(roles, r=())


def _uncast(graph: ir.Graph, access: ir.Access) -> ir.Access:
    """The value before a cast to float32: products accumulate in float32 anyway."""
    node = graph.nodes[access.value]
    match node:
        case ir.Map(body=ex.Op("cast", (ex.Arg(_, dtype),), "float32")) if dtype in ("bfloat16", "float16"):
            sizes = {a: s for a, s in node.axes}
            plain = all(
                i.is_axis(d[0]) if len(d) == 1 else not i.terms
                for d, i in zip(node.dims, node.operands[0].index, strict=True)
            )
            if plain and sizes:
                return ir.Access(node.operands[0].value, access.index)
    return access


def _common_dtype(graph: ir.Graph, *operands: ir.Access) -> str:
    """The widest dtype of the operands. Raises Refused."""
    dtypes = {graph.nodes[a.value].dtype for a in operands}
    if not dtypes <= set(ex.FLOATS):
        raise Refused(f"queries, keys and values are {', '.join(sorted(dtypes))}", operands[0].value)
    if dtypes == {"bfloat16", "float16"}:
        return "float32"
    return min(dtypes, key=ex.FLOATS.index)
