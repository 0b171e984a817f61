"""What the families for NVIDIA GPUs share: what they refuse, what their tiles must fit, how the runtime asks them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from attncc.schedules.cuda.gpu import LONGEST, capability, shared_limit
from attncc.schedules.cuda.room import Room
from attncc.schedules.cuda.surveyed import surveyed
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule, PrimFunc

WORK = np.zeros((0, 4), np.int32)
"""No work table: thread blocks know their tiles by their numbers."""
_DTYPES = ("bfloat16", "float16")
_WIDEST = 256
_MOST_LISTED = 2**31
"""Elements of all lists of a survey, for places in them to be int32."""
_LEAST_TILE = (32, 32)
"""Rows and keys of the least tile of prefill."""
_MOST_BLOCKS = 2**16
"""In the second and third dimension of a grid, where heads and batches go."""


class CudaFamily(Family):
    """What the families share: 16-bit dot products, head sizes that are multiples of 8."""

    oldest: int
    """The least compute capability, times 10."""
    converts = False
    """Whether keys and values may be codes."""

    @property
    def gpus(self) -> str:
        """Which GPUs run it, beginning with the oldest."""
        return f"sm_{self.oldest} and newer"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cuda":
            return Declined(f"the target is a {target.kind}")
        if capability(target) < self.oldest:
            return Declined(f"needs sm_{self.oldest} or newer, and the GPU is {target.mcpu}")
        if spec.dtype not in _DTYPES:
            return Declined(f"tensor cores multiply {' and '.join(_DTYPES)}, not {spec.dtype}")
        for name, width in (("head_dim", spec.head_dim), ("value_dim", spec.value_dim)):
            if width % 8 or width > _WIDEST:
                return Declined(f"{name} {width} is not a multiple of 8 up to {_WIDEST}")
        if spec.element != DOT or spec.bilinear is not None:
            return Declined("the score is no dot product of q and k")
        if spec.outputs != ("out",):
            return Declined(f"gives only the result, not {', '.join(spec.outputs[1:])}")
        if spec.quantized and not self.converts:
            return Declined("keys or values are codes with scales")
        return self.refuses(spec)

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        """Reasons of this family's own."""
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return max(problem.q_len, problem.kv_len) <= LONGEST and max(problem.heads, problem.batch) < _MOST_BLOCKS

    row_alignment = 16
    """Bytes: strides of q, k and v are multiples of it, but for the last, which is one element."""
    pointer_alignment = 16
    """Bytes: where q, k and v start."""

    @abstractmethod
    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        """Thread blocks of each kernel of a call, in the order in which they are started."""

    def boxes(self, decisions: Decisions) -> dict[str, tuple[int, int]]:
        """Rows and columns that TMA copies at once, by tensor; of those alone that it copies."""
        return {}

    values: Mapping[str, tuple[int, ...]]
    """What each decision may be on some GPU for some spec."""

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return dict(self.values)

    def unfit(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> str | None:
        if decisions == self.decisions(spec, target):
            return None  # also where nothing has room enough, and the least tile spills
        return self.uneven(decisions) or self.room(spec, decisions).lacks(shared_limit(target))

    def uneven(self, decisions: Decisions) -> str | None:
        """Why tiles cannot be shared out evenly over the threads, or None where they can."""
        return None

    @abstractmethod
    def room(self, spec: AttentionSpec, decisions: Decisions) -> Room:
        """What a thread block takes."""

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc._tvm import IRModule

        if reason := self.unfit(spec, target, decisions):
            raise ValueError(f"{self.name} with {dict(decisions)} for {spec} on {target.mcpu}: {reason}")
        return IRModule(self.functions(spec, decisions))

    @abstractmethod
    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        """The kernels by name: "attention"; "survey" is called before it where data tell which keys there are to visit,
        "combine" after it where a call has several splits.
        """

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        return Launch(WORK)

    def blocks(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> int:
        """The argument `processors`: thread blocks of a persistent kernel. `problem.threads` counts multiprocessors."""
        return problem.threads


class Prefill(CudaFamily):
    """Many query rows, in tiles; where data tell which keys one has to visit, a survey goes before (`survey`)."""

    regime = "prefill"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        found = surveyed(spec)
        listed = 0 if found is None else math.prod(found.workspace(problem, *_LEAST_TILE))
        return super().suits(spec, problem) and listed < _MOST_LISTED

    @abstractmethod
    def attention(self, spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
        """The kernel "attention"."""

    @abstractmethod
    def grid(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> tuple[int, int, int]:
        """Its thread blocks."""

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        made = {"attention": self.attention(spec, decisions)}
        found = surveyed(spec)
        if found is not None:
            from attncc.schedules.cuda import survey

            made["survey"] = survey.build(spec, found, decisions["rows"], decisions["keys"])
        return made

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        found = surveyed(spec)
        lists = () if found is None else (found.workspace(problem, decisions["rows"], decisions["keys"]),)
        return Launch(WORK, lists)

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        grid = {"attention": self.grid(spec, decisions, problem)}
        found = surveyed(spec)
        return grid if found is None else {"survey": found.grid(problem, decisions["rows"]), **grid}
