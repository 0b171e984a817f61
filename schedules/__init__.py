"""Schedule families: how an attention is computed on a kind of target.

One folder a target, one file a family. `families` lists them from special to general; `select` takes the first that
fits.
"""

from __future__ import annotations

from attncc.schedules.cpu.decode import Decode
from attncc.schedules.cpu.fallback import Fallback
from attncc.schedules.cpu.narrow import NarrowBf16, NarrowFp32
from attncc.schedules.cpu.prefill_amx import PrefillAmx, PrefillAmxFp16
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32
from attncc.schedules.cpu.prefill_mmla import PrefillMmla
from attncc.schedules.cpu.short import Short
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

CPU: tuple[Family, ...] = (
    Short(), Decode(), PrefillAmx(), PrefillAmxFp16(), NarrowBf16(), PrefillMmla(), PrefillBf16(), NarrowFp32(),
    PrefillFp32(), Fallback(),
)  # fmt: skip
"""From special to general; the last one takes every spec."""

__all__ = ["Decisions", "Declined", "Family", "Launch", "Problem", "families", "select"]


def families(target: Target) -> tuple[Family, ...]:
    """The families written for this kind of target, from special to general; none where there are no kernels for it."""
    if target.kind == "cuda":
        from attncc.schedules.cuda.families import CUDA

        return CUDA
    return CPU if target.kind == "cpu" else ()


def select(spec: AttentionSpec, problem: Problem, target: Target) -> Family:
    """The first family that takes the spec on this target and is meant for these sizes.

    Raises LookupError where there is none: the attention then runs as PyTorch runs it.
    """
    for family in families(target):
        if family.suits(spec, problem) and family.declines(spec, target) is None:
            return family
    raise LookupError(f"no schedule family for {spec} on {target}")
