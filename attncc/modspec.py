"""A spec with a call's score and mask functions in it, remembered for as long as the functions stay the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from attncc import expr as ex
from attncc import modfn, modstate
from attncc.modargs import Operands
from attncc.spec import AttentionSpec, Extra

_FUNCTIONS = 128


@dataclass(frozen=True)
class _Functions:
    """What tracing a call's functions gave. It holds no tensor: those are found again in each call's functions."""

    text: str
    """JSON of the spec with the functions in it."""
    places: tuple[int, ...]
    """For each captured tensor its place among all that the functions can reach."""
    scalars: tuple[float, ...]
    integers: tuple[int | tuple[int, int], ...]


def extend(
    spec: AttentionSpec,
    q: Tensor,
    score_mod: Callable[..., Any] | None,
    mask_mods: Sequence[Callable[..., Any]],
) -> tuple[str, list[Tensor], tuple[float, ...], list[int]]:
    """`spec` with the functions in it, as JSON, and what they read: tensors (further extras), scalars from s1 on, and
    integers. Raises what `attncc.modfn.trace` raises.
    """
    functions = (score_mod, *mask_mods)
    reached: list[Tensor] = []
    states = tuple([None if f is None else modstate.snapshot(f, reached) for f in functions])
    known = all((f is None) == (state is None) for f, state in zip(functions, states, strict=True))
    identity = (spec.json, q.dtype, q.device, states)
    found = _functions.get(identity) if known else None
    if found is None:
        text, operands = _extended(spec, q, score_mod, mask_mods)
        places = [next((n for n, t in enumerate(reached) if t is captured), -1) for captured in operands.tensors]
        found = _Functions(text, tuple(places), tuple(operands.scalars), tuple(operands.integers))
        captured = operands.tensors
        if known and -1 not in places:
            _functions[identity] = found
            while len(_functions) > _FUNCTIONS:
                _functions.popitem(last=False)
    else:
        captured = [reached[place] for place in found.places]
    integers = [n if isinstance(n, int) else int(captured[n[0]].shape[n[1]]) for n in found.integers]
    return found.text, captured, found.scalars, integers


def _extended(
    spec: AttentionSpec,
    q: Tensor,
    score_mod: Callable[..., Any] | None,
    mask_mods: Sequence[Callable[..., Any]],
) -> tuple[str, Operands]:
    """The spec with the functions' expressions in it, and the tensors that they capture."""
    operands = Operands(first_extra=len(spec.extras))
    score, mask = spec.score_mod, spec.mask
    if score_mod is not None:
        scaled = next(
            node for node in score.walk() if isinstance(node, ex.Op) and ex.Scalar("s0", score.dtype) in node.args
        )
        changed = modfn.trace(score_mod, "score_mod", operands, q.dtype, q.device)
        if changed.dtype != score.dtype:
            changed = ex.op("cast", changed, dtype=score.dtype)
        changed = ex.substitute(changed, lambda node: scaled if isinstance(node, ex.Score) else None)
        score = ex.substitute(score, lambda node: changed if node == scaled else None)
    added = [modfn.trace(mask_mod, "mask_mod", operands, q.dtype, q.device) for mask_mod in mask_mods]
    mask = conjunction([m for m in (mask, *added) if m is not None])
    captured = tuple(Extra(operands.name(t), modfn.dtype_name(t.dtype), t.ndim) for t in operands.tensors)
    extended = replace(
        spec,
        score_mod=score,
        mask=mask,
        extras=spec.extras + captured,
        scalars=("s0", *(f"s{1 + at}" for at in range(len(operands.scalars)))),
        integers=tuple(f"n{at}" for at in range(len(operands.integers))),
    )
    return extended.json, operands


def conjunction(masks: Sequence[ex.Expr]) -> ex.Expr | None:
    """The conjunction of boolean expressions; None for none."""
    if not masks:
        return None
    result = masks[0]
    for mask in masks[1:]:
        result = ex.op("and", result, mask, dtype="bool")
    return result


_functions: OrderedDict[Any, _Functions] = OrderedDict()
