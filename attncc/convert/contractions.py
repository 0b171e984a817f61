"""Matrix products of every name, and sums: Contract and Reduce."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.convert.context import Context, Unsupported, as_dtype, dtype_name, lowers, map_node, position, result, space
from attncc.symbolic import Dim

Labelled = tuple[ir.Node, Sequence[str]]


def contract(
    c: Context, name: str, operands: Sequence[Labelled], output: Sequence[str], dtype: str
) -> ir.Node:  # fmt: skip
    """An einsum: every operand with a label a dimension. Dimensions of size 1 broadcast against larger ones.

    Operands of another dtype than the result's are cast first: so does autocast.
    """
    sizes: dict[str, Dim] = {}
    operands = [(cast_operand(c, name, n, v, dtype), labels) for n, (v, labels) in enumerate(operands)]
    for value, labels in operands:
        for label, size in zip(labels, value.shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    moving = [label for label in [*output, *(n for n in sizes if n not in output)] if sizes[label] != 1]
    names = dict(zip(moving, ir.fresh_axes((), len(moving)), strict=True))

    def index(label: str, size: Dim) -> ix.Linear:
        return ix.axis(names[label]) if size != 1 else ix.constant(0)

    reads = tuple(
        ir.Access(v.name, tuple(index(n, s) for n, s in zip(labels, v.shape, strict=True))) for v, labels in operands
    )
    dims = tuple((names[n],) if n in names else () for n in output)
    return c.add(ir.Contract(name, dtype, tuple((names[n], sizes[n]) for n in moving), dims, reads))


@lowers("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default",
        "aten.__matmul__.default", "aten.linalg_matmul.default")  # fmt: skip
def matmul(c: Context, node: fx.Node) -> ir.Node:
    """a @ b in any rank."""
    a, b = c.value(node.args[0]), c.value(node.args[1])
    return _product(c, node, node.name, a, b)


def _product(c: Context, node: fx.Node, name: str, a: ir.Node, b: ir.Node) -> ir.Node:
    batch = [f"batch{n}" for n in range(max(len(a.shape), len(b.shape)) - 2)]
    left = (batch[len(batch) - len(a.shape) + 2 :] if len(a.shape) > 2 else []) + ["m", "k"][-len(a.shape) :]
    right = (batch[len(batch) - len(b.shape) + 2 :] if len(b.shape) > 2 else []) + ["k", "n"][: len(b.shape)]
    output = [*batch, *(["m"] if len(a.shape) > 1 else []), *(["n"] if len(b.shape) > 1 else [])]
    return contract(c, name, [(a, left), (b, right)], output, dtype_name(result(node).dtype))


@lowers("aten.linear.default")
def linear(c: Context, node: fx.Node) -> ir.Node:
    """x @ weight.T + bias."""
    x, weight = c.value(node.args[0]), c.value(node.args[1])
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    rows = [f"row{n}" for n in range(len(x.shape) - 1)]
    name = node.name if bias is None else f"{node.name}.product"
    output = [*rows, "n"] if len(weight.shape) == 2 else rows
    labels = ["n", "k"] if len(weight.shape) == 2 else ["k"]
    product = contract(c, name, [(x, [*rows, "k"]), (weight, labels)], output, dtype_name(result(node).dtype))
    if bias is None:
        return product
    return map_node(c, node.name, result(node), [product, c.value(bias)], lambda p, b: ex.op("add", p, b))


@lowers("aten.inner.default")
def inner(c: Context, node: fx.Node) -> ir.Node:
    """The sum over the last dimension of both, for all pairs of rows."""
    a, b = c.value(node.args[0]), c.value(node.args[1])
    left, right = ([f"{side}{n}" for n in range(len(x.shape) - 1)] for side, x in (("a", a), ("b", b)))
    if not a.shape or not b.shape:
        raise Unsupported("inner of a tensor without dimensions")
    return contract(
        c, node.name, [(a, [*left, "k"]), (b, [*right, "k"])], [*left, *right], dtype_name(result(node).dtype)
    )


@lowers("aten.addmm.default", "aten.baddbmm.default", "aten.addbmm.default")
def product_plus(c: Context, node: fx.Node) -> ir.Node:
    """beta * input + alpha * (a @ b)."""
    if "addbmm" in str(node.target) and "baddbmm" not in str(node.target):
        raise Unsupported("addbmm sums over the batch")
    start, a, b = (c.value(x) for x in node.args[:3])
    beta, alpha = (node.kwargs.get(n, 1) for n in ("beta", "alpha"))
    product = _product(c, node, f"{node.name}.product", a, b)
    # beta = 0 means by definition that the input is not even read: NaN in it does not count.
    terms = [(product, alpha)] if beta == 0 else [(start, beta), (product, alpha)]
    arguments: list[ex.Expr | ir.Node] = [x for value, factor in terms for x in (value, c.scalar(factor))]

    def body(*leaves: ex.Expr) -> ex.Expr:
        scaled = [
            x if factor == ex.Const(1, "int64") else ex.op("mul", x, as_dtype(factor, x.dtype))
            for x, factor in zip(leaves[::2], leaves[1::2], strict=True)
        ]
        return scaled[0] if len(scaled) == 1 else ex.op("add", *scaled)

    return map_node(c, node.name, result(node), arguments, body)


@lowers("aten.einsum.default")
def einsum(c: Context, node: fx.Node) -> ir.Node:
    """Any equation without repeated labels in one operand."""
    equation, operands = str(node.args[0]).replace(" ", ""), [c.value(o) for o in node.args[1]]
    inputs, arrow, output = equation.partition("->")
    terms = [_letters(t, len(o.shape)) for t, o in zip(inputs.split(","), operands, strict=True)]
    if any(len(set(t)) != len(t) for t in terms):
        raise Unsupported(f"einsum {equation} takes a diagonal")
    everything = [x for t in terms for x in t]
    if arrow:
        dots = sorted({x for x in everything if x.startswith(".")}, reverse=True)
        kept = [x for part in ([*output.partition("...")] if "..." in output else [output])
                for x in (dots if part == "..." else part)]  # fmt: skip
    else:
        raise Unsupported("einsum without an output")
    return contract(c, node.name, list(zip(operands, terms, strict=True)), kept, dtype_name(result(node).dtype))


def _letters(term: str, rank: int) -> list[str]:
    """The labels of one operand; an ellipsis gives `.n`, counted from the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{n}" for n in reversed(range(hidden))), *after]


