"""What follows from the replay of a site that is to be fused."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx

from attncc import replay
from attncc.passes.refused import Refused
from attncc.replay_gradient import gradients_differ

log = logging.getLogger("attncc")
_REPLAYED: dict[Any, str | None] = {}
"""Results by everything that a replay depends on: the layers of a model are alike."""


class Unsound(Refused):
    """The replay saw a difference."""


def check_values(lengths: list[int], original: fx.Node, result: fx.Node, leaves: list[fx.Node]) -> None:
    """Raises Refused where the emitted nodes do not compute what the original does."""
    try:
        key = _signature(result, original, leaves)
        if key not in _REPLAYED:
            _REPLAYED[key] = replay.differs(result, original, leaves, lengths)
        problem = _REPLAYED[key]
    except replay.TooLarge as error:
        log.debug("%s: not replayed: %s", original.name, error)
        return
    except Exception as error:
        log.debug("%s: replay failed", original.name, exc_info=True)
        raise Refused(f"the replay of the site failed: {type(error).__name__}: {error}") from error
    if problem is not None:
        raise Unsound(f"the replay showed {problem}")


def _signature(result: fx.Node, original: fx.Node, leaves: list[fx.Node]) -> tuple[Any, ...]:
    """All that a replay depends on, names left out."""
    nodes = [*replay.cone(result, leaves), *replay.cone(original, leaves)]
    number: dict[fx.Node, int] = {}
    parts: list[str] = []
    for node in nodes:
        number.setdefault(node, len(number))
        fake = node.meta.get("val")
        kind = str(fake)
        if isinstance(fake, torch.Tensor):  # strides too: overlapping views show by them what lies where
            kind = f"{fake.dtype}{tuple(map(str, fake.shape))}{tuple(map(str, fake.stride()))}"
        args = fx.map_arg((node.args, node.kwargs), lambda n: number.get(n, -1)) if node.op == "call_function" else ()
        parts.append(f"{node.op if node not in leaves else 'leaf'} {node.target if args else ''} {args} {kind}")
    return tuple(parts)


def check_gradients(lengths: list[int], original: fx.Node, result: fx.Node, leaves: list[fx.Node]) -> None:
    """Raises Refused where the emitted nodes would let a gradient through that the original cuts."""
    try:
        differ = gradients_differ(result, original, leaves, lengths)
    except Exception as error:
        log.debug("%s: gradients not replayed", original.name, exc_info=True)
        raise Refused(f"a gradient is cut (detach) inside of the attention, and not to be checked: {error}") from error
    if differ:
        raise Refused("a gradient is cut (detach) inside of the attention")
