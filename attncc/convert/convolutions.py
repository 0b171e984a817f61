"""Convolutions that see one position at a time: products over the channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from attncc import expr as ex
from attncc import ir
from attncc.convert.context import Context, Unsupported, dtype_name, lowers, map_node, position, result, space
from attncc.convert.contractions import contract

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "stride": (1,), "padding": (0, "valid", "same"), "dilation": (1,), "groups": (1,),
    "transposed": (False,), "output_padding": (0,),
}  # fmt: skip
"""Arguments with which a kernel of one position is a product, whatever the size of the input."""


@lowers("aten.conv1d.default", "aten.conv1d.padding", "aten.conv2d.default", "aten.conv2d.padding",
        "aten.convolution.default")  # fmt: skip
def convolution(c: Context, node: fx.Node) -> ir.Node:
    """weight[n, k] · x[batch, k, …] + bias[n], where the kernel has one position."""
    x, weight = c.value(node.args[0]), c.value(node.args[1])
    given = _arguments(node)
    if not all(_is_plain(given[name], allowed) for name, allowed in _PLAIN.items() if name in given):
        raise Unsupported("a convolution with strides, padding or groups is no product")
    if any(size != 1 for size in weight.shape[2:]):
        raise Unsupported("a convolution over several positions is no product")
    places = [f"place{n}" for n in range(len(weight.shape) - 2)]
    batch = ["batch"] if len(x.shape) == len(weight.shape) else []
    kernel = ["n", "k", *(f"kernel{n}" for n in range(len(places)))]
    bias = given.get("bias")
    product = contract(
        c,
        node.name if bias is None else f"{node.name}.product",
        [(x, [*batch, "k", *places]), (weight, kernel)],
        [*batch, "n", *places],
        dtype_name(result(node).dtype),
    )
    if bias is None:
        return product
    column = _column(c, f"{node.name}.bias", c.value(bias), len(places))
    return map_node(c, node.name, result(node), [product, column], lambda p, b: ex.op("add", p, b))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name; those that are not given have their defaults."""
    declared = node.target._schema.arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    return {**defaults, **dict(zip((a.name for a in declared), node.args, strict=False)), **node.kwargs}


def _is_plain(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether an argument, a number or one for each dimension, is among those allowed."""
    return all(one in allowed for one in (value if isinstance(value, list | tuple) else [value]))


def _column(c: Context, name: str, bias: ir.Node, places: int) -> ir.Node:
    """A value for each channel, with the dimensions that follow the channels."""
    axes, dims = space((*bias.shape, *([1] * places)))
    return c.add(ir.View(name, bias.dtype, axes, dims, ir.Access(bias.name, (position(dims, 0),))))
