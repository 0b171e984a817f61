"""FlexAttention's higher-order operator in plain operators: scores, score_mod, mask_mod, softmax, product, logsumexp.

Source: `torch._higher_order_ops.flex_attention.math_attention`, which defines the operator in eager mode; the same
precisions, the same empty rows, the same units (logsumexp and maximum in base 2).

A BlockMask carries a mask function and lists of the key blocks that each block of queries visits. PyTorch's eager
operator uses the function alone, its compiled kernels visit the listed blocks alone (and ask the function only in those
not listed as full). The two agree for what `create_block_mask` makes. Lists made otherwise, by hand or from data, are
meant as a part of the mask, so here a key is visible where the compiled kernels see it. To tell: a mask function that
is always true says nothing, so the lists are the mask; lists that this graph makes count as agreeing where
`create_block_mask` makes them; lists from outside are compared with the function on the values of the first call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.nn.attention.flex_attention import _vmap_for_bhqkv

from attncc.expand.splice import autocast_dtype, fake, splice, trace_flat, trace_whole

LARGEST = 2**28
"""Elements of a mask that is compared with its lists; lists of a larger one count as a part of the mask."""
_AT_ONCE = 2**22
_WHOLE = 1 << 29
"""Blocks from this size on are FlexAttention's way to say that there are none."""


def is_flex(node: fx.Node) -> bool:
    """Whether a node calls the higher-order operator."""
    return node.target is torch.ops.higher_order.flex_attention


@dataclass(frozen=True)
class _Call:
    """The arguments of a call that matter: tensors and numbers as FX nodes, the two functions as graphs."""

    operands: tuple[Any, Any, Any]
    scale: Any
    score_mod: fx.GraphModule
    score_buffers: tuple[Any, ...]
    mask_mod: fx.GraphModule
    mask_buffers: tuple[Any, ...]
    lists: tuple[Any, Any, Any, Any]
    """Number and indices of the key blocks, by block of queries, for which mask_mod is asked; the same of full ones."""
    block: tuple[int, int]


def _call(gm: fx.GraphModule, node: fx.Node) -> _Call:
    names = ("query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options",
             "score_mod_other_buffers", "mask_mod_other_buffers")  # fmt: skip
    given: dict[str, Any] = {n: () for n in names} | dict(zip(names, node.args, strict=False)) | node.kwargs
    blocks = given["block_mask"]
    score_mod, mask_mod = (getattr(gm, str(n.target)) for n in (given["score_mod"], blocks[-1]))
    return _Call(
        (given["query"], given["key"], given["value"]), given["scale"],
        score_mod, tuple(given["score_mod_other_buffers"]), mask_mod, tuple(given["mask_mod_other_buffers"]),
        tuple(blocks[2:6]), (blocks[-3], blocks[-2]),
    )  # fmt: skip


