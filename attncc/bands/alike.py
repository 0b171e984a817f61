"""One proof for all sites of a graph that are written alike, as the layers of a model are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from attncc.bands.prove import check_unchanged, prove
from attncc.bands.terms import Apply, Band, Dot, Number, Read, Term
from attncc.bands.walk import RULES, before
from attncc.convert.effects import functional, storages, written
from attncc.passes.refused import Refused

log = logging.getLogger("attncc")


def prove_all(products: Iterable[fx.Node]) -> dict[fx.Node, Band | Refused]:
    """For each product of one graph, the attention over a band that it is, or why it is none."""
    found: dict[fx.Node, Band | Refused] = {}
    known: dict[Any, tuple[Sequence[fx.Node], Band | Refused]] = {}
    for node in products:
        nodes = before(node)
        form = _form(nodes)
        if form not in known:
            known[form] = nodes, _proved(node)
        found[node] = _proved_again(nodes, *known[form])
    return found


def _proved(node: fx.Node) -> Band | Refused:
    try:
        return prove(node)
    except Refused as refused:
        return refused
    except Exception as error:  # an operator that does not run on cells: the graph is left as it is
        log.debug("%s: elements not followed", node.name, exc_info=True)
        return Refused(f"its elements cannot be followed ({type(error).__name__}: {error})")


def _proved_again(nodes: Sequence[fx.Node], others: Sequence[fx.Node], result: Band | Refused) -> Band | Refused:
    """What was proved of `others`, of `nodes`, with all that is checked for each site."""
    if isinstance(result, Refused):
        return result
    band = _of(dict(zip(others, nodes, strict=True)), result)
    try:
        check_unchanged(nodes, band)
    except Refused as refused:
        return refused
    return band


def _form(nodes: Sequence[fx.Node]) -> Any:
    """All that a proof depends on, names left out."""
    number = {node: n for n, node in enumerate(nodes)}
    memory: dict[int, int] = {}

    def argument(node: fx.Node) -> str:
        """Of what lends a shape or a dtype only, nothing: the result has them."""
        fake = node.meta.get("val")
        return f"%{number[node]}" if node in number else "" if isinstance(fake, Tensor) else str(fake)

    parts: list[Any] = []
    for node in nodes:
        fake = node.meta.get("val")
        kind: Any = str(fake)
        if isinstance(fake, Tensor):
            places = (*fake.shape, "", *fake.stride(), "", fake.storage_offset())
            kind = (str(fake.dtype), *map(str, places))
        keys = tuple(memory.setdefault(key, len(memory)) for key in storages(fake))
        changed = tuple(number.get(target, -1) for target in written(node))
        followed = functional(str(node.target)) in RULES
        args = fx.map_arg((node.args, node.kwargs), argument) if followed else ()
        parts.append((node.op, str(node.target) if followed else "", str(args), kind, keys, changed))
    return tuple(parts)


def _of(nodes: Mapping[fx.Node, fx.Node], proved: Band) -> Band:
    """What was proved of other nodes, of these."""
    return replace(
        proved,
        node=nodes[proved.node],
        softmax=nodes[proved.softmax],
        score=_term(nodes, proved.score),
        value=_read(nodes, proved.value),
        casts=tuple(nodes[n] for n in proved.casts),
        zeroed=tuple((_term(nodes, condition), where) for condition, where in proved.zeroed),
    )


def _read(nodes: Mapping[fx.Node, fx.Node], read: Read) -> Read:
    return replace(read, node=nodes[read.node])


def _term(nodes: Mapping[fx.Node, fx.Node], term: Term) -> Term:
    match term:
        case Read():
            return _read(nodes, term)
        case Dot(left, right, summed, node):
            return Dot(_read(nodes, left), _read(nodes, right), summed, nodes[node])
        case Apply(kind, operands, node):
            return Apply(kind, tuple(_term(nodes, o) for o in operands), nodes[node])
        case Number():
            return term