@lowers("aten.sum.dim_IntList", "aten.amax.default")
def reduction(c: Context, node: fx.Node) -> ir.Node:
    """Sum or maximum over some dimensions."""
    kind = "sum" if "sum" in str(node.target) else "max"
    source = c.value(node.args[0])
    over = node.args[1] if len(node.args) > 1 else None
    keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    if over is None:
        raise Unsupported("a reduction over everything")
    along = [int(d) % len(source.shape) for d in over]
    source = in_dtype(c, f"{node.name}.input", source, dtype_name(result(node).dtype))
    return reduce_over(c, node.name, kind, source, along, keep)


def cast_operand(c: Context, name: str, number: int, value: ir.Node, dtype: str) -> ir.Node:
    """An operand of the product `name` in the dtype of the product. Raises Unsupported for integers."""
    if value.dtype != dtype and not {value.dtype, dtype} <= set(ex.FLOATS):
        raise Unsupported(f"a product in {dtype} of {value.dtype} operands")
    return in_dtype(c, f"{name}.cast{number}", value, dtype)


def in_dtype(c: Context, name: str, source: ir.Node, dtype: str) -> ir.Node:
    """`source` in another dtype, as a Map called `name`; itself where it has that dtype."""
    if source.dtype == dtype:
        return source
    axes, dims = space(source.shape)
    access = ir.Access(source.name, tuple(position(dims, p) for p in range(len(dims))))
    return c.add(ir.Map(name, dtype, axes, dims, (access,), as_dtype(ex.Arg(0, source.dtype), dtype)))


def reduce_over(c: Context, name: str, kind: str, source: ir.Node, along: Sequence[int], keep: bool) -> ir.Node:
    """A Reduce of `source` over some of its dimensions, or a View of the same one made before."""
    axes, dims = space(source.shape)
    along = tuple(sorted(along))
    access = ir.Access(source.name, tuple(position(dims, p) for p in range(len(dims))))
    out = tuple(() if p in along else d for p, d in enumerate(dims) if keep or p not in along)
    kept = {a for d in out for a in d}
    ordered = (*((a, s) for a, s in axes if a in kept), *((a, s) for a, s in axes if a not in kept))
    made = c.once((kind, source.name, along), lambda: c.add(ir.Reduce(name, source.dtype, ordered, out, kind, access)))
    if made.name == name:
        return made
    sizes = [() if p in along else d for p, d in enumerate(dims) if len(made.dims) == len(dims) or p not in along]
    index = tuple(ix.axis(d[0]) if d else ix.constant(0) for d in sizes)
    remaining = tuple((a, s) for a, s in axes if a in kept)
    return c.add(ir.View(name, source.dtype, remaining, out, ir.Access(made.name, index)))


@lowers("aten.max.dim")
def max_with_indices(c: Context, node: fx.Node) -> ir.Node:
    """Only the first output has a form; `getitem` takes it."""
    raise Unsupported("maximum with indices")


def first_of_max(c: Context, node: fx.Node, maker: fx.Node) -> ir.Node:
    """The values of `max(x, dim)`."""
    source = c.value(maker.args[0])
    along = int(maker.args[1]) % len(source.shape)
    keep = bool(maker.args[2] if len(maker.args) > 2 else maker.kwargs.get("keepdim", False))
    return reduce_over(c, node.name, "max", source, [along], keep)
