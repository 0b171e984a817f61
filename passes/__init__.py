"""The rewrites, one a file, and their order. Each is a pure function from graph to graph."""

from collections.abc import Callable

from attncc import ir
from attncc.passes.distribute import distribute
from attncc.passes.divide_first import divide_first
from attncc.passes.fold_views import fold_views
from attncc.passes.fuse_attention import fuse_attention
from attncc.passes.hoist_scale import hoist_scale
from attncc.passes.join_products import join_products
from attncc.passes.merge_bilinear import merge_bilinear
from attncc.passes.product_sum import product_sum
from attncc.passes.split_concat import split_concat
from attncc.passes.split_factors import split_factors

PASSES: tuple[Callable[[ir.Graph], ir.Graph], ...] = (
    # Layouts become names: every node reads what was really computed.
    fold_views,
    # Products in one form: by whatever name, scalars outside, over all keys at once, chains of products together.
    product_sum,
    split_factors,
    hoist_scale,
    join_products,
    merge_bilinear,
    # Softmaxes in one form: further columns as terms of the sum, the division before the product with V.
    split_concat,
    divide_first,
    distribute,
    # Score, softmax and weighted sum become one node.
    fuse_attention,
)