def expand_flex(gm: fx.GraphModule, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> None:
    """Write one call out in place. `known` are the arguments of the graph whose values are at hand."""
    call = _call(gm, node)
    everywhere = _always_true(call.mask_mod)
    lists = () if _lists_agree(call, everywhere, known) else tuple(x for x in call.lists if x is not None)
    q, k, _ = (fake(x) for x in call.operands)
    with q.fake_mode:
        scores = torch.empty((*q.shape[:3], k.shape[2]), dtype=_working(q), device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        score_mod = trace_flat(_at_every_position(call.score_mod, True), scores, *map(fake, call.score_buffers))
        mask_mod = trace_flat(_at_every_position(call.mask_mod, False), scores, *map(fake, call.mask_buffers))
    cast_to, device = autocast_dtype(node, q.device.type), q.device.type

    def whole(q: Tensor, k: Tensor, v: Tensor, scale: float, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        given, rest = rest[: len(lists)], rest[len(lists) :]
        score_buffers, mask_buffers = rest[: len(call.score_buffers)], rest[len(call.score_buffers) :]

        def modified(x: Tensor) -> Tensor:
            return cast(Tensor, fx.Interpreter(score_mod).run(x, *score_buffers))

        def visible(x: Tensor) -> Tensor | None:
            asked = None if everywhere else cast(Tensor, fx.Interpreter(mask_mod).run(x, *mask_buffers))
            return _inside(asked, _listed(x, given, call.block)) if given else asked

        if cast_to is None:
            return attention(q, k, v, scale, modified, visible)
        # The operator casts its operands, and what it does with them is out of autocast's reach.
        q, k, v = (x.to(cast_to) for x in (q, k, v))
        with torch.autocast(device, enabled=False):
            return attention(q, k, v, scale, modified, visible)

    inputs = [*call.operands, call.scale, *lists, *call.score_buffers, *call.mask_buffers]
    outputs = splice(gm, node, trace_whole(whole, *map(fake, inputs)), inputs)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    score_mod: Callable[[Tensor], Tensor],
    visible: Callable[[Tensor], Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, Sq, D], k [B, G, Skv, D], v [B, G, Skv, E] give [B, H, Sq, E] and, in base 2, logsumexp and maximum.

    `score_mod` and `visible` take the scores [B, H, Sq, Skv] in working precision.
    """
    working, group = _working(q), q.shape[1] // k.shape[1]
    if group != 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if k.shape[0] != q.shape[0]:
        k, v = (x.expand(q.shape[0], *x.shape[1:]) for x in (k, v))
    scores = q.to(working) @ k.to(working).transpose(-2, -1) * scale
    x, seen = score_mod(scores), visible(scores)
    if seen is not None:
        x = torch.where(seen, x, -math.inf)
    weights = torch._safe_softmax(x, -1)
    out = _laid_out_as(weights.to(q.dtype) @ v.to(q.dtype), q)
    return out, torch.logsumexp(x, -1) / math.log(2), x.amax(-1) / math.log(2)


def _working(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _at_every_position(mod: fx.GraphModule, takes_score: bool, row: int = 0) -> Callable[..., Tensor]:
    """A score_mod or mask_mod of scores [B, H, Sq, Skv] (of which a mask needs the shape) from row `row` on, and the
    buffers."""

    def once(*args: Any) -> Tensor:
        result = fx.Interpreter(mod).run(*args)
        return cast(Tensor, result[0] if isinstance(result, list | tuple) else result)

    def everywhere(scores: Tensor, *buffers: Any) -> Tensor:
        given = (scores,) if takes_score else ()
        positions = [torch.arange(n, device=scores.device) for n in scores.shape]
        if row:
            positions[2] = positions[2] + row
        mapped = _vmap_for_bhqkv(once, (0,) * len(given), (None,) * len(buffers))
        with TransformGetItemToIndex():  # table[h] with a position h is a read, not a number
            result: Tensor = mapped(*given, *positions, *buffers)
        return result

    return everywhere


def _laid_out_as(out: Tensor, q: Tensor) -> Tensor:
    """`out` with its dimensions in the order of the strides of q, the last one innermost, as the operator promises."""
    strides = [s.node.hint if isinstance(s, torch.SymInt) else s for s in q.stride()[:3]]
    if any(s is None for s in strides):
        return out
    order = sorted(range(3), key=lambda p: strides[p], reverse=True)
    if order == [0, 1, 2]:
        return out
    back = [order.index(p) for p in range(3)]
    return out.permute(*order, 3).contiguous().permute(*back, 3)


def _listed(x: Tensor, lists: Sequence[Tensor], block: tuple[int, int], row: int = 0) -> tuple[Tensor, Tensor | None]:
    """Whether the block of each score, from row `row` on, is listed to be asked for, and whether as full."""
    rows = (torch.arange(x.shape[2], device=x.device) + row) // block[0]
    columns = torch.arange(x.shape[3], device=x.device) // block[1]
    count = (x.shape[3] + block[1] - 1) // block[1]
    tables = [_table(*pair, count) for pair in zip(lists[::2], lists[1::2], strict=True)]
    found = [t[:, :, rows[:, None], columns] for t in tables]
    return found[0], found[1] if len(found) > 1 else None


def _table(numbers: Tensor, indices: Tensor, count: Any) -> Tensor:
    """[b, h, query blocks, key blocks]: whether a block is one of the first `numbers` of `indices`."""
    live = torch.arange(indices.shape[-1], device=indices.device) < numbers[..., None]
    nowhere = torch.where(live, indices, count).to(torch.int64)
    empty = torch.zeros((*numbers.shape, count + 1), dtype=torch.bool, device=indices.device)
    return empty.scatter(-1, nowhere, True)[..., :count]


def _inside(asked: Tensor | None, listed: tuple[Tensor, Tensor | None]) -> Tensor:
    partial, full = listed
    seen = partial if asked is None else partial & asked
    return seen if full is None else seen | full


def _always_true(mask_mod: fx.GraphModule) -> bool:
    """Whether a mask function returns `ones` whatever it is given, as FlexAttention's own `noop_mask` does."""
    (out,) = (n.args[0] for n in mask_mod.graph.nodes if n.op == "output")
    node = out[0] if isinstance(out, list | tuple) else out
    name = getattr(node.target, "__name__", node.target)
    return str(name).split(".")[0] in ("new_ones", "ones", "ones_like")


def _lists_agree(call: _Call, everywhere: bool, known: Mapping[fx.Node, Tensor]) -> bool:
    """Whether the lists add nothing to the mask function."""
    if min(int(b) for b in call.block) >= _WHOLE or _made_from_a_function(call.lists[1]):
        return True
    given = (*call.lists, *call.mask_buffers)
    values = [known.get(x) if isinstance(x, fx.Node) else x for x in given]
    if any(v is None and x is not None for v, x in zip(values, given, strict=True)):
        return False
    lists, buffers = [v for v in values[:4] if v is not None], values[4:]
    q, k, _ = (fake(x) for x in call.operands)
    batch, heads = lists[0].shape[:2]
    queries, keys = _example(q.shape[2]), _example(k.shape[2])
    if batch * heads * queries * keys > LARGEST:
        return False
    step = max(1, _AT_ONCE // (batch * heads * keys))
    with torch.no_grad():
        for row in range(0, queries, step):
            shape = (batch, heads, min(step, queries - row), keys)
            scores = torch.empty((1,), device=lists[0].device).expand(shape)
            asked = torch.ones(shape, dtype=torch.bool, device=scores.device)
            if not everywhere:
                asked = _at_every_position(call.mask_mod, False, row)(scores, *buffers).expand(shape)
            if not torch.equal(_inside(asked, _listed(scores, lists, call.block, row)), asked):
                return False
    return True


def _made_from_a_function(node: Any) -> bool:
    """Whether `create_block_mask` made a list in this graph."""
    return isinstance(node, fx.Node) and ", in create_block_mask\n" in str(node.meta.get("stack_trace"))


def _example(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)
