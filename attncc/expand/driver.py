"""Which nodes of Dynamo's graph are written out, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from attncc.bodies import bodies
from attncc.expand.checkpoint import expand_checkpoint, is_checkpoint
from attncc.expand.flex import expand_flex, is_flex
from attncc.expand.native import expand_kernel, is_kernel
from attncc.expand.regions import expand_regions, has_regions
from attncc.expand.splice import duplicate

log = logging.getLogger("attncc")


def expand(gm: fx.GraphModule, example_inputs: Sequence[Any] = ()) -> fx.GraphModule:
    """`gm` with what stands for a whole computation written out; `gm` itself where there is no such node.

    `example_inputs` are the values of its arguments where they are known. Raises `regions.NotFlat`.
    """
    if not _needed(gm):
        return gm
    gm = duplicate(gm)
    for _, name, body in bodies(gm):
        setattr(gm, name, expand(body))
    known = _known(gm, example_inputs)
    expand_regions(gm)
    for node in list(gm.graph.nodes):
        try:
            if is_flex(node):
                expand_flex(gm, node, known)
            elif is_kernel(node):
                expand_kernel(gm, node)
            elif is_checkpoint(node):
                expand_checkpoint(gm, node)
        except Exception as error:  # nothing is changed before all is traced
            log.info("%s is left as it is: %s: %s", node, type(error).__name__, error)
            log.debug("the cause", exc_info=True)
    gm.recompile()
    return gm


def _needed(gm: fx.GraphModule) -> bool:
    """Whether a graph or one inside of it has anything to write out."""
    found = any(is_flex(n) or is_kernel(n) or is_checkpoint(n) for n in gm.graph.nodes)
    return found or has_regions(gm) or any(_needed(body) for _, _, body in bodies(gm))


def _known(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Mapping[fx.Node, Tensor]:
    """The arguments whose values, not only shapes, are at hand."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    real = (torch.Tensor, torch.nn.Parameter)
    return {n: v for n, v in zip(placeholders, example_inputs, strict=False) if type(v) in real}
