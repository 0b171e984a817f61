"""`vmap` inside of compiled code: the region between two changes of nesting, written out over whole tensors.

    x' = _add_batch_dim(x, 0, 1);  y' = f(x');  y = _remove_batch_dim(y', 1, n, 0)        →        y = F(x)

PyTorch's own batching rules are what writes f out: the region is run under them on fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from attncc.expand.splice import autocast_dtype, fake, splice, trace_flat

_IN, _OUT = "_vmap_increment_nesting", "_vmap_decrement_nesting"
_ALLOWED = (_IN, _OUT, "_add_batch_dim", "_remove_batch_dim", "lazy_load_decompositions")


class NotFlat(Exception):
    """A vmap region has no form over whole tensors; the message says why."""


def has_regions(gm: fx.GraphModule) -> bool:
    """Whether `vmap` is in the graph."""
    return any(_name(n) == _IN for n in gm.graph.nodes)


def expand_regions(gm: fx.GraphModule) -> None:
    """Write out every vmap region in place. Raises NotFlat."""
    for region in list(_regions(gm)):
        _expand(gm, region)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _regions(gm: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """The nodes of each outermost region, from the first change of nesting to the last."""
    region: list[fx.Node] = []
    depth = 0
    for node in gm.graph.nodes:
        depth += _name(node) == _IN
        if depth:
            region.append(node)
        if _name(node) == _OUT:
            depth -= 1
            if depth == 0:
                yield region
                region = []


def _expand(gm: fx.GraphModule, region: list[fx.Node]) -> None:
    inside = set(region)
    for node in region:
        if "functorch" in str(getattr(node.target, "__module__", "")) and _name(node) not in _ALLOWED:
            raise NotFlat(f"{_name(node)} inside of vmap")
    inputs = list(dict.fromkeys(n for node in region for n in node.all_input_nodes if n not in inside))
    outputs = [n for n in region if any(user not in inside for user in n.users)]

    def run(*values: Any) -> list[Any]:
        interpreter = _PlainAttention(gm, garbage_collect_values=False)
        interpreter.env = dict(zip(inputs, values, strict=True))
        for node in region:
            with interpreter._set_current_node(node):
                interpreter.env[node] = interpreter.run_node(node)
        return [interpreter.env[n] for n in outputs]

    device = next((v.device.type for v in map(fake, inputs) if isinstance(v, Tensor)), "cpu")
    dtype = autocast_dtype(region[0], device)
    try:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            traced = trace_flat(run, *map(fake, inputs))
    except Exception as error:
        raise NotFlat(f"vmap could not be written out: {type(error).__name__}: {error}") from error
    for node in traced.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotFlat(f"{node.target} draws random numbers inside of vmap")
    for old, new in zip(outputs, splice(gm, region[0], traced, inputs), strict=True):
        old.replace_all_uses_with(new)
    for node in reversed(region):
        gm.graph.erase_node(node)


class _PlainAttention(fx.Interpreter):
    """Runs a region with attention calls spelled out: their batching rules pick kernels."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.nn.functional.scaled_dot_product_attention and not kwargs.get("dropout_p"):
            return scaled_dot_product_attention(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """SDPA as PyTorch documents it, rows without a key included: [..., Sq, D], [..., Skv, D], [..., Skv, E]."""
    if dropout_p:
        raise NotFlat("dropout draws random numbers inside of vmap")
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
    x = query @ key.transpose(-2, -1) * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
        x = torch.where(columns <= rows[:, None], x, -math.inf)
    if attn_mask is not None:
        x = torch.where(attn_mask, x, -math.inf) if attn_mask.dtype == torch.bool else x + attn_mask
    empty = x.amax(-1, keepdim=True) == -math.inf
    return torch.where(empty, 0.0, torch.softmax(x, -1)) @ value
